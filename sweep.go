package main

import (
	"fmt"
	"os"
	"os/exec"
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
//     Wait also returns only once all output is copied and closes the pipes. The
//     pidfd, which no Wait has closed, goes with the garbage.
//
// What a child started becomes a child of this process when its parent ends. That
// is why kill and reap, repeated, reach every descendant, whatever session or
// group it moved to; and why ECHILD, no child at all, proves that none is left.

const (
	// reapAtOnce bounds what reap collects before there is a kill again: beside fork
	// chains there is always one more to collect (measured: 64 is too few, as killing
	// then costs more than they fork).
	reapAtOnce = 1000

	// eagerRounds without headway pass before the sweep pauses: a generation of a
	// fork chain lasts 0.05 to 1 ms (measured), and a pause lets it run.
	eagerRounds = 100

	// stuckRounds without headway are the end: they take 10 s at least, far more than
	// the kernel needs to end killed processes. They are counted, as a machine may be
	// suspended meanwhile.
	stuckRounds = eagerRounds + 1000

	// chainRounds with headway are too many where PID 1 can end it: 20 chains took 8
	// to 52, 60 up to thousands (measured).
	chainRounds = 500
)

// children is safe for concurrent use. Its lock is the last one taken: no other of
// ours is taken with it held.
type children struct {
	mu    sync.Mutex // see the life of a child
	agent int        // pid of the child that start started, 0 for none
	ended func(syscall.WaitStatus)

	condemned map[int]bool // pids that kill signalled and reap has not collected
	killed    int          // how many of those but the agent SIGKILL ended, since the sweep began
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

// reapAll collects the status of every child that has ended.
func (c *children) reapAll() {
	for {
		collected, _ := c.reap()
		if collected < reapAtOnce {
			return
		}
	}
}

// reap collects the status of reapAtOnce ended children at most. It says whether
// no child is left, not even one that runs: the kernel's ECHILD.
func (c *children) reap() (collected int, noneLeft bool) {
	c.mu.Lock()
	defer c.mu.Unlock()

	for collected < reapAtOnce {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|wall, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return collected, err == syscall.ECHILD
		}
		if pid == 0 {
			return collected, false // those that are left run
		}
		collected++
		c.collect(pid, status)
	}
	return collected, false
}

// collect takes note of a child's end. mu is held.
func (c *children) collect(pid int, status syscall.WaitStatus) {
	isLeft := c.condemned[pid] && pid != c.agent // the agent itself was not left by it
	wasKilled := status.Signaled() && status.Signal() == syscall.SIGKILL
	if wasKilled && isLeft {
		c.killed++
	}
	delete(c.condemned, pid)

	if pid == c.agent {
		go c.ended(status)
		c.agent = 0
		c.ended = nil
	}
}

// sweepResult is what a sweep did.
type sweepResult struct {
	killed     int  // processes that SIGKILL ended
	lastResort bool // it took a kill of everything that PID 1 sees
}

// sweep kills every child and reaps, again and again, as what was below a child
// becomes one, until none is left. It goes on while it makes headway; an error says
// that it makes none. Call it once at a time.
func (c *children) sweep() (result sweepResult, err error) {
	c.beginCount()
	stuck := 0
	for round := 0; ; round++ {
		collected, noneLeft := c.reap()
		if noneLeft {
			result.killed = c.count()
			return result, nil
		}

		condemned := c.kill()
		stuck++
		if collected > 0 || condemned > 0 {
			stuck = 0
		}

		isLong := stuck == stuckRounds || round == chainRounds
		if isLong && os.Getpid() == 1 && !result.lastResort {
			result.lastResort = true
			stuck = 0
			c.killAll()
		}
		if stuck >= stuckRounds {
			result.killed = c.count()
			return result, c.survivors()
		}
		if stuck > eagerRounds {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (c *children) beginCount() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = 0
	c.condemned = map[int]bool{}
}

func (c *children) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.killed
}

// kill sends SIGKILL to every child that it sees. It returns how many it had not
// sent one before.
func (c *children) kill() (condemned int) {
	c.mu.Lock()
	defer c.mu.Unlock()

	for _, pid := range childrenNow() {
		err := syscall.Kill(pid, syscall.SIGKILL)
		if err != nil || c.condemned[pid] {
			continue
		}
		c.condemned[pid] = true
		condemned++
	}
	return condemned
}

// killAll ends everything but this process, which must be PID 1 of its namespace:
// the kernel lets no fork pass while it goes through the list (kill(2)). It also
// ends what an operator started there.
func (c *children) killAll() {
	c.mu.Lock()
	defer c.mu.Unlock()

	for _, pid := range childrenNow() {
		c.condemned[pid] = true
	}
	syscall.Kill(-1, syscall.SIGKILL)
}

// survivors names some of the processes that don't end.
func (c *children) survivors() error {
	c.mu.Lock()
	defer c.mu.Unlock()

	var names []string
	pids := childrenNow()
	for _, pid := range pids[:min(len(pids), 5)] {
		name, _ := readStat(pid)
		names = append(names, name)
	}
	return fmt.Errorf("cannot kill %d processes that a command left: %q", len(pids), names)
}
