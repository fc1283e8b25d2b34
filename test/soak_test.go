package test

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSoak keeps servers under a mixed load for SOAK (default 1m) once they are
// warm. SOAK_SEED repeats the order of a run.
func TestSoak(t *testing.T) {
	t.Parallel()
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), "1m"))
	if err != nil {
		t.Fatal(err)
	}
	now := strconv.FormatInt(time.Now().UnixNano(), 10)
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SOAK_SEED"), now), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SOAK=%s SOAK_SEED=%d", duration, seed)
	t.Run("commands that end", func(t *testing.T) {
		t.Parallel()
		soakEnding(t, duration, rand.New(rand.NewPCG(seed, 1)))
	})
	t.Run("commands that have to be stopped, and then servers", func(t *testing.T) {
		t.Parallel()
		soakStubborn(t, duration/2, rand.New(rand.NewPCG(seed, 2)))
		soakRestarts(t, duration/2, rand.New(rand.NewPCG(seed, 3)))
	})
}

func soakEnding(t *testing.T, duration time.Duration, random *rand.Rand) {
	faults := slices.Clone(soakFaults)
	env := []string{"VM_TOKEN=correct", "VM_WARM=true", "VM_TIMEOUT=3m", "VM_HEARTBEAT=20ms"}
	var rare []task
	var marks []string
	_, err := os.Stat("../node_modules/.bin/claude")
	if has(t, err, "make setup") {
		more, tmp := withRealClaude(t)
		env, rare, marks = append(env, more...), slices.Clone(real), []string{"--user-data-dir=" + tmp}
		_, err := os.Stat("/usr/bin/chromium")
		if has(t, err, "make setup as root, or: apt-get install chromium") {
			rare = append(rare, inChromium...)
		}
	}
	workspace := t.TempDir()
	cmd := serverCommand(t, append(env, "VM_WORKSPACE="+workspace)...)
	if has(t, onATinyDisk(t, cmd, workspace), needsMount) {
		faults = append(faults, fault{"full disk", func(k *soak) {
			defer k.fill(workspace)()
			k.send([]task{
				{"hello", "success"}, {"writes-a-file", "success"}, {"daemon MARKER", "success"},
			}, plain, 1)
		}})
	}
	newSoak(startCommand(t, cmd), random, marks...).run(duration, ending, rare, faults)
}

func soakStubborn(t *testing.T, duration time.Duration, random *rand.Rand) {
	s := startServer(t, "VM_TOKEN=correct", "VM_WARM=true", "VM_HEARTBEAT=20ms",
		"VM_TIMEOUT=300ms", "VM_STOP_GRACE=50ms", "VM_EXIT_GRACE=50ms")
	newSoak(s, random).run(duration, stubborn, nil, nil)
}

var soakFaults = []fault{
	{"killed CLI", func(k *soak) {
		outcomes := make(chan reply, 1)
		k.background(context.Background(), "waits "+k.marks[0], outcomes)
		_, cli := k.running(k.marks[0])
		syscall.Kill(cli, syscall.SIGKILL)
		if got := inShort((<-outcomes).answer); got != "failed agent_crashed" {
			k.errorf("the killed CLI's command: %q", got)
		}
		k.accepted++
	}},
	{"stopped by its key", func(k *soak) {
		outcomes := make(chan reply, 2)
		key := withKey(newMarker())
		for range cap(outcomes) {
			k.background(context.Background(), "waits "+k.marks[0], outcomes, key...)
		}
		k.running(k.marks[0])
		k.stopKey(key[1])
		for range cap(outcomes) {
			if got := inShort((<-outcomes).answer); got != "canceled stopped" {
				k.errorf("the stopped command: %q", got)
			}
			k.accepted++
		}
	}},
	{"full queue", func(k *soak) {
		k.send(slices.Repeat([]task{{"sleeps 100ms", "success, 429"}}, 20), plain, 20)
	}},
	{"half a body", func(k *soak) {
		for range 20 {
			if connection, err := k.half(); err == nil {
				defer connection.Close()
			}
		}
		k.send([]task{{"hello", "success"}}, plain, 1)
	}},
	{"2000 idle connections", func(k *soak) {
		for i := range 2000 {
			connection, err := net.Dial("tcp", strings.TrimPrefix(k.url, "http://"))
			if err != nil {
				k.t.Fatalf("connection %d: %v", i, err)
			}
			defer connection.Close()
		}
		if status, _ := k.state(); status != http.StatusOK {
			k.errorf("a new client is answered %d beside them", status)
		}
		k.send([]task{{"hello", "success"}}, plain, 1)
	}},
	{"no descriptors", func(k *soak) {
		defer k.limit("nofile", k.resources().descriptors+1+k.random.IntN(14))()
		k.send(slices.Repeat([]task{{"daemon MARKER", "success, failed agent_crashed"}}, 3), plain, 1)
	}},
}

// half sends half a request.
func (s *testServer) half() (net.Conn, error) {
	connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err == nil {
		_, err = io.WriteString(connection, halfARequest)
	}
	return connection, err
}

// soakRestarts stops servers in the middle of a command, as a deployment does:
// each command is answered, and nothing is left.
func soakRestarts(t *testing.T, duration time.Duration, random *rand.Rand) {
	got, begun, restarts := map[string]int{}, time.Now(), 0
	marker := newMarker()
	for ; time.Since(begun) < duration; restarts++ {
		s := startServer(t, "VM_TOKEN=correct", "VM_WARM=true", "VM_SHUTDOWN_GRACE=200ms")
		outcomes := make(chan reply, 4)
		running := []string{"sleeps 300ms", "waits " + marker, "ignores-signals " + marker}
		s.background(context.Background(), running[random.IntN(3)], outcomes)
		s.queued(0)
		for range 3 {
			s.background(context.Background(), "daemon "+marker, outcomes)
		}
		for begin, moment := time.Now(), upTo(random, 400*time.Millisecond); time.Since(begin) < moment; {
			s.state()
		}
		s.stop()
		for range 4 {
			o := <-outcomes
			short := inShort(o.answer)
			told := []string{"success", "canceled shutting_down", "rejected shutting_down"}
			if o.err != nil || o.status != 200 && o.status != 503 || !slices.Contains(told, short) {
				t.Errorf("%s: %+v", o.name, o)
			}
			got[short]++
		}
		nothingLeft(t, marker)
	}
	t.Logf("%d restarts in %.0fs; answers %v", restarts, time.Since(begun).Seconds(), got)
}

func TestSoakOf300HostileCommandsLeavesNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_HEARTBEAT=20ms",
		"VM_TIMEOUT=500ms", "VM_STOP_GRACE=50ms", "VM_EXIT_GRACE=50ms")
	marker := newMarker()
	mix := []string{"hello", "daemon", "holds-stdout", "no-environment", "dies", "exits",
		"answers-and-stays", "answers-twice", "writes-garbage", "ignores-signals",
		"closes-stdout", "says-nothing", "stopped-child", "fills-stderr", "waits"}
	before := s.resources()
	for i := range 300 {
		s.ask(mix[i%len(mix)] + " " + marker)
	}
	nothingLeft(t, marker)
	s.back(before, 0)
}
