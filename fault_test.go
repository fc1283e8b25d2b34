package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
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

// inShort is an answer's status and error code.
func inShort(a answer) string {
	if a.Error != nil {
		return a.Status + " " + a.Error.Code
	}
	return a.Status
}

// goesOn wants a healthy server that answers the next command.
func (s *testServer) goesOn() {
	s.t.Helper()
	if status, state := s.state(); status != 200 {
		s.t.Errorf("health: %d %v; the server's log:\n%s", status, state, s.stderr)
	}
	if got := s.ask("hello"); got.Status != "success" {
		s.t.Errorf("the next command: %+v %+v", got, got.Error)
	}
}

// tells asks until a command is answered by anything but success: one CLI may
// have been started before the fault.
func (s *testServer) tells() (got answer) {
	s.t.Helper()
	eventually(s.t, "a command tells the fault", func() bool {
		got = s.ask("hello")
		return got.Status != "success"
	})
	return got
}

// procStatus is a field of /proc/PID/status, "" for what is no process.
func procStatus(pid int, field string) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+field+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// running waits for a process with the marker. Its parent is the CLI that runs.
func (s *testServer) running(marker string) (child, cli int) {
	s.t.Helper()
	eventually(s.t, "a marked child runs", func() bool {
		for _, line := range marked(s.t, marker) {
			pid, _, _ := strings.Cut(line, " ")
			child, _ = strconv.Atoi(pid)
			cli, _ = strconv.Atoi(procStatus(child, "PPid"))
		}
		return cli > 1 && cli != s.cmd.Process.Pid
	})
	return child, cli
}

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

