package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheCLIIsTakenAwayAndComesBack(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		take func(path string) error
	}{
		{"it is missing", os.Remove},
		{"it is not executable", func(path string) error { return os.Chmod(path, 0o644) }},
		{"it is no program", func(path string) error {
			os.Remove(path) // or it is busy
			return os.WriteFile(path, []byte("\x7fELF"), 0o755)
		}},
		{"its interpreter is missing", func(path string) error {
			os.Remove(path)
			return os.WriteFile(path, []byte("#!/no/such/interpreter\n"), 0o755)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := publicSelf(t)
			s := startServer(t, "VM_CLAUDE="+path)
			s.goesOn()
			if err := test.take(path); err != nil {
				t.Fatal(err)
			}
			got := s.tells()
			if diff := cmp.Diff("failed agent_crashed", inShort(got)); diff != "" {
				t.Fatalf("answer (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.Error.Message, "VM_CLAUDE") {
				t.Errorf("the message has no remedy: %s", got.Error.Message)
			}
			os.Remove(path)
			if err := os.Rename(publicSelf(t), path); err != nil {
				t.Fatal(err)
			}
			s.goesOn()
		})
	}
}

func TestTheWorkspaceIsTakenAwayAndComesBack(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		take      func(path string) error
		needsRoot bool // to be another user than the agent
	}{
		{"it is deleted", os.RemoveAll, false},
		{"it is a file", func(path string) error {
			os.RemoveAll(path)
			return os.WriteFile(path, nil, 0o644)
		}, false},
		{"the agent may not enter it", func(path string) error { return os.Chmod(path, 0o700) }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			directory := filepath.Dir(publicSelf(t))
			workspace, env := directory+"/workspace", []string{"VM_CLAUDE=" + directory + "/claude"}
			if test.needsRoot && os.Getuid() != 0 {
				t.Skip("needs root, for an agent of another user")
			} else if test.needsRoot {
				env = append(env, "VM_USER=nobody")
			}
			create := func() {
				os.MkdirAll(workspace, 0o755)
				if err := os.Chmod(workspace, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			create()
			s := startServer(t, append(env, "VM_WORKSPACE="+workspace)...)
			s.goesOn()
			if err := test.take(workspace); err != nil {
				t.Fatal(err)
			}
			got := s.tells()
			if diff := cmp.Diff("failed agent_crashed", inShort(got)); diff != "" {
				t.Fatalf("answer (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.Error.Message, "VM_WORKSPACE") {
				t.Errorf("the message has no remedy: %s", got.Error.Message)
			}
			if info, err := os.Stat(workspace); err == nil && !info.IsDir() {
				os.Remove(workspace)
			}
			create()
			s.goesOn()
		})
	}
}

// As a new checkout does. Whatever was started before must not work in the old.
func TestTheWorkspaceIsReplaced(t *testing.T) {
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

func TestTheDiskIsFull(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir()
	cmd := serverCommand(t, "VM_WORKSPACE="+workspace)
	if err := onATinyDisk(t, cmd, workspace); err != nil {
		t.Skip(err)
	}
	s := startCommand(t, cmd)
	empty := s.fill(workspace)
	if got := s.ask("writes-a-file"); got.Status != "success" || !strings.Contains(got.Result, "no space left") {
		t.Errorf("on the full disk: %+v %+v", got, got.Error)
	}
	s.goesOn()
	empty()
	if got := s.ask("writes-a-file"); got.Result != "writing: <nil>" { // the control
		t.Errorf("on the empty disk: %+v %+v", got, got.Error)
	}
}

func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	marker := newMarker()
	outcomes := make(chan outcome, 1)

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
	} else if !strings.Contains(o.answer.Error.Message, "signal: killed") || o.answer.Result != "waiting" {
		t.Errorf("the CLI is the victim: %+v %+v", o.answer, o.answer.Error)
	}
	s.goesOn()

	s.background(context.Background(), "waits-for-its-child "+marker, outcomes)
	child, _ := s.running(marker)
	syscall.Kill(child, syscall.SIGKILL)
	if o := <-outcomes; o.answer.Status != "success" || o.answer.Result != "its child: signal: killed" {
		t.Errorf("a child of the CLI is the victim: %+v %+v", o.answer, o.answer.Error)
	}
	s.goesOn()
	if list := marked(t, marker); len(list) > 0 {
		t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
	}
}

func TestTheHomeIsNotWritable(t *testing.T) {
	t.Parallel()
	startServer(t, "HOME=/proc/nowhere").goesOn()
}

// What the real CLI makes of the same faults is an answer too.
func TestTheRealCLIMeetsAFault(t *testing.T) {
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
			t.Skip(err)
		}
		s := startCommand(t, cmd)
		s.fill(workspace)
		if got := s.ask("real bash: echo x >file || echo it is full"); got.Status != "success" || !strings.Contains(got.Result, "it is full") {
			t.Errorf("%+v %+v", got, got.Error)
		}
		s.goesOn()
	})
	t.Run("a tool that the kernel kills", func(t *testing.T) {
		t.Parallel()
		s := startServer(t, real...)
		marker := newMarker()
		outcomes := make(chan outcome, 1)
		s.background(context.Background(), "real bash: sh -c 'sleep 3600; : "+marker+"'", outcomes)
		tool, _ := s.running(marker)
		syscall.Kill(tool, syscall.SIGKILL)
		if o := <-outcomes; o.answer.Status != "success" || !strings.Contains(o.answer.Result, "Exit code") {
			t.Errorf("%+v %+v", o, o.answer.Error)
		}
		if list := marked(t, marker); len(list) > 0 {
			t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
		}
	})
}

func TestNoProcessCanBeStarted(t *testing.T) {
	t.Parallel()
	cmd := serverCommand(t)
	asNobodyElse(t, cmd)
	s := startCommand(t, cmd)
	s.goesOn()
	lift := s.limit("nproc", 1)
	s.tells()
	outcomes := make(chan outcome, 20)
	for range 10 { // so often that the server itself comes to want one more thread
		for range cap(outcomes) {
			s.background(context.Background(), "hello", outcomes)
		}
		for range cap(outcomes) {
			if o := <-outcomes; o.err != nil || inShort(o.answer) != "failed agent_crashed" && o.status != 429 {
				t.Fatalf("%+v %+v; the server's log:\n%.3000s", o, o.answer.Error, s.stderr)
			}
		}
	}
	lift()
	s.goesOn()
}

// The agent's processes and the server's threads count against one limit where
// both are one user.
func TestTheAgentTakesEveryProcess(t *testing.T) {
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
		if list := marked(t, marker); len(list) > 0 {
			t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
		}
	}
	lift()
	s.goesOn()
}
