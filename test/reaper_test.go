package test

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An escape is a way in which a process tries to outlive its command.
type escape struct{ name, behaviour, status string }

var escapes = []escape{
	{"a child that holds stdout after the CLI's exit", "holds-stdout", "success"},
	{"a daemon that forked twice into a session of its own", "daemon", "success"},
	{"a process with an empty environment", "no-environment", "success"},
	{"a tree 100 deep with changing sessions", "deep", "success"},
	{"100 sessions side by side", "wide", "success"},
	{"a fork chain that is always gone when looked at", "fork-chain", "success"},
	{"a stopped process", "stopped-child", "success"},
	{"a tree that ignores SIGINT and SIGTERM until the time is up", "ignores-signals", "timeout"},
	{"a CLI that stopped itself", "stops-itself", "timeout"},
	{"a CLI that closed its output and lives on", "closes-stdout", "timeout"},
	{"a CLI that stays after its result", "answers-and-stays", "success"},
}

// eachEscape tries every escape with a marker of its own.
func eachEscape(t *testing.T, try func(t *testing.T, way escape, marker string)) {
	for _, way := range escapes {
		t.Run(way.name, func(t *testing.T) { try(t, way, newMarker()) })
	}
}

func TestNoProcessOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	patient, impatient := startServer(t, "VM_TIMEOUT=2m"), startServer(t, "VM_TIMEOUT=3s")
	eachEscape(t, func(t *testing.T, way escape, marker string) {
		s := way.fails(t, marker, patient, impatient)
		if list := childPIDs(s.cmd.Process.Pid); len(list) > 0 {
			t.Errorf("the server has the children %v", list)
		}
	})
}

func TestNoProcessOutlivesItsCommandBesideASpare(t *testing.T) {
	t.Parallel()
	patient, impatient := startWarm(t, "VM_TIMEOUT=2m"), startWarm(t, "VM_TIMEOUT=3s")
	eachEscape(t, func(t *testing.T, way escape, marker string) {
		way.fails(t, marker, patient, impatient).spare() // the only child
	})
}

// fails wants the escape to fail, with the impatient server where that must end it.
func (way escape) fails(t *testing.T, marker string, patient, impatient *testServer) *testServer {
	t.Helper()
	s := patient
	if way.status == "timeout" {
		s = impatient
	}
	got := s.ask(way.behaviour + " " + marker)
	nothingLeft(t, marker)
	if diff := cmp.Diff(way.status, got.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s\n%+v", diff, got.Error)
	}
	return s
}

// The control: without the sweep the same look sees survivors.
func TestWithoutTheSweepProcessesOutliveTheirCommand(t *testing.T) {
	t.Parallel()
	eachEscape(t, func(t *testing.T, way escape, marker string) {
		t.Parallel()
		defer killMarked(t, marker)
		if way.behaviour == "fork-chain" {
			way.survives(t, marker, "VM_TIMEOUT=20s")
		} else {
			overtime(func(timeout string) bool { return way.survives(t, marker, timeout) })
		}
		if len(marked(t, marker)) == 0 {
			t.Error("no process outlived the command, so the test beside this one proves nothing")
		}
	})
}

// survives tells whether the escape succeeds where the sweep is off.
func (way escape) survives(t *testing.T, marker, timeout string) bool {
	t.Helper()
	s := startServer(t, "TEST_VARIANT=kill off", timeout)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go s.post(ctx, way.behaviour+" "+marker)
	s.logged("msg=command")
	if way.behaviour == "fork-chain" { // a look sees it only by chance, until it rests
		if err := os.WriteFile(s.cmd.Dir+"/rest", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the chain's last process stays", func() bool {
			first := marked(t, marker)
			time.Sleep(50 * time.Millisecond)
			return len(first) > 0 && slices.Equal(first, marked(t, marker))
		})
	}
	return len(marked(t, marker)) > 0
}

