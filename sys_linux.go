package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
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

// withRightsOf calls do with the file system rights of a user (setfsuid(2)), on this thread
// only: a root server then opens what that user could open, and nothing else. Without a user
// it is the server's own. The thread is given up if it can't have the server's rights again.
func withRightsOf(user *syscall.Credential, do func() error) error {
	if user == nil {
		return do()
	}

	runtime.LockOSThread() // until it has the server's own rights again
	own := syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	groups, err := syscall.Getgroups()
	if err != nil {
		return fmt.Errorf("cannot read the server's groups: %w", err)
	}
	for _, group := range groups {
		own.Groups = append(own.Groups, uint32(group))
	}

	err = setThreadRights(user)
	if err == nil {
		err = do()
	}
	if setThreadRights(&own) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// setThreadRights sets the ids by which the kernel judges this thread's access to files. The
// capabilities that overrule permissions go and come with them (capabilities(7)).
func setThreadRights(user *syscall.Credential) error {
	groups := append([]uint32{}, user.Groups...)
	first := unsafe.Pointer(unsafe.SliceData(append(groups, 0)))
	_, _, errno := syscall.RawSyscall(
		syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
	if errno != 0 {
		return fmt.Errorf("cannot take the agent's groups: %w", errno)
	}

	// These two report no error, but which id there was before: -1 changes nothing.
	for _, right := range []struct {
		call uintptr
		id   uint32
	}{
		{syscall.SYS_SETFSGID, user.Gid},
		{syscall.SYS_SETFSUID, user.Uid},
	} {
		syscall.RawSyscall(right.call, uintptr(right.id), 0, 0)
		now, _, _ := syscall.RawSyscall(right.call, ^uintptr(0), 0, 0)
		if uint32(now) != right.id {
			return errors.New("cannot take the agent's rights: " +
				"CAP_SETUID and CAP_SETGID are needed")
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
