package main

import (
	"os/exec"
	"testing"
)

// Outside a container, 60 chains would take every pid of the machine.
func TestImageSixtyForkChainsAreSweptTenTimes(t *testing.T) {
	needImage(t)
	dir := newDir(t)
	build := exec.Command("cc", "-O2", "-static", "-o", dir+"/workspace/chain", root(t)+"/testdata/chain.c")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; make test installs a C compiler as root", err, output)
	}
	v := startIn(t, dir, "--pids-limit=4096", "VM_TIMEOUT=2m")
	for range 10 {
		v.ask("success", "bash: ./chain 60 60; echo begun")
	}
	v.ask("success", "hello")
}
