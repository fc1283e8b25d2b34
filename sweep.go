package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// The one place that waits for this process's children, and kills them: the
// agent, which start started, and the orphans that became children because this
// process is a subreaper (confine). Nothing else may call wait(2).
//
// The life of a child:
//
//  1. start forks it with mu held, and notes its pid before mu is free. So reap
//     can't collect a child that is not known yet.
//  2. While it runs, os/exec signals it by pidfd, so a signal meets this process
//     or none, whatever became of the pid (Linux 5.4).
//  3. When it ends it is a zombie, and the kernel keeps its pid until reap
//     collects its status with mu held. kill looks and kills with mu held too, so
//     between its look and its kill no pid can come to mean another process.
//  4. reap hands the status to ended. From then on, and not before, the child's
//     owner calls cmd.Wait: the status is gone (it gets ECHILD and ignores it), but
//     Wait also returns only once all output is copied and closes the pipes.
//
// What a child started becomes a child of this process when its parent ends. That
// is why kill and reap, repeated, reach every descendant, whatever session or
// group it moved to; and why ECHILD, no child at all, proves that none is left.

// sweepRounds take 10 s at least, far more than the kernel needs to end killed
// processes. They are counted, as a machine may be suspended meanwhile.
const sweepRounds = 1000

// children is safe for concurrent use. Its lock is the last one taken: nothing
// is called with it held.
type children struct {
	mu    sync.Mutex // see the life of a child
	agent int        // pid of the child that start started, 0 for none
	ended func(syscall.WaitStatus)
}

// start starts cmd. ended is called in a goroutine of its own when it has ended.
// There is one such child at a time.
func (c *children) start(cmd *exec.Cmd, ended func(syscall.WaitStatus)) error {
	c.mu.Lock()
	defer c.mu.Unlock()

	err := cmd.Start()
	if err != nil {
		return err
	}
	c.agent = cmd.Process.Pid
	c.ended = ended
	return nil
}

// reap collects the status of every child that has ended. It says whether no
// child is left, not even one that runs: the kernel's ECHILD.
func (c *children) reap() (noneLeft bool) {
	c.mu.Lock()
	defer c.mu.Unlock()

	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WALL, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err == syscall.ECHILD
		}
		if pid == 0 {
			return false // those that are left run
		}

		if pid == c.agent {
			go c.ended(status)
			c.agent = 0
			c.ended = nil
		}
	}
}

// sweep kills every child and reaps, again and again, as what was below a child
// becomes one, until none is left. It returns how many it killed, or an error
// after sweepRounds.
func (c *children) sweep() (killed int, err error) {
	seen := map[string]bool{}
	pause := 100 * time.Microsecond

	for round := 0; !c.reap(); round++ {
		left := c.kill()
		for _, process := range left {
			seen[process] = true
		}

		if round == sweepRounds {
			some := left[:min(len(left), 5)]
			return len(seen), fmt.Errorf("cannot kill %d processes that a command left: %q",
				len(left), some)
		}
		time.Sleep(pause)
		pause = min(2*pause, 10*time.Millisecond)
	}
	return len(seen), nil
}

// kill sends SIGKILL to every child and describes those, such as `7 (sh)`.
func (c *children) kill() (left []string) {
	c.mu.Lock()
	defer c.mu.Unlock()

	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		name, parent := readStat(path)
		if parent != os.Getpid() {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		syscall.Kill(pid, syscall.SIGKILL)
		left = append(left, name)
	}
	return left
}

// readStat reads /proc/PID/stat, `7 (sh) S 1 …` (proc_pid_stat(5)), up to the
// parent's pid, which is 0 for a process that is gone.
func readStat(path string) (name string, parent int) {
	data, _ := os.ReadFile(path)
	end := bytes.LastIndexByte(data, ')') + 1 // the name before it may hold anything

	fields := bytes.Fields(data[end:])
	if len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return string(data[:end]), parent
}
