package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// startWarm starts a server with a spare.
func startWarm(t testing.TB, env ...string) *vm {
	t.Helper()
	v := start(t, append([]string{"VM_WARM=true"}, env...)...)
	v.spare("")
	return v
}

// spare waits until another Claude Code than before waits, with its MCP server,
// and returns its pid.
func (v *vm) spare(before string) (pid string) {
	v.t.Helper()
	v.eventually("a spare waits", func() bool {
		list := v.left()
		pid = ""
		for _, line := range list {
			if number, args, _ := strings.Cut(line, " "); strings.Contains(args, "--input-format stream-json") {
				pid = number
			}
		}
		return pid != "" && pid != before && slices.ContainsFunc(list, func(line string) bool { return strings.Contains(line, "playwright") })
	})
	return pid
}

// say sends a command in a conversation and wants success. What is left
// afterwards is one Claude Code, and not the one that waited before.
func (v *vm) say(command, session string) answer {
	v.t.Helper()
	before := v.spare("")
	a, body, err := v.post(context.Background(), command, session)
	if err != nil || a.Status != "success" {
		v.t.Fatalf("%v: %.2000s; the server's log:\n%s", err, body, v.log)
	}
	if list := strings.Join(v.left(), "\n"); strings.Contains(list, "\n"+before+" ") || strings.HasPrefix(list, before+" ") {
		v.t.Errorf("the spare was %s, left are:\n%s", before, list)
	}
	v.spare(before)
	v.eventually("one Claude Code is there", func() bool { // a child of its has its arguments until it executes something
		return strings.Count(strings.Join(v.left(), "\n"), "--input-format") == 1
	})
	return a
}

// quickly is whether the log's last command had a waiting Claude Code.
func (v *vm) quickly() bool {
	_, last, _ := strings.Cut(v.log.String()[strings.LastIndex(v.log.String(), "msg=command"):], "warm=")
	return strings.HasPrefix(last, "true")
}

func TestWarmAndColdAnswerAlike(t *testing.T) {
	shape := func(v *vm, say func(string, string) answer) (list []string) {
		first := say("the first thing said", "")
		again := say("recall", first.SessionID)
		third := say("recall", first.SessionID)
		tool := say("bash: echo from Bash", "")
		if first.SessionID != again.SessionID || first.SessionID != third.SessionID || first.SessionID == tool.SessionID {
			t.Errorf("sessions: %q %q %q %q", first.SessionID, again.SessionID, third.SessionID, tool.SessionID)
		}
		for _, a := range []answer{first, again, third, tool} {
			list = append(list, fmt.Sprint(a.Status, a.Result, a.MCPServers, a.Error))
		}
		_, body, err := v.post(context.Background(), "bash: echo x", "", "Accept", "text/event-stream")
		if err != nil {
			t.Fatal(err)
		}
		for event := range strings.SplitSeq(body, "\n\n") {
			name, data, found := strings.Cut(event, "\ndata: ")
			if !found {
				continue
			}
			var message struct{ Type, Subtype string }
			json.Unmarshal([]byte(data), &message)
			list = append(list, name+" "+message.Type+" "+message.Subtype)
		}
		return list
	}
	cold, warm := start(t), startWarm(t)
	want := shape(cold, func(command, session string) answer { return cold.askIn("success", command, session) })
	got := shape(warm, warm.say)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers and events (-cold +warm):\n%s", diff)
	}
	if len(want) < 8 {
		t.Errorf("there are hardly any events: %q", want)
	}
}

func TestASpareServesOneConversationAlone(t *testing.T) {
	v := startWarm(t)
	first := v.say("said first", "")
	hits := []bool{v.quickly()}
	for _, session := range []string{first.SessionID, first.SessionID, "", ""} {
		v.say("hello", session)
		hits = append(hits, v.quickly())
	}
	if diff := cmp.Diff([]bool{true, false, true, false, true}, hits); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
	a, _, err := v.post(context.Background(), "hello", "11111111-2222-4333-8444-555555555555")
	if err != nil || a.Error.Code != "session_not_found" {
		t.Errorf("an unknown session: %+v %v", a, err)
	}
	if v.say("hello", ""); !v.quickly() {
		t.Error("the spare waits for a conversation that there isn't")
	}
}

