//go:build linux

package main

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"syscall"
)

// What the server does to its own process before it starts any other, so that
// no agent escapes it, reads it or starves it.

// confine is called once, before the first agent. It
//   - makes orphans below this process its children, whatever session or process
//     group they moved to (PR_SET_CHILD_SUBREAPER, prctl(2));
//   - closes /proc/PID to its own user, but for what all may read
//     (PR_SET_DUMPABLE, prctl(2));
//   - keeps inherited descriptors from its children (CLOSE_RANGE_CLOEXEC,
//     close_range(2)).
func confine() error {
	const (
		setChildSubreaper = 36
		closeRange        = 436
		closeRangeCloexec = 4
	)
	calls := [][4]uintptr{
		{syscall.SYS_PRCTL, setChildSubreaper, 1, 0},
		{syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0},
		{closeRange, 3, math.MaxUint32, closeRangeCloexec},
	}

	for _, call := range calls {
		_, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3])
		if errno != 0 {
			return fmt.Errorf("cannot confine the agent: %w; "+
				"prctl and close_range are needed (Linux 5.11)", errno)
		}
	}
	return nil
}

// reserveThreads has the runtime create threads, which it keeps: it ends the
// program when it wants one and the agent has taken every process there may be.
func reserveThreads() {
	const enough = 16

	var all sync.WaitGroup
	all.Add(enough)
	for range enough {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()

			all.Done()
			all.Wait() // each holds its thread until all have one
		}()
	}
}
