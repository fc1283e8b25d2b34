//go:build !linux

package main

import "errors"

// Elsewhere than on Linux the program builds, so that its source can be edited, vetted
// and, where no agent is needed, tested there. It doesn't serve.

func confine() error {
	return errors.New("cannot serve on this system: Linux alone has child subreapers, " +
		"without which processes would outlive a command; run the image, with docker or podman")
}

func reserveThreads() {}

const wall = 0

func bytesIn(uintptr) int { return 0 }
