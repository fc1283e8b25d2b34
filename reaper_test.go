package main

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
)

// A kernel may lack the files that list children: then every process is asked.
func TestChildrenAreFoundWithAndWithoutTheKernelsLists(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	t.Parallel()
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	for name, find := range map[string]func(int) []int{"lists": childrenOf, "search": searchChildren} {
		if got := find(os.Getpid()); !slices.Contains(got, child.Process.Pid) || slices.Contains(got, os.Getpid()) {
			t.Errorf("%s: %d is not among %v, or the process itself is", name, child.Process.Pid, got)
		}
	}
}
