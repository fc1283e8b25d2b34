//go:build linux

package main

import (
	"syscall"
	"unsafe"
)

// What else than to be confined the server asks of Linux alone.

// wall has wait4(2) collect children that were cloned without a signal, too (__WALL).
const wall = syscall.WALL

// bytesIn says how much a pipe holds: FIONREAD, pipe(7). It never blocks.
func bytesIn(fd uintptr) int {
	var held int32
	syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&held)))
	return int(held)
}
