package test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What every command needs is taken away; the server tells so, with the remedy,
// and goes on when it is back.
func TestWhatIsTakenAwayIsToldAndMayComeBack(t *testing.T) {
	t.Parallel()
	// Another file takes its place, as what runs can't be written to.
	becomes := func(text string) func(string) error {
		return func(path string) error {
			os.RemoveAll(path)
			return writeProgram(path, []byte(text))
		}
	}
	mode := func(mode os.FileMode) func(string) error {
		return func(path string) error { return os.Chmod(path, mode) }
	}
	tests := []struct {
		name     string
		variable string // that names what is taken
		take     func(path string) error
		asNobody bool // the agent
	}{
		{"the CLI is missing", "VM_CLAUDE", os.Remove, false},
		{"the CLI is not executable", "VM_CLAUDE", mode(0o644), false},
		{"the CLI is no program", "VM_CLAUDE", becomes("\x7fELF"), false},
		{"the CLI's interpreter is missing", "VM_CLAUDE", becomes("#!/no/such/interpreter\n"), false},
		{"the workspace is deleted", "VM_WORKSPACE", os.RemoveAll, false},
		{"the workspace is a file", "VM_WORKSPACE", becomes(""), false},
		{"the agent may not enter the workspace", "VM_WORKSPACE", mode(0o700), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			claude := publicSelf(t)
			workspace := filepath.Dir(claude) + "/workspace"
			restore := func() {
				t.Helper()
				err := errors.Join(os.RemoveAll(claude), os.Rename(publicSelf(t), claude),
					os.RemoveAll(workspace), os.Mkdir(workspace, 0o777),
					os.Chmod(workspace, 0o777)) // whatever the umask is
				if err != nil {
					t.Fatal(err)
				}
			}
			restore()
			cmd := serverCommand(t, "VM_CLAUDE="+claude, "VM_WORKSPACE="+workspace)
			if test.asNobody {
				needsRoot(t, "for an agent of another user")
				cmd.Env = append(cmd.Env, "VM_USER=nobody")
			}
			s := startCommand(t, cmd)
			s.goesOn()
			path := map[string]string{"VM_CLAUDE": claude, "VM_WORKSPACE": workspace}[test.variable]
			if err := test.take(path); err != nil {
				t.Fatal(err)
			}
			got := s.tells()
			if diff := cmp.Diff("failed agent_crashed", inShort(got)); diff != "" {
				t.Fatalf("answer (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.Error.Message, test.variable) {
				t.Errorf("the message has no remedy: %s", got.Error.Message)
			}
			restore()
			s.goesOn()
		})
	}
}

