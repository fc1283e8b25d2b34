//go:build linux

package test

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// What tests ask of Linux that no other system has.

// ownNamespaces are a process's own pids and mounts, as in a container.
func ownNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
}

// readAsStdin makes what a file holds the rest of this process's input.
func readAsStdin(file *os.File) error { return syscall.Dup3(int(file.Fd()), 0, 0) }

// openTerminal makes a terminal, which goes with the test, and returns its path.
func openTerminal(t *testing.T) (path string) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ptmx.Close() })
	var number, unlock int32 // ioctl_tty(2)
	ioctl := func(request uintptr, value *int32) {
		syscall.Syscall(syscall.SYS_IOCTL, ptmx.Fd(), request, uintptr(unsafe.Pointer(value)))
	}
	ioctl(syscall.TIOCSPTLCK, &unlock)
	ioctl(syscall.TIOCGPTN, &number)
	return fmt.Sprint("/dev/pts/", number)
}

// traceMe makes the parent this process's tracer.
func traceMe() {
	for range 100 { // on each thread, as a signal may come to any
		go func() {
			runtime.LockOSThread()
			syscall.RawSyscall(syscall.SYS_PTRACE, syscall.PTRACE_TRACEME, 0, 0)
			select {}
		}()
	}
	runtime.LockOSThread()
	syscall.RawSyscall(syscall.SYS_PTRACE, syscall.PTRACE_TRACEME, 0, 0)
	time.Sleep(100 * time.Millisecond)
}

// waitForInput returns when there is something to read from stdin, which it
// leaves there.
func waitForInput() {
	poll := struct {
		fd              int32
		events, revents int16
	}{0, 1, 0} // POLLIN
	syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, 0, 0, 0, 0)
}

// forkChain forks and exits without end, so that whoever looks finds only the dead.
// Raw system calls only: the child of a fork has one thread and no runtime. It rests
// when there is a file of that name, for the control to find it, or in the end: 8000
// forks take 14 s (measured), longer than a sweep may.
func forkChain() {
	rest, _ := syscall.BytePtrFromString("rest")
	here := -100 // AT_FDCWD
	for range 8000 {
		_, _, errno := syscall.RawSyscall(
			syscall.SYS_FACCESSAT, uintptr(here), uintptr(unsafe.Pointer(rest)), 0)
		if errno == 0 {
			break
		}
		pid, _, _ := syscall.RawSyscall6(
			syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if pid != 0 {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
		syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0)
	}
	syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
}
