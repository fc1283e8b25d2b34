package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const otherSession = "11111111-2222-4333-8444-555555555555"

// startWarm starts a server that keeps a spare, and waits for that.
func startWarm(t testing.TB, env ...string) *testServer {
	t.Helper()
	return startWarmCommand(t, serverCommand(t, append([]string{"VM_WARM=true"}, env...)...))
}

func startWarmCommand(t testing.TB, cmd *exec.Cmd) *testServer {
	t.Helper()
	if err := os.WriteFile(cmd.Dir+"/starts", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	s := startCommand(t, cmd)
	s.sparePID()
	return s
}

// starts lists the pids of the agents that were started so far.
func (s *testServer) starts() []string {
	data, _ := os.ReadFile(s.cmd.Dir + "/starts")
	return strings.Fields(string(data))
}

// sparePID waits for a spare that reads its stdin and returns its pid: it is
// the server's one child.
func (s *testServer) sparePID() (pid int) {
	s.t.Helper()
	eventually(s.t, "a spare waits", func() bool {
		_, state := s.state()
		children := childPIDs(s.cmd.Process.Pid)
		if state["warm"] != "waiting" || len(children) != 1 {
			return false
		}
		pid = children[0]
		return slices.Contains(s.starts(), strconv.Itoa(pid))
	})
	return pid
}

// whoAnswers sends a command and returns the pid of the agent that answered.
func (s *testServer) whoAnswers(session string) int {
	s.t.Helper()
	body := map[string]string{"command": "describes-itself"}
	if session != "" {
		body["session_id"] = session
	}
	data, _ := json.Marshal(body)
	_, text, err := s.send(context.Background(), "POST", "/command", string(data), "Content-Type", "application/json")
	if err != nil {
		s.t.Fatal(err)
	}
	var a answer
	var got struct{ PID int }
	json.Unmarshal([]byte(text), &a)
	if err := json.Unmarshal([]byte(a.Result), &got); err != nil {
		s.t.Fatal(err, text)
	}
	return got.PID
}

// put makes a file in the workspace, which tells the hostile claude how to be.
func (s *testServer) put(name string) (path string) {
	s.t.Helper()
	path = s.cmd.Dir + "/" + name
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// replaceSpare makes the server start another spare, by one command.
func (s *testServer) replaceSpare() int {
	s.t.Helper()
	s.ask("hello")
	return s.sparePID()
}

func TestTheSpareAnswersTheNextCommand(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	for range 3 {
		spare := s.sparePID()
		if diff := cmp.Diff(spare, s.whoAnswers("")); diff != "" {
			t.Errorf("pid of the agent (-spare +answered):\n%s", diff)
		}
	}
	cold := startServer(t) // the control: there is none to answer
	if _, state := cold.state(); state["warm"] != "off" {
		t.Errorf("with VM_WARM=false: %v", state)
	}
	if list := childPIDs(cold.cmd.Process.Pid); len(list) > 0 {
		t.Errorf("with VM_WARM=false there are children: %v", list)
	}
}

// After a command in a conversation, the spare waits for that conversation;
// after one in none, for a new one. Another request starts cold.
func TestWhatTheSpareWaitsFor(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	steps := []struct {
		name, session string
		hit           bool
	}{
		{"a new conversation is expected first", "", true},
		{"a conversation comes unexpected", testSession, false},
		{"the same goes on", testSession, true},
		{"and on", testSession, true},
		{"a new one comes unexpected", "", false},
		{"another new one is expected", "", true},
		{"a conversation that the CLI does not continue", otherSession, false},
		{"is not expected again", "", true},
	}
	for _, step := range steps {
		spare := s.sparePID()
		got := s.whoAnswers(step.session)
		if (got == spare) != step.hit {
			t.Errorf("%s: the spare was %d, %d answered", step.name, spare, got)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", spare)); err == nil {
			t.Errorf("%s: the spare still lives", step.name)
		}
	}
}

// Never worse than without one: whatever a spare does while it waits, the next
// command is answered as ever, and no prompt is read twice.
func TestASpareThatMisbehaves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, file, command string
		status, result      string
		prompts             string // how often they were read
	}{
		{"it ended while idle", "exits-at-start-once", "hello", "success", "hello", "hello\n"},
		{"it ignores signals while idle", "ignores-signals-while-idle-once", "hello", "success", "hello", "hello\n"},
		{"it spoke before it was asked", "speaks-before-it-is-asked-once", "hello", "success", "hello", "hello\n"},
		{"it dies on the prompt, unread", "dies-on-the-prompt-unread-once", "hello", "success", "hello", "hello\n"},
		{"it dies on half of a long prompt", "dies-on-half-the-prompt-once", "hello " + strings.Repeat("x", 200_000), "success", "hello", "hello " + strings.Repeat("x", 200_000) + "\n"},
		{"it never reads the prompt", "never-reads-once", "hello", "success", "hello", "hello\n"},
		{"it never reads a prompt that fills the pipe", "never-reads-once", "hello " + strings.Repeat("x", 200_000), "success", "hello", "hello " + strings.Repeat("x", 200_000) + "\n"},
		{"it dies after it read the prompt: that is no second try", "", "exits", "failed", "", "exits\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startWarm(t)
			if test.file != "" {
				s.put(test.file)
			}
			s.ask("hello")
			eventually(t, "the spare is there, as bad as it is", func() bool {
				_, err := os.Stat(s.cmd.Dir + "/" + test.file)
				_, state := s.state()
				return state["warm"] != "none" && (test.file == "" || os.IsNotExist(err))
			})
			s.put("prompts")
			got := s.ask(test.command)
			if got.Status != test.status || got.Result != test.result {
				t.Errorf("answer: %+v %+v", got, got.Error)
			}
			prompts, _ := os.ReadFile(s.cmd.Dir + "/prompts")
			if diff := cmp.Diff(test.prompts, string(prompts)); diff != "" {
				t.Errorf("prompts that were read (-want +got):\n%s", diff)
			}
		})
	}
}