// As root with VM_USER, as an ordinary user, and as PID 1 with a /proc of its
// own: nothing outlives a command there either.
func TestNoProcessOutlivesItsCommandWhereverItRuns(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                 string
		ordinary, pid1, user bool
		uid                  int // of the agent
	}{
		{name: "as root with VM_USER", user: true, uid: nobody},
		{name: "as an ordinary user", ordinary: true, uid: nobody},
		{name: "as an ordinary user who is VM_USER", ordinary: true, user: true, uid: nobody},
		{name: "as PID 1", pid1: true, uid: 0},
		{name: "as PID 1 with VM_USER", pid1: true, user: true, uid: nobody},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			needsRoot(t, "to become other users and PID 1")
			path := publicSelf(t)
			cmd := serverCommand(t, "VM_TIMEOUT=20s", "VM_CLAUDE="+path)
			cmd.Dir = "/"
			if test.user {
				cmd.Env = append(cmd.Env, "VM_USER=nobody")
			}
			if test.ordinary {
				asUser(t, cmd, path, nobody)
			}
			if test.pid1 {
				asPID1(t, cmd)
			}
			s := startCommand(t, cmd)
			if diff := cmp.Diff(test.uid, s.describe("").UID); diff != "" {
				t.Errorf("uid of the agent (-want +got):\n%s", diff)
			}
			for _, behaviour := range []string{"daemon", "wide", "fork-chain", "ignores-signals"} {
				marker := newMarker()
				s.ask(behaviour + " " + marker)
				nothingLeft(t, marker)
			}
		})
	}
}

// As PID 1 the server gets orphans that it never started, for example those of
// `docker exec`. Idle, it must reap them, and leave alone a command's child and
// the spare.
func TestOrphansAreReapedWhileIdle(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, warm string
		children   int
	}{
		{"without a spare", "VM_WARM=false", 0},
		{"beside a spare", "VM_WARM=true", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t, test.warm)
			asPID1(t, cmd)
			s := startCommand(t, cmd)
			pid := s.cmd.Process.Pid
			for range 20 {
				// Enter the namespace, and leave an orphan that ends a little later.
				enter := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "--mount",
					"sh", "-c", "sleep 0.1 & exit")
				if output, err := enter.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, output)
				}
				if got := s.ask("hello"); got.Status != "success" {
					t.Errorf("a command beside an orphan: %+v", got)
				}
			}
			eventually(t, "the orphans are reaped", func() bool {
				return len(childPIDs(pid)) == test.children
			})
		})
	}
}

// A server without CAP_KILL can't signal another user's processes. It must
// say so instead of going on.
func TestAnUnkillableProcessEndsTheService(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to give up a capability")
	path := publicSelf(t)
	cmd := serverCommand(t, "VM_TOKEN=correct",
		"VM_USER=nobody", "VM_CLAUDE="+path, "VM_HEARTBEAT=100ms", "VM_SHUTDOWN_GRACE=1s")
	cmd.Dir = "/"
	below(t, cmd, "setpriv", "--bounding-set=-kill", "--inh-caps=-kill", "--")
	s := startCommand(t, cmd)
	marker := newMarker()
	defer killMarked(t, marker)
	outcomes := make(chan reply, 2)
	s.background(context.Background(), "daemon "+marker, outcomes)
	s.queued(0)
	s.background(context.Background(), "describes-itself", outcomes)
	answers := map[string]answer{}
	for range 2 {
		o := <-outcomes
		answers[o.name] = o.answer
	}
	if next := answers["describes-itself"]; next.Status != "canceled" {
		t.Errorf("a command ran beside what an earlier one left: %+v", next)
	}
	got := answers["daemon "+marker]
	if got.Result != "daemon" {
		t.Errorf("the result of a command that was over is lost: %+v", got)
	}
	s.logged(`exit="exit status 0"`)
	if inShort(got) != "failed agent_crashed" || !strings.Contains(got.Error.Message, "cannot kill") {
		t.Errorf("answer: %+v, %+v", got, got.Error)
	}
	if err := <-s.done; err == nil || err.Error() != "exit status 1" {
		t.Errorf("the server ended with %v, so that no engine replaces its container", err)
	}
	s.done <- nil
	if !strings.Contains(s.stderr.String(), "level=ERROR") || !strings.Contains(s.stderr.String(), "cannot kill 1 processes") {
		t.Errorf("the log doesn't say which:\n%s", s.stderr)
	}
}
