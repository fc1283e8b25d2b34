package test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// buildChain compiles the fork chains.
func buildChain(t testing.TB) (path string) {
	t.Helper()
	needsLinux(t)
	path = t.TempDir() + "/chain"
	compiler := program(t, "cc", "make test installs it as root; or: apt-get install gcc")
	output, err := exec.Command(compiler, "-O2", "-o", path, "testdata/chain.c").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return path
}

// openChain opens the chains' program, for chainRuns.
func openChain(t testing.TB, path string) *os.File {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// chainRuns says whether a process of the chains is alive: by the lock that they
// share, as a look for the processes finds them only by chance.
func chainRuns(t testing.TB, file *os.File) bool {
	t.Helper()
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil && err != syscall.EWOULDBLOCK {
		t.Fatal(err)
	}
	syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
	return err != nil
}

// A generation of these chains lasts a fraction of a millisecond: whoever looks for
// them finds the dead. It runs alone, as 20 chains take thousands of pids.
func TestForkChainsDoNotOutrunTheSweep(t *testing.T) {
	needsRoot(t, "to become PID 1")
	tests := []struct {
		name   string
		isPID1 bool
	}{
		{"under a subreaper", false},
		{"under PID 1", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			chain := buildChain(t)
			file := openChain(t, chain)
			cmd := serverCommand(t, "TEST_CHAIN="+chain)
			if test.isPID1 {
				asPID1(t, cmd)
			}
			s := startCommand(t, cmd)
			for range 10 {
				got := s.ask("fork-chains-in-c 20")
				if got.Status != "success" || got.Result != "fork-chains-in-c" {
					t.Fatalf("%+v %+v; the server's log:\n%s", got, got.Error, s.stderr)
				}
				if chainRuns(t, file) {
					t.Fatal("a chain outlived the command")
				}
			}
			s.goesOn()
		})
	}
}

// The control: without the sweep the same look finds a chain, until it may end.
func TestWithoutTheSweepForkChainsRunOn(t *testing.T) {
	t.Parallel()
	chain := buildChain(t)
	file := openChain(t, chain)
	s := startServer(t, "TEST_VARIANT=kill off", "TEST_CHAIN="+chain)
	s.ask("fork-chains-in-c 1")
	if !chainRuns(t, file) {
		t.Error("the chain ended with its command, or is not seen")
	}

	err := os.Remove(chain)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the chain ends", func() bool { return !chainRuns(t, file) })
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
