package test

import (
	"context"
	"fmt"
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

func TestASpareThatReadSomethingElseIsReplaced(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path string // what is written: $WORKSPACE, $MCP and $OWN stand for places
		stale      bool
	}{
		{"nothing changed", "", false},
		{"a file of the workspace changed", "$WORKSPACE/main.c", false},
		{"the MCP configuration changed", "$MCP", true},
		{"an MCP server of the workspace was added", "$WORKSPACE/.mcp.json", true},
		{"the workspace's settings changed", "$WORKSPACE/.claude/settings.json", true},
		{"the workspace's local settings changed", "$WORKSPACE/.claude/settings.local.json", true},
		{"a command deep in a folder was added", "$WORKSPACE/.claude/commands/a/b/c.md", true},
		{"a CLAUDE.md was added above the workspace", "$WORKSPACE/../CLAUDE.md", true},
		{"a CLAUDE.md of the user's configuration elsewhere changed", "$OWN/CLAUDE.md", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			mcp, own := t.TempDir()+"/mcp.json", t.TempDir()
			if err := os.WriteFile(mcp, []byte(`{"mcpServers": {}}`), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := serverCommand(t, "VM_WARM=true", "VM_MCP_CONFIG="+mcp, "CLAUDE_CONFIG_DIR="+own)
			cmd.Dir += "/odd [name"
			if err := os.Mkdir(cmd.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			s := startWarmCommand(t, cmd)
			spare := s.spare()
			places := strings.NewReplacer("$WORKSPACE", cmd.Dir, "$MCP", mcp, "$OWN", own)
			if path := places.Replace(test.path); path != "" {
				os.MkdirAll(filepath.Dir(path), 0o755)
				if err := os.WriteFile(path, []byte("{ }"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.whoAnswers(""); (got != spare) != test.stale {
				t.Errorf("the spare was %v, %v answered", spare, got)
			}
		})
	}
}

func TestAnOldSpareIsReplaced(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "TEST_VARIANT=short lives")
	eventually(t, "it is too old to answer", func() bool {
		spare := s.spare()
		time.Sleep(1100 * time.Millisecond) // its life is a second here
		return s.whoAnswers("") != spare
	})
}

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
	s.spare()
	return s
}

// starts lists the pids of the agents that were started so far.
func (s *testServer) starts() []string {
	data, _ := os.ReadFile(s.cmd.Dir + "/starts")
	return strings.Fields(string(data))
}

// spare waits for a spare that reads its stdin: it is the server's one child.
func (s *testServer) spare() (p process) {
	s.t.Helper()
	eventually(s.t, "a spare waits", func() bool {
		_, state := s.state()
		children := childPIDs(s.cmd.Process.Pid)
		if state["warm"] != "waiting" || len(children) != 1 {
			return false
		}
		p = identify(children[0])
		return p.lives() && slices.Contains(s.starts(), strconv.Itoa(p.pid))
	})
	return p
}

// whoAnswers sends a command and returns the agent that answered.
func (s *testServer) whoAnswers(session string) process {
	s.t.Helper()
	d := s.describe(session)
	return process{d.PID, d.Started}
}

// replaceSpare makes the server start another spare, by one command.
func (s *testServer) replaceSpare() process {
	s.t.Helper()
	s.ask("hello")
	return s.spare()
}

func TestTheSpareAnswersTheNextCommand(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	for range 3 {
		if spare, got := s.spare(), s.whoAnswers(""); got != spare {
			t.Errorf("the spare was %v, %v answered", spare, got)
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
func TestTheSpareWaitsForTheLastConversation(t *testing.T) {
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
		spare := s.spare()
		if !spare.lives() { // the control of the look below
			t.Errorf("%s: the spare is gone before it is asked", step.name)
		}
		got := s.whoAnswers(step.session)
		if (got == spare) != step.hit {
			t.Errorf("%s: the spare was %v, %v answered", step.name, spare, got)
		}
		if spare.lives() {
			t.Errorf("%s: the spare still lives", step.name)
		}
	}
}

// Whatever a waiting CLI does before it gets a prompt, the next command is answered as
// ever. One that fails with its prompt is a crash like any other, and no prompt is sent
// twice.
func TestASpareThatMisbehavesIsNoWorseThanNone(t *testing.T) {
	t.Parallel()
	const once, success = "hello\n", "success"
	long := "hello " + strings.Repeat("x", 200_000) // more than a pipe holds
	tests := []struct {
		name, file, command string
		status, result      string
		prompts             string // that were read
	}{
		{"it ended while idle", "exits-at-start-once", "hello", success, "hello", once},
		{"it ignores signals while idle", "ignores-signals-while-idle-once", "hello",
			success, "hello", once},
		{"it spoke before it was asked", "speaks-before-it-is-asked-once", "hello",
			success, "hello", once},
		{"it dies on the prompt, unread", "dies-on-the-prompt-unread-once", "hello",
			"failed", "", ""},
		{"it dies on half of a long prompt", "dies-on-half-the-prompt-once", long,
			"failed", "", ""},
		{"it never reads the prompt", "never-reads-once", "hello", "failed", "", ""},
		{"it never reads a prompt that fills the pipe", "never-reads-once", long,
			"failed", "", ""},
		{"it dies after it read the prompt", "", "exits",
			"failed", "", "exits\n"},
		{"it puts some of the prompt back", "", "puts-a-byte-back",
			"failed", "", "puts-a-byte-back\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startWarm(t, "TEST_VARIANT=short lives")
			if test.file != "" {
				s.put(test.file)
			}
			s.ask("hello")
			eventually(t, "the spare is there, as bad as it is", func() bool {
				_, err := os.Stat(s.cmd.Dir + "/" + test.file)
				_, state := s.state()
				isThere := state["warm"] != "none"
				if test.file == "exits-at-start-once" {
					isThere = state["warm"] == "exit status 7"
				}
				return isThere && (test.file == "" || os.IsNotExist(err))
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

// It is tried after each command and once a minute.
// What the user's SessionStart hook says before there is a prompt is output of the
// command, and no reason to do without the spare.
func TestASpareWhoseHookSpeaksAnswers(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	s.put("runs-a-hook")
	s.ask("hello")
	for range 3 {
		spare, before := s.spare(), len(s.starts())
		_, body, err := s.post(context.Background(), "describes-itself", "Accept", "text/event-stream")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(body, fmt.Sprintf(`\"PID\":%d`, spare.pid)) {
			t.Errorf("it was not the spare %+v that answered: %s", spare, body)
		}
		for _, line := range []string{"hook_started", "hook_response"} {
			if strings.Count(body, line) != 1 {
				t.Errorf("%s comes %d times:\n%s", line, strings.Count(body, line), body)
			}
		}
		s.spare()
		if diff := cmp.Diff(1, len(s.starts())-before); diff != "" {
			t.Errorf("starts for a command (-want +got):\n%s", diff)
		}
	}
}

func TestASpareThatFailsToStartDoesNotSpin(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	before := len(s.starts())
	s.put("exits-at-start")
	s.ask("hello") // by the spare that was well
	eventually(t, "healthz says how it ended", func() bool {
		_, state := s.state()
		return state["warm"] == "exit status 7"
	})
	os.Remove(s.cmd.Dir + "/exits-at-start")
	time.Sleep(3 * time.Second) // in which it must not be tried again
	if diff := cmp.Diff(1, len(s.starts())-before); diff != "" {
		t.Errorf("starts (-want +got):\n%s", diff)
	}
	if got := s.ask("hello"); got.Result != "hello" {
		t.Errorf("%+v", got)
	}
	s.logged("the waiting Claude Code ended, or printed")
}

func TestTheTimeoutCountsFromThePromptNotFromTheSparesStart(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "VM_TIMEOUT=12s")
	spare := s.spare()
	time.Sleep(13 * time.Second) // the spare is older than the timeout
	if got := s.ask("sleeps 500ms"); got.Status != "success" || got.DurationMS > 12000 {
		t.Errorf("%+v %+v", got, got.Error)
	}
	s.logged("warm=true") // or it was not the spare that answered
	if spare.lives() {
		t.Error("it was not the spare that answered")
	}
}

func TestAShutdownStopsTheSpare(t *testing.T) {
	t.Parallel()
	s := startWarm(t)
	s.put("ignores-signals-while-idle")
	spare := s.replaceSpare()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	if spare.lives() {
		t.Error("the spare lives on")
	}
}

func TestEachSpareHasItsOwnPlaceholder(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1")
	seen := map[string]bool{}
	for range 3 {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.spare().pid))
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
