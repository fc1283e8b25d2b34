package main

import (
	"cmp"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// Ten times, or as often as ROUNDS says: the CLI shares the processors with 60 chains,
// so each takes half a minute on two. Outside a container, they would take every pid of
// the machine.
func TestImageSixtyForkChainsAreSweptEachTime(t *testing.T) {
	needImage(t)
	dir := newDir(t)
	build := exec.Command("cc", "-O2", "-static", "-o", dir+"/workspace/chain", root(t)+"/test/testdata/chain.c")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; make test installs a C compiler as root", err, output)
	}
	v := startIn(t, dir, "--pids-limit=4096", "VM_TIMEOUT=10m")
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("ROUNDS"), "10"))
	if err != nil {
		t.Fatal(err)
	}
	for range rounds {
		v.ask("success", "bash: ./chain 60 60; echo begun")
	}
	v.ask("success", "hello")
}