// A spare that fails to start is tried after each command and once a minute.
func TestASpareThatFailsDoesNotSpin(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	before := len(s.starts())
	s.put("exits-at-start")
	s.ask("hello") // by the spare that was well
	eventually(t, "healthz says how it ended", func() bool { _, state := s.state(); return state["warm"] == "exit status 7" })
	os.Remove(s.cmd.Dir + "/exits-at-start")
	time.Sleep(3 * time.Second) // in which it must not be tried again
	if diff := cmp.Diff(1, len(s.starts())-before); diff != "" {
		t.Errorf("starts (-want +got):\n%s", diff)
	}
	if got := s.ask("hello"); got.Result != "hello" {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(s.stderr.String(), "the waiting Claude Code ended") {
		t.Errorf("the log doesn't say it:\n%s", s.stderr)
	}
}

func TestTheTimeoutCountsFromThePrompt(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "VM_TIMEOUT=4s")
	spare := s.sparePID()
	time.Sleep(5 * time.Second) // the spare is older than the timeout
	if got := s.ask("sleeps 2s"); got.Status != "success" || got.DurationMS > 4000 {
		t.Errorf("%+v", got)
	}
	if list := childPIDs(s.cmd.Process.Pid); slices.Contains(list, spare) {
		t.Error("it was not the spare that answered")
	}
}

func TestShutdownStopsTheSpare(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	s.put("ignores-signals-while-idle")
	spare := s.replaceSpare()
	s.cmd.Process.Signal(syscall.SIGTERM)
	err := <-s.done
	if s.done <- err; err != nil {
		t.Errorf("exit: %v", err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", spare)); err == nil {
		t.Error("the spare lives on")
	}
}

func TestEachSpareHasItsOwnPlaceholder(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1")
	seen := map[string]bool{}
	for range 3 {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.sparePID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range strings.Split(string(environ), "\x00") {
			if name, value, _ := strings.Cut(entry, "="); name == "ANTHROPIC_API_KEY" {
				if seen[value] || !strings.HasPrefix(value, "placeholder-") {
					t.Errorf("the spare's key is %q", value)
				}
				seen[value] = true
			}
		}
		s.ask("hello")
	}
	if len(seen) != 3 {
		t.Errorf("%d placeholders", len(seen))
	}
}
