package main

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildChain compiles the fork chains. Their arguments hold the program's path,
// which no other process has.
func buildChain(t testing.TB) (path string) {
	t.Helper()
	path = t.TempDir() + "/chain-" + newMarker()
	compiler := program(t, "cc", "make test installs it as root; or: apt-get install gcc")
	output, err := exec.Command(compiler, "-O2", "-o", path, "testdata/chain.c").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return path
}

// A generation of these chains lasts a fraction of a millisecond: whoever looks for
// them finds the dead. It runs alone, as 20 chains take thousands of pids.
func TestForkChainsDoNotOutrunTheSweep(t *testing.T) {
	needsRoot(t, "to become PID 1")
	tests := []struct {
		name string
		attr syscall.SysProcAttr
	}{
		{"under a subreaper", syscall.SysProcAttr{}},
		{"under PID 1", syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			chain := buildChain(t)
			cmd := serverCommand(t, "TEST_CHAIN="+chain)
			cmd.SysProcAttr = &test.attr
			if test.attr.Cloneflags != 0 {
				cmd.Env = append(cmd.Env, "TEST_MOUNT_PROC=1")
			}
			s := startCommand(t, cmd)
			for range 10 {
				got := s.ask("fork-chains-in-c 20")
				if got.Status != "success" || got.Result != "fork-chains-in-c" {
					t.Fatalf("%+v %+v; the server's log:\n%s", got, got.Error, s.stderr)
				}
				if list := marked(t, chain); len(list) > 0 {
					t.Fatalf("%d processes outlived the command:\n%s", len(list), strings.Join(list, "\n"))
				}
			}
			s.goesOn()
		})
	}
}

// The control: without the sweep the same look finds them.
func TestWithoutTheSweepForkChainsRunOn(t *testing.T) {
	t.Parallel()
	chain := buildChain(t)
	s := startServer(t, "TEST_SERVER=sweep off", "TEST_CHAIN="+chain)
	s.ask("fork-chains-in-c 1")
	eventually(t, "a look finds the chain", func() bool { return len(marked(t, chain)) > 0 })
	eventually(t, "the chain ends by itself", func() bool { return len(marked(t, chain)) == 0 })
}

// What ended by itself, or was ended by its parent, is not counted.
func TestKilledCountsWhatWasKilled(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	tests := map[string]float64{"hello": 0, "leaves-the-dead " + newMarker(): 0, "wide " + newMarker(): 100}
	for command, want := range tests {
		s.ask(command)
		_, state := s.state()
		if got := state["last_sweep"].(map[string]any)["killed"]; got != want {
			t.Errorf("%s: killed %v, want %v", command, got, want)
		}
	}
}

// BenchmarkChains is how long a sweep takes beside 20 fork chains, by the log.
func BenchmarkChains(b *testing.B) {
	s := startServer(b, "TEST_CHAIN="+buildChain(b))
	var worst, total time.Duration
	for b.Loop() {
		begin := time.Now()
		s.ask("fork-chains-in-c 20")
		took := time.Since(begin) - 50*time.Millisecond // which it lets them run
		total += took
		worst = max(worst, took)
	}
	b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms-mean")
	b.ReportMetric(float64(worst.Milliseconds()), "ms-worst")
}
