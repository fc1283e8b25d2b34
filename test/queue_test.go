package test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommandsTakeTurnsInOrderAndABoundedNumberWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_QUEUE=3")
	prompts := s.put("prompts")
	outcomes := make(chan reply, 10)
	leaving, leave := context.WithCancel(context.Background())
	s.background(context.Background(), "waits-to-go", outcomes)
	s.queued(0)
	s.background(context.Background(), "first", outcomes)
	s.queued(1)
	s.background(leaving, "goes-away", outcomes)
	s.queued(2)
	s.background(context.Background(), "second", outcomes)
	s.queued(3)
	response, body, err := s.post(context.Background(), "one-too-many")
	if err != nil || response.StatusCode != 429 ||
		!strings.Contains(body, `"queue_full"`) || response.Header.Get("Retry-After") == "" {
		t.Errorf("overflow: %v %q %v", response, body, err)
	}
	leave()
	s.queued(2)
	s.put("go")
	got := map[string]int{}
	for range 4 {
		got[inShort((<-outcomes).answer)]++
	}
	if diff := cmp.Diff(map[string]int{"success": 3, "": 1}, got); diff != "" { // one went away
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	order, err := os.ReadFile(prompts)
	if diff := cmp.Diff("waits-to-go\nfirst\nsecond\n", string(order)); diff != "" {
		t.Errorf("order (-want +got), %v:\n%s", err, diff)
	}
	s.logged("code=client_gone")
	if strings.Contains(s.stderr.String(), "goes-away") {
		t.Errorf("the log holds a prompt:\n%s", s.stderr)
	}
}

// The second waits and works for longer than the timeout, and each for little
// more than half of it.
func TestTheTimeoutDoesNotCountTheWait(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_TIMEOUT=20s")
	outcomes := make(chan reply, 2)
	for range cap(outcomes) {
		s.background(context.Background(), "sleeps 11s", outcomes)
	}
	for range cap(outcomes) {
		o := <-outcomes
		if o.answer.Status != "success" || o.answer.DurationMS > 20000 {
			t.Errorf("%+v %+v", o, o.answer.Error)
		}
	}
}

// The CLI would answer that such a command is not available, as a success. With a space
// before it, it is text (a canary holds both).
func TestAPromptThatNamesACommandOfTheTerminalIsText(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.put("prompts")
	for _, dir := range []string{".claude/commands", ".claude/skills/status"} {
		if err := os.MkdirAll(s.cmd.Dir+"/"+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.put(".claude/commands/stop.md")
	s.put(".claude/skills/status/SKILL.md")
	want := ""
	for _, prompt := range []string{
		" /login is broken on my site", " /export\tthe\ntable", // the space is the server's
		"/stop the server", "/status", // which the project has made
		"/context", "/deploy", "/login-page is broken", "/Login", "/tmp is full", "/", "say /login",
	} {
		s.ask(strings.TrimPrefix(prompt, " "))
		want += prompt + "\n"
	}
	got, err := os.ReadFile(s.cmd.Dir + "/prompts")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("what the CLI gets (-want +got):\n%s", diff)
	}
}
