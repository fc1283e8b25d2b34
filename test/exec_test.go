package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestALineOf1GiBIsSkippedAndCounted(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	if got := s.ask("floods"); got.Status != "success" || got.Result != "floods" {
		t.Errorf("answer: %+v %+v", got, got.Error)
	}
	s.logged("lines_skipped=1 ")
}

func TestTheAgentGetsItsArgumentsAndNothingOfTheConfiguration(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir()
	mcp := workspace + "/mcp.json"
	if err := os.WriteFile(mcp, []byte(`{"mcpServers": {}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	token := "secret-" + newMarker()
	s := startServer(t, "VM_WORKSPACE="+workspace, "VM_MCP_CONFIG="+mcp,
		"VM_CLAUDE_ARGS=--model  opus", "VM_TOKEN="+token, "KEPT=yes")
	got := s.describe(testSession, "Authorization", "Bearer "+token)
	want := []string{"-p", "--dangerously-skip-permissions",
		"--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
		"--resume", testSession, "--mcp-config", mcp, "--strict-mcp-config", "--model", "opus"}
	if diff := cmp.Diff(want, got.Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(workspace, got.Dir); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	if !got.Leads {
		t.Error("the agent does not lead a process group of its own")
	}
	if !slices.Contains(got.Env, "KEPT=yes") {
		t.Error("the server's environment is not the agent's")
	}
	for _, entry := range got.Env {
		if strings.HasPrefix(entry, "VM_") || strings.Contains(entry, token) {
			t.Errorf("the agent's environment holds %q", entry)
		}
	}
	if strings.Contains(s.stderr.String(), token) {
		t.Error("the log holds the token")
	}
}

// A server that was started on a terminal shares that with no agent, which
// could type there. The control does without the server.
func TestTheAgentHasNoTerminal(t *testing.T) {
	t.Parallel()
	path := openTerminal(t)
	onTerminal := func(cmd *exec.Cmd) *exec.Cmd {
		terminal, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { terminal.Close() })
		cmd.ExtraFiles = []*os.File{terminal}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
		return cmd
	}
	control := onTerminal(exec.Command(self(t), "-p"))
	control.Stdin = strings.NewReader(`{"message":{"content":"opens-its-terminal"}}`)
	output, err := control.Output()
	if err != nil || !strings.Contains(string(output), `"result":"opens-its-terminal"`) {
		t.Errorf("the control doesn't reach the terminal: %s %v", output, err)
	}
	s := startCommand(t, onTerminal(serverCommand(t)))
	const want = "open /dev/tty: no such device or address"
	if diff := cmp.Diff(want, s.ask("opens-its-terminal").Result); diff != "" {
		t.Errorf("opening the terminal (-want +got):\n%s", diff)
	}
}

func TestTheAgentInheritsNoDescriptor(t *testing.T) {
	t.Parallel()
	secret, err := os.Open(self(t))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	cmd := serverCommand(t)
	cmd.ExtraFiles = []*os.File{secret}
	got := startCommand(t, cmd).ask("lists-descriptors").Result
	if strings.Contains(got, self(t)+" ") {
		t.Errorf("the agent holds %s", got)
	}
	// What a server that does nothing hands on.
	control := exec.Command("sh", "-c", "readlink /proc/self/fd/3")
	control.ExtraFiles = cmd.ExtraFiles
	if output, err := control.Output(); err != nil || !strings.Contains(string(output), self(t)) {
		t.Errorf("the control doesn't hold the descriptor: %s %v", output, err)
	}
}

// With one user for both, what keeps the server's secrets is that it is not
// dumpable. SIGUSR2 makes the test's server dumpable again, for the control.
func TestTheAgentCannotReadTheServer(t *testing.T) {
	t.Parallel()
	cmd := serverCommand(t, "VM_TOKEN=secret-token", "ANTHROPIC_API_KEY="+realKey)
	asUser(t, cmd, publicSelf(t), nobody)
	s := startCommand(t, cmd)
	look := func() string {
		t.Helper()
		return s.ask("looks-at-its-parent", "Authorization", "Bearer secret-token").Result
	}
	if diff := cmp.Diff("environ: no, mem: no, fd: no", look()); diff != "" {
		t.Errorf("what the agent can read (-want +got):\n%s", diff)
	}
	s.cmd.Process.Signal(syscall.SIGUSR2)
	eventually(t, "the control can read the server", func() bool {
		return look() == "environ: yes, mem: yes, fd: yes"
	})
}

// A process that is not below the server may hold the agent's stdin, stdout or
// stderr, for example one that it was passed to.
func TestAPipeThatIsHeldFromOutsideDelaysAnAnswerButNotForEver(t *testing.T) {
	t.Parallel()
	for descriptor, name := range []string{"stdin", "stdout", "stderr"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TIMEOUT=20s")
			outcomes := make(chan reply, 1)
			s.background(context.Background(), "sleeps 2s", outcomes)
			s.queued(0)
			var held *os.File
			eventually(t, "the pipe is held", func() bool {
				for _, pid := range childPIDs(s.cmd.Process.Pid) {
					held, _ = os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, descriptor), os.O_WRONLY, 0)
				}
				return held != nil
			})
			defer held.Close()
			select {
			case o := <-outcomes:
				if o.answer.Status != "success" {
					t.Errorf("%+v %+v", o, o.answer.Error)
				}
			case <-time.After(time.Minute):
				t.Error("no answer while it is held")
			}
		})
	}
}

// A little below VM_TIMEOUT, so that time is left to report what the command printed.
func TestTheLimitsOfBashFollowTheTimeout(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		env  []string
		want []string // the default and the largest, of each name the last
	}{
		{"ten minutes", []string{"VM_TIMEOUT=10m"}, []string{"590000", "590000"}},
		{"two hours", []string{"VM_TIMEOUT=2h"}, []string{"7190000", "7190000"}},
		{"a minute", []string{"VM_TIMEOUT=1m"}, []string{"54000", "54000"}},
		{"more than a timer of the CLI's can count", []string{"VM_TIMEOUT=1000h"},
			[]string{"2147483647", "2147483647"}},
		{"the operator's own", []string{"BASH_DEFAULT_TIMEOUT_MS=1000", "BASH_MAX_TIMEOUT_MS=2000"},
			[]string{"1000", "2000"}},
		{"one of the operator's own", []string{"VM_TIMEOUT=10m", "BASH_DEFAULT_TIMEOUT_MS=1000"},
			[]string{"1000", "590000"}},
		{"an empty one", []string{"VM_TIMEOUT=10m", "BASH_MAX_TIMEOUT_MS="},
			[]string{"590000", "590000"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := make([]string, 2)
			for _, entry := range startServer(t, test.env...).describe("").Env {
				name, value, _ := strings.Cut(entry, "=")
				switch name {
				case "BASH_DEFAULT_TIMEOUT_MS":
					got[0] = value
				case "BASH_MAX_TIMEOUT_MS":
					got[1] = value
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("limits (-want +got):\n%s", diff)
			}
		})
	}
}

// Each command opens pipes and a pidfd. None is left to a collection of garbage.
func TestDescriptorsAreBackWithoutACollection(t *testing.T) {
	t.Parallel()
	s := startServer(t, "GOGC=off", "GOMEMLIMIT=off")
	s.countable()
	count := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	s.goesOn()
	before := count()
	for range 100 {
		s.ask("hello")
	}
	eventually(t, fmt.Sprintf("there are %d descriptors again", before), func() bool { return count() <= before })
}
