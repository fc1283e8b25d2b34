package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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
