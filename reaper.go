package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// reaper kills and reaps this process's children: what the agent leaves behind becomes one,
// because this process is a subreaper (hardenProcess). It is safe for concurrent use.
//
// The agent itself is the one child that is not the reaper's. os/exec waits for it (wait),
// and signals it by pidfd, so that a signal reaches this process or none.
//
// Any other child is a zombie from its end until it is reaped here with mu held, and until
// then the kernel keeps its pid. Children are listed and signaled with mu held too, so a
// signal never reaches a process that reuses a pid.
//
// Why nothing escapes: a process is below its parent or, when that has ended, a child of
// this one. So killing all children and reaping them, again and again, reaches every
// descendant, whatever session or group it moved to. When wait4 reports ECHILD, no child
// at all, the kernel itself says that none is left.
type reaper struct {
	mu     sync.Mutex
	agent  int // the pid of the agent that runs, 0 for none
	killed int // children that SIGKILL ended, since killAll began
}

const (
	// reapBatch is how many children are reaped before they are killed again. Next to fork
	// chains there is always one more to reap; 64 are too few, because killing then costs
	// more than they fork (measured).
	reapBatch = 1000
	killBatch = 1000

	// killAll pauses after eagerRounds in a row in which nothing could be reaped, since a
	// generation of a fork chain lasts 0.05 to 1 ms and a pause lets it run. It gives up
	// after maxIdleRounds in a row, which take 10 s at least, or after maxRounds. As PID 1
	// it kills everything at once after lastResortRounds. 20 fork chains take 8 to 52
	// rounds, 60 up to thousands (measured). Rounds are counted and not time, because a
	// machine may be suspended.
	eagerRounds      = 100
	maxIdleRounds    = eagerRounds + 1_000
	maxRounds        = 20_000
	lastResortRounds = 500
)

// start starts cmd as the agent. There may be one at a time, and wait must be called.
func (r *reaper) start(cmd *exec.Cmd) error {
	r.mu.Lock() // so that no reap sees a child whose pid is not known yet
	defer r.mu.Unlock()

	err := cmd.Start()
	if err == nil {
		r.agent = cmd.Process.Pid
	}
	return err
}

// wait returns when the agent has ended, or has stopped and is traced by this process: then
// it counts as a process that it left.
func (r *reaper) wait(cmd *exec.Cmd) {
	cmd.Wait()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.agent = 0
}

// reap reaps children that have ended, up to a batch, and never the agent. It reports
// whether there is no child at all, not even a running one: the kernel's ECHILD.
func (r *reaper) reap() (reaped int, none bool) {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.agent != 0 { // whose status wait4(-1) could take
		orphans := listOrphans()
		for _, pid := range orphans[:min(len(orphans), reapBatch)] {
			if pid != r.agent && r.reapOne(pid) == nil {
				reaped++
			}
		}

		return reaped, false
	}

	for reaped < reapBatch {
		err := r.reapOne(-1)
		if err != nil {
			return reaped, err == syscall.ECHILD
		}
		reaped++
	}

	return reaped, false
}

// reapOne reaps a child, or any for -1. It returns EAGAIN if that still runs, and ECHILD if
// there is none. mu is held.
func (r *reaper) reapOne(pid int) error {
	for {
		var status syscall.WaitStatus
		found, err := syscall.Wait4(pid, &status, syscall.WNOHANG|waitAll, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return err
		case found == 0:
			return syscall.EAGAIN
		}
		if status.Signaled() && status.Signal() == syscall.SIGKILL {
			r.killed++
		}
		return nil
	}
}

// reapAll reaps all children that have ended.
func (r *reaper) reapAll() {
	for {
		reaped, _ := r.reap()
		if reaped < reapBatch {
			return
		}
	}
}

// killAll kills every child but the agent, and reaps, until none is left and the agent has
// ended too. It returns how many SIGKILL ended; usedLastResort reports that it killed
// everything that PID 1 can see, which includes what an operator started there. An error
// says that processes are left. Call it once at a time.
func (r *reaper) killAll() (killed int, usedLastResort bool, err error) {
	r.mu.Lock()
	r.killed = 0
	r.mu.Unlock()

	idle := 0
	for round := range maxRounds {
		reaped, none := r.reap()
		if none {
			return r.killedSoFar(), usedLastResort, nil
		}
		children := listOrphans
		if idle > 0 { // there may be one that this misses
			children = listChildren
		}
		r.kill(children)

		idle++
		if reaped > 0 {
			idle = 0
		}
		if idle > maxIdleRounds {
			break
		}
		if round == lastResortRounds && os.Getpid() == 1 {
			usedLastResort = true
			syscall.Kill(-1, syscall.SIGKILL) // lets no fork pass meanwhile (kill(2))
		}

		if idle > eagerRounds {
			time.Sleep(10 * time.Millisecond)
		}
	}

	return r.killedSoFar(), usedLastResort, unkillable()
}

func (r *reaper) killedSoFar() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.killed
}

// kill sends SIGKILL to the children that are listed, but not to the agent: to the newest
// ones first, and a batch at most, since next to fork chains all others are zombies.
func (r *reaper) kill(children func() []int) {
	r.mu.Lock()
	defer r.mu.Unlock()

	pids := children()
	newest := pids[max(0, len(pids)-killBatch):]
	for _, pid := range slices.Backward(newest) {
		if pid != r.agent {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// unkillable names some of the children that are left.
func unkillable() error {
	var names []string
	pids := listChildren()
	for _, pid := range pids[:min(len(pids), 5)] {
		name, _ := readStat(pid)
		names = append(names, name)
	}

	return fmt.Errorf("cannot kill %d processes that a command left: %q", len(pids), names)
}

// listChildren lists the pids of this process's children, zombies too. It can miss some
// that come or go meanwhile: only wait4 knows for certain.
func listChildren() []int { return childrenOf(os.Getpid()) }

// listOrphans lists the children that this process did not start itself, in the order in
// which they became its children: those of its main thread, which adopts orphans. It is
// quick, since a generation of a fork chain may be gone when the list is read.
func listOrphans() []int {
	self := os.Getpid()
	pids, err := readChildren(fmt.Sprintf("/proc/%d/task/%[1]d/children", self))
	if err != nil {
		return searchChildren(self)
	}
	return pids
}

// childrenOf lists the children of a process, which each of its threads has in a file of
// its own (proc_pid_task(5)).
func childrenOf(process int) (pids []int) {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", process))
	if len(paths) == 0 {
		return searchChildren(process)
	}
	for _, path := range paths {
		found, _ := readChildren(path) // the thread may have ended
		pids = append(pids, found...)
	}

	return pids
}

// readChildren reads the children of a thread.
func readChildren(path string) (pids []int, err error) {
	data, err := os.ReadFile(path)
	for field := range bytes.FieldsSeq(data) {
		pid, err := strconv.Atoi(string(field))
		if err == nil && pid > 0 { // kill(2) takes 0 for this process's own group
			pids = append(pids, pid)
		}
	}

	return pids, err
}

// searchChildren asks every process for its parent, on a kernel without those files
// (CONFIG_PROC_CHILDREN).
func searchChildren(process int) (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		_, parent := readStat(pid)
		if parent == process {
			pids = append(pids, pid)
		}
	}

	return pids
}

// readStat reads a process's name, such as `7 (sh)`, and its parent's pid, which is 0 for a
// process that is gone (proc_pid_stat(5)).
func readStat(pid int) (name string, parent int) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	end := bytes.LastIndexByte(data, ')') + 1 // the name before it may contain anything

	fields := bytes.Fields(data[end:])
	if len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return string(data[:end]), parent
}
