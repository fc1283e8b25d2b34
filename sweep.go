package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// prSetChildSubreaper is PR_SET_CHILD_SUBREAPER, prctl(2).
const prSetChildSubreaper = 36

// confine keeps inherited descriptors from this process's children; makes
// orphans below it its children, whatever session or process group they moved
// to; and closes /proc/PID to its own user, but for what all may read.
func confine() error {
	entries, err := os.ReadDir("/proc/self/fd")
	for _, entry := range entries {
		if fd, _ := strconv.Atoi(entry.Name()); fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	for option, value := range map[uintptr]uintptr{prSetChildSubreaper: 1, syscall.PR_SET_DUMPABLE: 0} {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, option, value, 0); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		return fmt.Errorf("cannot confine the agent: %w; /proc and prctl are needed", err)
	}
	return nil
}

// children is the one place that starts this process's children, signals them
// and waits for them. Nothing else may wait, or it would take their statuses.
type children struct {
	// mu is held from fork until the child is known, while kill looks and kills,
	// and while statuses are collected, so that a child's pid always means that
	// child: the kernel frees a pid only when its status is collected.
	mu     sync.Mutex
	main   int // pid of the child that start started, 0 once it was collected
	exited chan syscall.WaitStatus
}

// start starts the command. The channel gets its status, once. The process is
// only for Signal, which by its pidfd can't meet another process.
func (c *children) start(cmd *exec.Cmd) (*os.Process, <-chan syscall.WaitStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	c.main, c.exited = cmd.Process.Pid, make(chan syscall.WaitStatus, 1)
	return cmd.Process, c.exited, nil
}

// reap collects the status of every child that has ended. None left, not even
// a running one, is what the kernel's ECHILD says; under a subreaper it proves
// that no process below this one is left.
func (c *children) reap() (noneLeft bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WALL, nil)
		if err != syscall.EINTR && (err != nil || pid == 0) {
			return err == syscall.ECHILD
		}
		if pid > 0 && pid == c.main {
			c.main = 0
			c.exited <- status
		}
	}
}

// watch reaps whenever a child ends, until ctx does.
func (c *children) watch(ctx context.Context) error {
	ended := make(chan os.Signal, 1) // one is enough, as reap collects them all
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for ctx.Err() == nil {
		c.reap()
		select {
		case <-ended:
		case <-ctx.Done():
		}
	}
	return nil
}

// sweep kills every process below this one and reaps, again and again, until
// none is left. It returns how many it had to kill, or an error after limit.
func (c *children) sweep(limit time.Duration) (killed int, err error) {
	seen := map[int]bool{}
	for started, pause := time.Now(), 100*time.Microsecond; !c.reap(); pause = min(2*pause, 10*time.Millisecond) {
		left := c.kill(seen)
		if time.Since(started) > limit {
			return len(seen), fmt.Errorf("cannot kill %d processes that a command left: %q", len(left), left[:min(len(left), 5)])
		}
		time.Sleep(pause)
	}
	return len(seen), nil
}

// kill sends SIGKILL to every process below this one that a look at /proc
// shows. It adds their pids to seen and returns their descriptions.
//
// A child's pid is pinned by mu. A deeper one may be gone by the time of the
// signal, but its pid is not in use again: Linux hands pids out in a circle.
func (c *children) kill(seen map[int]bool) (left []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	proc, err := os.Open("/proc")
	if err != nil {
		return []string{err.Error()}
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	family := map[int]bool{os.Getpid(): true}
	for _, name := range names { // by pid, so most often parents first; the next look finds the rest
		pid, _ := strconv.Atoi(name)
		if description, parent := stat(name); family[parent] {
			syscall.Kill(pid, syscall.SIGKILL)
			family[pid], seen[pid] = true, true
			left = append(left, description)
		}
	}
	return left
}

// stat reads /proc/PID/stat, proc_pid_stat(5): its start, such as `7 (sh) S`,
// and the parent's pid. It returns nothing and 0 for what is no process.
func stat(pid string) (description string, parent int) {
	data, _ := os.ReadFile("/proc/" + pid + "/stat")
	end := bytes.LastIndexByte(data, ')') // the name before it may hold anything
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return string(data[:end+3]), parent
}
