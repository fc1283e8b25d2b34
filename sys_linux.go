package main

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"syscall"
)

// waitAll makes wait4(2) also report children that were cloned without a signal (__WALL).
const waitAll = syscall.WALL

// hardenProcess is called once, before the first agent. It
//   - makes orphans below this process its children, whatever session or process group
//     they moved to (PR_SET_CHILD_SUBREAPER, prctl(2));
//   - closes /proc/PID to processes of the same user (PR_SET_DUMPABLE, prctl(2));
//   - keeps inherited descriptors from its children (CLOSE_RANGE_CLOEXEC, close_range(2)).
func hardenProcess() error {
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

// preallocThreads makes the runtime create the threads that it may need, which it keeps.
// It ends the program if it cannot create one later, and the agent may use up all
// processes that there may be.
func preallocThreads() {
	count := max(16, 2*runtime.GOMAXPROCS(0))
	var ready sync.WaitGroup
	ready.Add(count)
	for range count {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()

			ready.Done()
			ready.Wait() // each keeps its thread until all have one
		}()
	}
}