func TestASpareKilledWhileIdleCostsNoAnswer(t *testing.T) {
	v := startWarm(t)
	pid, _ := strconv.Atoi(v.spare(""))
	if v.container != "" {
		exec.Command(engine, "exec", v.container, "kill", "-9", strconv.Itoa(pid)).Run()
	} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.eventually("the server sees it", func() bool {
		response, err := http.Get(v.url + "/healthz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		state, _ := io.ReadAll(response.Body)
		return strings.Contains(string(state), "signal: killed")
	})
	a, body, err := v.post(context.Background(), "hello", "")
	if err != nil || a.Status != "success" || a.Result != "hello" {
		t.Errorf("%v %s", err, body)
	}
	if prompts := len(v.model.Calls()); prompts != 1 {
		t.Errorf("the model was asked %d times", prompts)
	}
}

// As old as IDLE says, a list of durations (make idle): the spare of before
// answers, with its MCP server; from 30 minutes on it is too old, and within one
// more another waits in its place.
func TestASpareThatHasWaitedAnswersUntilItIsTooOld(t *testing.T) {
	needChromium(t)
	list := os.Getenv("IDLE")
	if list == "" {
		list = "2s"
	}
	for idle := range strings.FieldsSeq(list) {
		t.Run(idle, func(t *testing.T) {
			t.Parallel()
			v := startWarm(t)
			begun, before := time.Now(), v.spare("")
			wait, err := time.ParseDuration(idle)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(wait)
			old := v.spare("") == before
			if old && wait > 31*time.Minute || !old && wait < 30*time.Minute {
				t.Errorf("after %v the first spare waits: %v", time.Since(begun), old)
			}
			a := v.say("open: data:text/html,<title>A page of the test</title>", "")
			if !strings.Contains(a.Result, "Page Title: A page of the test") || len(a.MCPServers) != 1 || a.MCPServers[0].Status != "connected" {
				t.Errorf("%+v", a)
			}
			if want := !old || wait < 30*time.Minute; v.quickly() != want {
				t.Errorf("after %v, with the first spare %v: warm is %v", time.Since(begun), old, !want)
			}
		})
	}
}

// What changed between two commands counts for the second, although its Claude
// Code was there before.
func TestChangesBetweenTwoCommandsAreSeen(t *testing.T) {
	v := startWarm(t)
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(v.dir, name)
		os.MkdirAll(filepath.Dir(path), 0o777)
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	put("workspace/data.txt", "one")
	if a := v.say("bash: cat data.txt", ""); a.Result != "one" {
		t.Errorf("%+v", a)
	}
	put("workspace/data.txt", "two")
	if a := v.say("bash: cat data.txt", ""); a.Result != "two" || !v.quickly() {
		t.Errorf("%+v", a)
	}
	put("workspace/.claude/settings.json", `{"env":{"FROM_SETTINGS":"new"}}`)
	if a := v.say("bash: echo $FROM_SETTINGS", ""); a.Result != "new" || v.quickly() {
		t.Errorf("%+v", a)
	}
	put("workspace/.claude/commands/greet.md", "the greeting of the file")
	if a := v.say("/greet", ""); !strings.Contains(a.Result, "the greeting of the file") {
		t.Errorf("%+v", a)
	}
	put("workspace/CLAUDE.md", "MARK-OF-CLAUDE-MD")
	v.say("hello", "")
	if calls := v.model.Calls(); !bytes.Contains([]byte(calls[len(calls)-1].Body), []byte("MARK-OF-CLAUDE-MD")) {
		t.Error("the model was not told of the new CLAUDE.md")
	}
}
