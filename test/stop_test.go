package test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A stop is answered at once, ends the command in whatever phase it is, and is told
// to everyone who joined. The answer is kept.
func TestAStopEndsACommandInEveryPhase(t *testing.T) {
	t.Parallel()
	const stopped = "canceled stopped"
	tests := []struct {
		name, command string
		env           []string
		is            func(s *testServer, marker string, heard <-chan string) bool // in that phase
		want, result  string
		session       bool
	}{
		{name: "running", command: "waits", is: hasSpoken("waiting"), want: stopped,
			result: "waiting", session: true},
		{name: "running, and it tells how far it came", command: "tells-when-interrupted",
			is: hasSpoken("half of it"), want: stopped, result: "half of it", session: true},
		{name: "running, and deaf", command: "ignores-signals", is: hasSpoken("still here"),
			want: stopped, result: "still here", session: true},
		{name: "after the result", command: "answers-and-stays", env: []string{"VM_EXIT_GRACE=20s"},
			is: hasSpoken("answered"), want: "success", result: "answered", session: true},
		{name: "in the sweep", command: "hello", env: []string{"TEST_VARIANT=held kill"},
			is: hasNoChild, want: "success", result: "hello", session: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startKeyed(t, test.env...)
			marker := newMarker()
			command := test.command + " " + marker
			stream := s.join(t, "a", command)
			outcomes := make(chan reply, 1)
			s.background(context.Background(), command, outcomes, withKey("a")...)
			heard := make(chan string, 100)
			go func() {
				defer close(heard)
				for e := stream.next(); e != "EOF"; e = stream.next() {
					heard <- e
				}
			}()
			eventually(t, "it is "+test.name, func() bool { return test.is(s, marker, heard) })

			if got := s.stopKey("a"); got != 202 {
				t.Errorf("the stop is answered %d", got)
			}
			s.put("sweep")
			o := <-outcomes
			if diff := cmp.Diff(test.want, inShort(o.answer)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if o.answer.Result != test.result || (o.answer.SessionID != "") != test.session {
				t.Errorf("what was said so far is %+v", o.answer)
			}
			nothingLeft(t, marker)
			if got := s.stopKey("a"); got != 404 {
				t.Errorf("a stop of what is over is answered %d", got)
			}
			response, body := s.askWithKey("a", command)
			if strings.TrimSpace(o.body) != body || response.Header.Get("Idempotency-Replayed") == "" {
				t.Errorf("kept is %s, the answer was %s", body, o.body)
			}
			if _, body := s.askWithKey("b", "hello"); !strings.Contains(body, "success") {
				t.Errorf("the next command: %s", body)
			}
		})
	}
}

// hasSpoken is true once a stream has heard a text.
func hasSpoken(text string) func(*testServer, string, <-chan string) bool {
	return func(_ *testServer, _ string, heard <-chan string) bool {
		select {
		case e := <-heard:
			return strings.HasSuffix(e, " "+text)
		default:
			return false
		}
	}
}

// hasNoChild says whether the command's CLI has ended, while the command goes on.
func hasNoChild(s *testServer, _ string, _ <-chan string) bool {
	_, state := s.state()
	isBusy := state["busy"] == true
	return isBusy && len(s.prompts()) > 0 && len(childPIDs(s.cmd.Process.Pid)) == 0
}

// A waiting command leaves the queue: it is never started, and those behind it move
// up in their order, whoever joins or leaves meanwhile.
func TestAStopOfAWaitingCommandLetsTheOthersMoveUp(t *testing.T) {
	t.Parallel()
	s := startKeyed(t)
	outcomes := make(chan reply, 20)
	s.background(context.Background(), "waits-to-go", outcomes, withKey("running")...)
	s.queued(0)
	for i := range 6 {
		command := fmt.Sprint("command-", i)
		s.background(context.Background(), command, outcomes, withKey(command)...)
		s.queued(i + 1)
	}
	leaving, leave := context.WithCancel(context.Background())
	s.background(leaving, "command-5", outcomes, withKey("command-5")...)
	for _, key := range []string{"command-1", "command-3", "command-5"} {
		s.background(context.Background(), key, outcomes, withKey(key)...)
	}
	eventually(t, "all have joined", func() bool { return len(s.connections()) == 11 })
	leave()
	for _, key := range []string{"command-1", "command-4"} {
		if got := s.stopKey(key); got != 202 {
			t.Errorf("the stop of %s is answered %d", key, got)
		}
	}
	s.queued(4)
	s.put("go")

	got := map[string]int{}
	for range 11 {
		o := <-outcomes
		got[o.name+" "+inShort(o.answer)]++
	}
	want := map[string]int{
		"waits-to-go success": 1, "command-0 success": 1, "command-1 canceled stopped": 2,
		"command-2 success": 1, "command-3 success": 2, "command-4 canceled stopped": 1,
		"command-5 success": 2, "command-5 ": 1, // who left
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	order := []string{"waits-to-go", "command-0", "command-2", "command-3", "command-5"}
	if diff := cmp.Diff(order, s.prompts()); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

// The spare has the prompt, and has not read it.
func TestAStopEndsAWaitingCLIThatWasTaken(t *testing.T) {
	t.Parallel()
	cmd := serverCommand(t, "VM_WARM=true", "VM_TOKEN=correct")
	for _, name := range []string{"never-reads", "prompts"} {
		if err := os.WriteFile(cmd.Dir+"/"+name, nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	s := startWarmCommand(t, cmd)
	spare := s.spare()
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "hello", outcomes, withKey("a")...)
	s.queued(0)
	if got := s.stopKey("a"); got != 202 {
		t.Errorf("the stop is answered %d", got)
	}
	if diff := cmp.Diff("canceled stopped", inShort((<-outcomes).answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if spare.lives() || len(s.prompts()) > 0 {
		t.Errorf("the spare lives: %v; read were %q", spare.lives(), s.prompts())
	}
}
