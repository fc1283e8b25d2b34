package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
)

// This file is in the server that the tests build, and not in the program. SIGUSR1 makes
// the server print its goroutines, SIGUSR2 makes it dumpable. With TEST_MOUNT_PROC its
// /proc shows the pid namespace that it was started in, as in a container.
func init() {
	if os.Getenv("TEST_MOUNT_PROC") != "" {
		err := syscall.Mount("proc", "/proc", "proc", 0, "")
		if err != nil {
			fmt.Fprintln(os.Stderr, "cannot mount /proc:", err)
			os.Exit(1)
		}
	}

	dumpable := make(chan os.Signal, 1)
	signal.Notify(dumpable, syscall.SIGUSR2)
	go func() {
		<-dumpable
		syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 1, 0)
	}()

	count := make(chan os.Signal, 1)
	signal.Notify(count, syscall.SIGUSR1)
	go func() {
		for range count {
			debug.FreeOSMemory() // collects, and returns to the kernel what is free
			fmt.Fprintf(os.Stderr, "goroutines=%d.\n", runtime.NumGoroutine())
		}
	}()
}
