//go:build !linux

package test

import (
	"os"
	"syscall"
	"testing"
)

// A test that needs one of these needs a server, and is skipped before it gets here.

const linuxAlone = "this is Linux's alone"

func ownNamespaces() *syscall.SysProcAttr { panic(linuxAlone) }

func readAsStdin(*os.File) error { panic(linuxAlone) }

func traceMe() { panic(linuxAlone) }

func waitForInput() { panic(linuxAlone) }

func forkChain() { panic(linuxAlone) }

func openTerminal(t *testing.T) (path string) { needsLinux(t); return "" }