// As a new checkout does. Whatever was started before must not work in the old.
func TestAReplacedWorkspaceIsUsedFromThenOn(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir() + "/workspace"
	os.Mkdir(workspace, 0o755)
	s := startServer(t, "VM_WORKSPACE="+workspace)
	for i := range 3 {
		s.goesOn()
		if err := os.Rename(workspace, workspace+strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		os.Mkdir(workspace, 0o755)
		s.ask("writes-a-file")
		if _, err := os.Stat(workspace + "/ran"); err != nil {
			t.Errorf("the command ran elsewhere: %v", err)
		}
	}
}

func TestAFullDiskIsTheAgentsToTell(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir()
	cmd := serverCommand(t, "VM_WORKSPACE="+workspace)
	if err := onATinyDisk(t, cmd, workspace); err != nil {
		missing(t, err.Error(), needsMount)
	}
	s := startCommand(t, cmd)
	empty := s.fill(workspace)
	got := s.ask("writes-a-file")
	if got.Status != "success" || !strings.Contains(got.Result, "no space left") {
		t.Errorf("on the full disk: %+v %+v", got, got.Error)
	}
	s.goesOn()
	empty()
	if got := s.ask("writes-a-file"); got.Result != "writing: <nil>" { // the control
		t.Errorf("on the empty disk: %+v %+v", got, got.Error)
	}
}

func TestACLIWithoutMemoryIsToldAndTheNextCommandRuns(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	marker := newMarker()
	outcomes := make(chan reply, 1)

	// An allocation that fails, as under a limit of its address space.
	if diff := cmp.Diff("failed agent_crashed", inShort(s.ask("runs-out-of-memory"))); diff != "" {
		t.Errorf("a CLI that gets no memory (-want +got):\n%s", diff)
	}
	s.goesOn()

	// What the kernel's OOM killer does to its victim, which is SIGKILL. To have it
	// choose one takes a memory cgroup, which few places let a test make.
	s.background(context.Background(), "waits "+marker, outcomes)
	_, cli := s.running(marker)
	syscall.Kill(cli, syscall.SIGKILL)
	o := <-outcomes
	if diff := cmp.Diff("failed agent_crashed", inShort(o.answer)); diff != "" {
		t.Errorf("the CLI is the victim (-want +got):\n%s", diff)
	} else if !strings.Contains(o.answer.Error.Message, "signal: killed") ||
		o.answer.Result != "waiting" {
		t.Errorf("the CLI is the victim: %+v %+v", o.answer, o.answer.Error)
	}
	s.goesOn()

	s.background(context.Background(), "waits-for-its-child "+marker, outcomes)
	child, _ := s.running(marker)
	syscall.Kill(child, syscall.SIGKILL)
	o = <-outcomes
	if o.answer.Status != "success" || o.answer.Result != "its child: signal: killed" {
		t.Errorf("a child of the CLI is the victim: %+v %+v", o.answer, o.answer.Error)
	}
	s.goesOn()
	nothingLeft(t, marker)
}

func TestAHomeThatIsNotWritableIsNoHindrance(t *testing.T) {
	t.Parallel()
	startServer(t, "HOME=/proc/nowhere").goesOn()
}

// What the real CLI makes of the same faults is an answer too.
func TestTheRealCLIAnswersDespiteAFault(t *testing.T) {
	t.Parallel()
	real, _ := withRealClaude(t)
	real = slices.Clip(append(real, "VM_TIMEOUT=5m"))
	t.Run("a home that is not writable", func(t *testing.T) {
		t.Parallel()
		s := startServer(t, append(real, "HOME=/proc/nowhere")...)
		if got := s.ask("real hello"); got.Status != "success" || got.Result != "hello" {
			t.Errorf("%+v %+v", got, got.Error)
		}
	})
	t.Run("a full disk for workspace and home", func(t *testing.T) {
		t.Parallel()
		workspace := t.TempDir()
		cmd := serverCommand(t, append(real, "VM_WORKSPACE="+workspace, "HOME="+workspace)...)
		if err := onATinyDisk(t, cmd, workspace); err != nil {
			missing(t, err.Error(), needsMount)
		}
		s := startCommand(t, cmd)
		s.fill(workspace)
		got := s.ask("real bash: echo x >file || echo it is full")
		if got.Status != "success" || !strings.Contains(got.Result, "it is full") {
			t.Errorf("%+v %+v", got, got.Error)
		}
		s.goesOn()
	})
	t.Run("a tool that the kernel kills", func(t *testing.T) {
		t.Parallel()
		s := startServer(t, real...)
		marker := newMarker()
		outcomes := make(chan reply, 1)
		s.background(context.Background(), "real bash: sh -c 'sleep 3600; : "+marker+"'", outcomes)
		tool := 0
		eventually(t, "the tool runs", func() bool { // and not just the shell that starts it
			for _, line := range marked(t, marker) {
				if pid, args, _ := strings.Cut(line, " "); strings.HasPrefix(args, "sh -c sleep") {
					tool, _ = strconv.Atoi(pid)
				}
			}
			return tool > 0
		})
		syscall.Kill(tool, syscall.SIGKILL)
		o := <-outcomes
		isTold := strings.Contains(o.answer.Result, "Exit code") || strings.Contains(o.answer.Result, "Killed")
		if o.answer.Status != "success" || !isTold {
			t.Errorf("%+v %+v", o, o.answer.Error)
		}
		nothingLeft(t, marker)
	})
}

// On a large machine the runtime may want more threads.
func TestTheServerGoesOnWhenNoProcessCanBeStarted(t *testing.T) {
	t.Parallel()
	for _, processors := range []string{"GOMAXPROCS=", "GOMAXPROCS=64"} {
		t.Run(processors, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t, processors)
			asNobodyElse(t, cmd)
			s := startCommand(t, cmd)
			s.goesOn()
			lift := s.limit("nproc", 1)
			s.tells()
			outcomes := make(chan reply, 20)
			for range 10 { // so often that the server itself comes to want one more thread
				for range cap(outcomes) {
					s.background(context.Background(), "hello", outcomes)
				}
				for range cap(outcomes) {
					o := <-outcomes
					if o.err != nil || inShort(o.answer) != "failed agent_crashed" && o.status != 429 {
						t.Fatalf("%+v %+v; the server's log:\n%.3000s", o, o.answer.Error, s.stderr)
					}
				}
			}
			lift()
			s.goesOn()
		})
	}
}

// The agent's processes and the server's threads count against one limit where
// both are one user.
func TestTheServerGoesOnWhenTheAgentTakesEveryProcess(t *testing.T) {
	t.Parallel()
	cmd := serverCommand(t)
	asNobodyElse(t, cmd)
	s := startCommand(t, cmd)
	s.goesOn()
	threads, _ := strconv.Atoi(procStatus(s.cmd.Process.Pid, "Threads"))
	lift := s.limit("nproc", threads+40)
	marker := newMarker()
	for range 5 {
		if diff := cmp.Diff("failed agent_crashed", inShort(s.ask("wide "+marker))); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		nothingLeft(t, marker)
	}
	lift()
	s.goesOn()
}
