package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// sweepRounds take 10 s at least, far more than the kernel needs to end killed processes. They are counted, as a
// machine may be suspended meanwhile.
const sweepRounds = 1000

// confine makes orphans below this process its children, whatever session or process group they moved to
// (PR_SET_CHILD_SUBREAPER); closes /proc/PID to its own user, but for what all may read (PR_SET_DUMPABLE);
// and keeps inherited descriptors from its children (close_range(2), CLOSE_RANGE_CLOEXEC).
func confine() error {
	const setChildSubreaper, closeRange, closeRangeCloexec = 36, 436, 4
	for _, call := range [][4]uintptr{
		{syscall.SYS_PRCTL, setChildSubreaper, 1, 0},
		{syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0},
		{closeRange, 3, math.MaxUint32, closeRangeCloexec},
	} {
		if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return fmt.Errorf("cannot confine the agent: %w; prctl and close_range are needed (Linux 5.11)", errno)
		}
	}
	return nil
}

// children is the one place that waits for this process's children: for its own, which start started, and for
// the orphans that became its children.
type children struct {
	// mu is held from fork until the child is known, while kill looks and kills, and while statuses are collected,
	// so that a child's pid always means that child: the kernel frees a pid only when its status is collected.
	mu    sync.Mutex
	own   int // pid, 0 for none
	ended func(syscall.WaitStatus)
}

// start starts cmd; ended is called, in a goroutine of its own, when it has ended. Only then may cmd.Wait be
// called, for its output; until then, as os/exec signals by pidfd, a signal can't meet another process.
func (c *children) start(cmd *exec.Cmd, ended func(syscall.WaitStatus)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := cmd.Start()
	if err == nil {
		c.own, c.ended = cmd.Process.Pid, ended
	}
	return err
}

// reap collects the status of every child that has ended. None left, not even a running one, is what the
// kernel's ECHILD says; under a subreaper that proves that no process below this one is left.
func (c *children) reap() (noneLeft bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WALL, nil); {
		case err == syscall.EINTR:
		case err != nil || pid == 0:
			return err == syscall.ECHILD
		case pid == c.own:
			go c.ended(status)
			c.own, c.ended = 0, nil
		}
	}
}

// sweep kills every child and reaps, again and again, as what was below a child becomes one, until none is left.
// It returns how many it killed, or an error after sweepRounds.
func (c *children) sweep() (killed int, err error) {
	seen, pause := map[string]bool{}, 100*time.Microsecond
	for round := 0; !c.reap(); round++ {
		left := c.kill()
		for _, process := range left {
			seen[process] = true
		}
		if round == sweepRounds {
			return len(seen), fmt.Errorf("cannot kill %d processes that a command left: %q", len(left), left[:min(len(left), 5)])
		}
		time.Sleep(pause)
		pause = min(2*pause, 10*time.Millisecond)
	}
	return len(seen), nil
}

// kill sends SIGKILL to every child and describes those, such as `7 (sh)`: proc_pid_stat(5).
func (c *children) kill() (left []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		end := bytes.LastIndexByte(data, ')') + 1 // the name before it may hold anything
		fields := bytes.Fields(data[end:])
		if len(fields) > 1 && string(fields[1]) == strconv.Itoa(os.Getpid()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			syscall.Kill(pid, syscall.SIGKILL)
			left = append(left, string(data[:end]))
		}
	}
	return left
}