// onATinyDisk makes the server's workspace a disk of 64 kB, which is gone with
// the server: it is mounted in a namespace of the server's own.
func onATinyDisk(t testing.TB, cmd *exec.Cmd, workspace string) error {
	t.Helper()
	unshare := []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=64k,mode=777 none "$0" && exec "$@"`, workspace}
	if output, err := exec.Command("unshare", append(unshare[1:], "true")...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot mount a small disk, which needs root with CAP_SYS_ADMIN: %s", output)
	}
	cmd.Args = append(unshare, cmd.Path)
	cmd.Path = lookPath(t, "unshare")
	return nil
}

// fill fills the server's tiny disk until empty is called.
func (s *testServer) fill(workspace string) (empty func()) {
	s.t.Helper()
	path := fmt.Sprintf("/proc/%d/root%s/full", s.cmd.Process.Pid, workspace) // as the server sees it
	err := os.WriteFile(path, make([]byte, 1<<20), 0o644)
	if !errors.Is(err, syscall.ENOSPC) {
		s.t.Fatalf("the disk is not full: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			s.t.Fatal(err)
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

func TestTheCLIIsStoppedFromOutside(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, timeout, want string
		wakes               bool
	}{
		{"and goes on", "1m", "success", true},
		{"for good", "8s", "timeout timeout", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TIMEOUT="+test.timeout)
			marker := newMarker()
			outcomes := make(chan outcome, 1)
			s.background(context.Background(), "waits-for-its-child "+marker, outcomes)
			child, cli := s.running(marker)
			syscall.Kill(cli, syscall.SIGSTOP)
			eventually(t, "it is stopped", func() bool { return strings.HasPrefix(procStatus(cli, "State"), "T") })
			if test.wakes { // else it has nothing to answer when the stop ladder wakes it
				syscall.Kill(child, syscall.SIGKILL)
				eventually(t, "its child waits to be reaped", func() bool { return strings.HasPrefix(procStatus(child, "State"), "Z") })
				syscall.Kill(cli, syscall.SIGCONT)
			}
			if diff := cmp.Diff(test.want, inShort((<-outcomes).answer)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			s.goesOn()
		})
	}
}

// A suspended machine stops all; CLOCK_MONOTONIC, which Go's timers follow,
// stands still then, but a paused container's goes on, as here.
func TestTheServerIsSuspended(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, command string
		withTheCLI    bool
		want          []string
	}{
		{"while its CLI ends", "sleeps 500ms", false, []string{"success", "timeout timeout"}},
		{"with its CLI", "waits", true, []string{"timeout timeout"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TIMEOUT=3s")
			marker := newMarker()
			pids := []int{s.cmd.Process.Pid}
			outcomes := make(chan outcome, 1)
			if test.withTheCLI {
				s.background(context.Background(), test.command+" "+marker, outcomes)
				_, cli := s.running(marker)
				pids = append(pids, cli)
			} else {
				s.background(context.Background(), test.command, outcomes)
				s.queued(0)
			}
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGSTOP)
			}
			time.Sleep(4 * time.Second) // longer than VM_TIMEOUT: this is the fault itself
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGCONT)
			}
			o := <-outcomes
			if got := inShort(o.answer); o.err != nil || !slices.Contains(test.want, got) {
				t.Errorf("answer %q, want one of %q; %+v", got, test.want, o)
			}
			if list := marked(t, marker); len(list) > 0 {
				t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
			}
			s.goesOn()
		})
	}
}

// No test can set the clock of one process. What it can: start the server where
// CLOCK_MONOTONIC, which Go's timers follow, is 95 years on.
func TestTheClockIsAnother(t *testing.T) {
	t.Parallel()
	unshare := []string{"unshare", "--time", "--monotonic", "3000000000", "--boottime", "3000000000", "--"}
	if output, err := exec.Command("unshare", append(unshare[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("needs root and a kernel with time namespaces: %s", output)
	}
	cmd := serverCommand(t, "VM_TIMEOUT=3s")
	cmd.Args = append(unshare, cmd.Path)
	cmd.Path = lookPath(t, "unshare")
	s := startCommand(t, cmd)
	here, _ := os.Readlink("/proc/self/ns/time")
	there, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", s.cmd.Process.Pid))
	if here == there {
		t.Error("the server's clock is the test's, so this proves nothing")
	}
	s.goesOn()
	got := s.ask("waits " + newMarker())
	if diff := cmp.Diff("timeout timeout", inShort(got)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if got.DurationMS < 3000 || got.DurationMS > 20000 {
		t.Errorf("duration_ms is %d", got.DurationMS)
	}
}

// startLogging starts a server whose stderr the test reads from log.
func startLogging(t testing.TB, cmd *exec.Cmd) (s *testServer, log *os.File) {
	t.Helper()
	log, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s = &testServer{t: t, cmd: cmd, stderr: &syncBuffer{}, done: make(chan error, 1)}
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	go func() { s.done <- cmd.Wait() }()
	t.Cleanup(s.stop)
	for lines := bufio.NewScanner(log); s.url == "" && lines.Scan(); {
		if _, rest, found := strings.Cut(lines.Text(), "msg=listening addr="); found {
			addr, _, _ := strings.Cut(rest, " ")
			s.url = "http://" + addr
		}
	}
	return s, log
}

func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	t.Run("it was closed at the start", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0") // only the log would tell a free port
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().String()
		listener.Close()
		cmd := serverCommand(t, "VM_ADDR="+addr)
		cmd.Args = []string{"sh", "-c", `exec "$0" 2>&-`, cmd.Path}
		cmd.Path = lookPath(t, "sh")
		s := &testServer{t: t, cmd: cmd, url: "http://" + addr, stderr: &syncBuffer{}, done: make(chan error, 1)}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { s.done <- cmd.Wait() }()
		t.Cleanup(s.stop)
		eventually(t, "the server listens", func() bool { status, _ := s.state(); return status == 200 })
		s.goesOn()
		s.goesOn()
	})
	t.Run("its reader went away", func(t *testing.T) {
		t.Parallel()
		s, log := startLogging(t, serverCommand(t))
		s.goesOn()
		log.Close()
		for range 3 {
			s.goesOn()
		}
	})
}

// The kernel ends all processes of a pid namespace with its PID 1, as of a
// container with the server. Elsewhere what a killed server ran lives on.
func TestTheServerIsKilled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		pid1 bool
	}{{"as PID 1 nothing survives it", true}, {"elsewhere its command does, which is the control", false}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t)
			if test.pid1 && os.Getuid() != 0 {
				t.Skip("needs root, to become PID 1")
			} else if test.pid1 {
				cmd.Env = append(cmd.Env, "TEST_MOUNT_PROC=1")
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
			}
			s := startCommand(t, cmd)
			marker := newMarker()
			defer killMarked(t, marker)
			outcomes := make(chan outcome, 1)
			s.background(context.Background(), "waits "+marker, outcomes)
			_, cli := s.running(marker)
			if !test.pid1 {
				defer syscall.Kill(cli, syscall.SIGKILL) // which its arguments don't mark
			}
			s.cmd.Process.Kill()
			<-s.done
			s.done <- nil
			if o := <-outcomes; o.err == nil {
				t.Errorf("there is an answer: %+v", o)
			}
			if test.pid1 {
				eventually(t, "nothing is left", func() bool { return len(marked(t, marker)) == 0 })
			} else if len(marked(t, marker)) == 0 {
				t.Error("nothing survived")
			}
		})
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

// limit sets a soft limit of the running server with prlimit(1), such as "nofile";
// lift sets what was there.
func (s *testServer) limit(resource string, soft int) (lift func()) {
	s.t.Helper()
	run := func(args ...string) string {
		s.t.Helper()
		cmd := exec.Command(program(s.t, "prlimit", "apt-get install util-linux"), append([]string{"--pid", strconv.Itoa(s.cmd.Process.Pid)}, args...)...)
		if s.cmd.SysProcAttr != nil { // as the same user, for which no capability is needed
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cmd.SysProcAttr.Credential}
		}
		output, err := cmd.CombinedOutput()
		if err != nil {
			s.t.Fatalf("%v: %s", err, output)
		}
		return strings.TrimSpace(string(output))
	}
	old := run("--"+resource, "--noheadings", "--raw", "--output=SOFT")
	run(fmt.Sprintf("--%s=%d:", resource, soft))
	return func() { run("--" + resource + "=" + old + ":") }
}

// asNobodyElse makes the server an ordinary user whom no other process belongs to.
func asNobodyElse(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become a user without other processes")
	}
	path, uid := publicSelf(t), uint32(1<<30+time.Now().UnixNano()%(1<<30))
	cmd.Path, cmd.Args, cmd.Dir = path, []string{"vm-server"}, "/"
	cmd.Env = append(cmd.Env, "VM_CLAUDE="+path, "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
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

// Clients that say nothing may not take the descriptors that a sweep needs.
func TestIdleClientsTakeEveryDescriptor(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=1m")
	s.goesOn()
	marker := newMarker()
	outcomes := make(chan outcome, 1)
	s.background(context.Background(), "waits "+marker, outcomes)
	_, cli := s.running(marker)
	s.cmd.Process.Signal(syscall.SIGUSR2) // so that an ordinary user's test may count descriptors
	s.resources()
	defer s.limit("nofile", 64)()
	var connections []net.Conn
	for range 80 {
		connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		connections = append(connections, connection)
	}
	eventually(t, "as many are held as may be", func() bool { return s.resources().descriptors > 64/3 })
	held := 0
	for _, connection := range connections {
		connection.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := connection.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			held++
		}
	}
	if held > 64/3 {
		t.Errorf("%d idle connections are held", held)
	}
	syscall.Kill(cli, syscall.SIGKILL) // and what it started is left to the sweep
	if o := <-outcomes; inShort(o.answer) != "failed agent_crashed" || !strings.Contains(o.answer.Error.Message, "signal: killed") {
		t.Errorf("the command: %+v %+v", o, o.answer.Error)
	}
	if list := marked(t, marker); len(list) > 0 {
		t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
	}
	eventually(t, "who says nothing is closed in the end", func() bool { return s.resources().descriptors < 64/3 })
	s.goesOn()
}
