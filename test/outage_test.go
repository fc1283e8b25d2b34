package test

import (
	"bufio"
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

func TestACLIThatIsStoppedFromOutsideGoesOnOrTimesOut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, timeout, want string
		wakes               bool
	}{
		{"and goes on", "1m", "success", true},
		{"for good", "20s", "timeout timeout", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TIMEOUT="+test.timeout)
			marker := newMarker()
			outcomes := make(chan reply, 1)
			s.background(context.Background(), "waits-for-its-child "+marker, outcomes)
			child, cli := s.running(marker)
			syscall.Kill(cli, syscall.SIGSTOP)
			becomes(t, cli, "T") // stopped
			if test.wakes {      // else it has nothing to answer when the stop ladder wakes it
				syscall.Kill(child, syscall.SIGKILL)
				becomes(t, child, "Z") // waiting to be reaped
				syscall.Kill(cli, syscall.SIGCONT)
			}
			if diff := cmp.Diff(test.want, inShort((<-outcomes).answer)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			s.goesOn()
		})
	}
}

// becomes waits until a process is in a state of proc_pid_status(5).
func becomes(t testing.TB, pid int, state string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d is in state %s", pid, state), func() bool {
		return strings.HasPrefix(procStatus(pid, "State"), state)
	})
}

// A suspended machine stops all; CLOCK_MONOTONIC, which Go's timers follow,
// stands still then, but a paused container's goes on, as here.
func TestASuspendedServerAnswersAndGoesOn(t *testing.T) {
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
			s := startServer(t, "VM_TIMEOUT=15s")
			marker := newMarker()
			pids := []int{s.cmd.Process.Pid}
			outcomes := make(chan reply, 1)
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
			time.Sleep(16 * time.Second) // longer than VM_TIMEOUT: this is the fault itself
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGCONT)
			}
			o := <-outcomes
			if got := inShort(o.answer); o.err != nil || !slices.Contains(test.want, got) {
				t.Errorf("answer %q, want one of %q; %+v", got, test.want, o)
			}
			nothingLeft(t, marker)
			s.goesOn()
		})
	}
}

// No test can set the clock of one process. What it can: start the server where
// CLOCK_MONOTONIC, which Go's timers follow, is 95 years on.
func TestTheTimeoutHoldsWhereTheClockIsAnother(t *testing.T) {
	t.Parallel()
	const on = "3000000000"
	unshare := []string{"unshare", "--time", "--monotonic", on, "--boottime", on, "--"}
	try := exec.Command(unshare[0], append(unshare[1:], "true")...)
	if output, err := try.CombinedOutput(); err != nil {
		missing(t, string(output), "needs root and a kernel with time namespaces")
	}
	cmd := serverCommand(t, "VM_TIMEOUT=15s")
	below(t, cmd, unshare...)
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
	if got.DurationMS < 15000 || got.DurationMS > 60000 {
		t.Errorf("duration_ms is %d", got.DurationMS)
	}
}

func TestAServerWhoseLogNobodyReadsGoesOn(t *testing.T) {
	t.Parallel()
	t.Run("it was closed at the start", func(t *testing.T) {
		t.Parallel()
		cmd := serverCommand(t)
		below(t, cmd, "sh", "-c", `exec "$0" 2>&-`)
		s := &testServer{stderr: &syncBuffer{}}
		s.launch(t, cmd)
		eventually(t, "the server listens", func() bool {
			pid := cmd.Process.Pid
			caught, _ := strconv.ParseUint(procStatus(pid, "SigCgt"), 16, 64)
			if caught>>(syscall.SIGUSR2-1)&1 == 1 { // which would end the shell
				s.countable()
				s.url = listeningSocket(pid)
			}
			return s.url != ""
		})
		s.goesOn()
		s.goesOn()
	})
	t.Run("its reader went away", func(t *testing.T) {
		t.Parallel()
		log, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := serverCommand(t)
		cmd.Stderr = write
		s := &testServer{stderr: &syncBuffer{}}
		s.launch(t, cmd)
		write.Close()
		for lines := bufio.NewScanner(log); s.url == "" && lines.Scan(); {
			s.url = listening(lines.Text())
		}
		s.goesOn()
		log.Close()
		for range 3 {
			s.goesOn()
		}
	})
}

// listeningSocket finds the URL of the loopback port that a process listens on,
// where no log tells it: proc_pid_net(5).
func listeningSocket(pid int) (url string) {
	own := map[string]bool{}
	descriptors, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, path := range descriptors {
		target, _ := os.Readlink(path)
		own[target] = true
	}
	table, _ := os.ReadFile("/proc/net/tcp")
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != "0A" || !own["socket:["+fields[9]+"]"] { // listens
			continue
		}
		_, port, _ := strings.Cut(fields[1], ":")
		number, _ := strconv.ParseUint(port, 16, 16)
		return fmt.Sprintf("http://127.0.0.1:%d", number)
	}
	return ""
}

// The kernel ends all processes of a pid namespace with its PID 1, as of a
// container with the server. Elsewhere what a killed server ran lives on.
func TestAKilledServerTakesItsCommandAlongAsPID1Alone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		pid1 bool
	}{
		{"as PID 1 nothing survives it", true},
		{"elsewhere its command does, which is the control", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t)
			if test.pid1 {
				asPID1(t, cmd)
			}
			s := startCommand(t, cmd)
			marker := newMarker()
			defer killMarked(t, marker)
			outcomes := make(chan reply, 1)
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
