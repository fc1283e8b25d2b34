//go:build !linux

package main

import (
	"errors"
	"syscall"
)

// On other systems than Linux the program can be built, vetted and partly tested, so that
// its source can be edited there. It does not serve.

const waitAll = 0

func hardenProcess() error {
	return errors.New("cannot serve on this system: only Linux has child subreapers, " +
		"without which processes would outlive a command; run the image, with docker or podman")
}

func preallocThreads() {}

func withRightsOf(_ *syscall.Credential, do func() error) error { return do() }
