package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// escapes are the ways in which a process tries to outlive its command.
var escapes = []struct{ name, behaviour, status string }{
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

func TestNoProcessOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	testEscapes(t, startServer(t, "VM_TIMEOUT=2m"), startServer(t, "VM_TIMEOUT=3s"), false)
}

func TestNoProcessOutlivesItsCommandBesideASpare(t *testing.T) {
	t.Parallel()
	testEscapes(t, startWarm(t), startWarm(t, "VM_TIMEOUT=3s"), true)
}

// testEscapes tries each escape, with the impatient server where that must end
// it. The server then has no child but a spare, if it keeps one.
func testEscapes(t *testing.T, patient, impatient *testServer, warm bool) {
	for _, escape := range escapes {
		t.Run(escape.name, func(t *testing.T) {
			s := patient
			if escape.status == "timeout" {
				s = impatient
			}
			marker := newMarker()
			got := s.ask(escape.behaviour + " " + marker)
			if list := marked(t, marker); len(list) > 0 {
				t.Errorf("%d processes outlived the command:\n%s", len(list), strings.Join(list, "\n"))
			}
			if warm {
				s.sparePID()
			} else if list := childPIDs(s.cmd.Process.Pid); len(list) > 0 {
				t.Errorf("the server has the children %v", list)
			}
			if diff := cmp.Diff(escape.status, got.Status); diff != "" {
				t.Errorf("status (-want +got):\n%s\n%+v", diff, got.Error)
			}
		})
	}
}

// The control: without the sweep the same look sees survivors.
func TestWithoutTheSweepProcessesOutliveTheirCommand(t *testing.T) {
	t.Parallel()
	for _, escape := range escapes {
		t.Run(escape.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "TEST_SERVER=sweep off", "VM_TIMEOUT=2s")
			marker := newMarker()
			defer killMarked(t, marker)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			go s.post(ctx, escape.behaviour+" "+marker)
			eventually(t, "the command is over", func() bool { return strings.Contains(s.stderr.String(), "msg=command") || ctx.Err() != nil })
			if escape.behaviour == "fork-chain" { // a look sees it only by chance, until it rests
				if err := os.WriteFile(s.cmd.Dir+"/rest", nil, 0o644); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the chain's last process stays", func() bool {
					first := marked(t, marker)
					time.Sleep(50 * time.Millisecond)
					return len(first) > 0 && slices.Equal(first, marked(t, marker))
				})
			} else if len(marked(t, marker)) == 0 {
				t.Error("no process outlived the command, so the test beside this one proves nothing")
			}
		})
	}
}

// As root with VM_USER, as an ordinary user, and as PID 1 with a /proc of its
// own: nothing outlives a command there either.
func TestWhereverItRuns(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become other users and PID 1")
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	tests := []struct {
		name string
		env  []string
		attr syscall.SysProcAttr
		uid  int
	}{
		{"as root with VM_USER", []string{"VM_USER=nobody"}, syscall.SysProcAttr{}, 65534},
		{"as an ordinary user", nil, syscall.SysProcAttr{Credential: nobody}, 65534},
		{"as an ordinary user who is VM_USER", []string{"VM_USER=nobody"}, syscall.SysProcAttr{Credential: nobody}, 65534},
		{"as PID 1", []string{"TEST_MOUNT_PROC=1"}, syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}, 0},
		{"as PID 1 with VM_USER", []string{"TEST_MOUNT_PROC=1", "VM_USER=nobody"}, syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}, 65534},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t, append(test.env, "VM_CLAUDE="+publicSelf(t), "VM_TIMEOUT=10s")...)
			cmd.Path, cmd.Args[0] = publicSelf(t), "vm-server"
			cmd.SysProcAttr, cmd.Dir = &test.attr, "/"
			s := startCommand(t, cmd)
			var got struct{ UID, GID int }
			if err := json.Unmarshal([]byte(s.ask("describes-itself").Result), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.uid, got.UID); diff != "" {
				t.Errorf("uid of the agent (-want +got):\n%s", diff)
			}
			for _, behaviour := range []string{"daemon", "wide", "fork-chain", "ignores-signals"} {
				marker := newMarker()
				s.ask(behaviour + " " + marker)
				if list := marked(t, marker); len(list) > 0 {
					t.Errorf("%s: %d processes outlived the command:\n%s", behaviour, len(list), strings.Join(list, "\n"))
				}
			}
		})
	}
}

// As PID 1 the server gets orphans that it never started, for example those of
// `docker exec`. Idle, it must reap them, and leave a command's child alone.
func TestOrphansAreReapedWhileIdle(t *testing.T) {
	t.Parallel()
	testOrphans(t, "VM_WARM=false")
}

// As PID 1, where the server gets orphans while it is idle.
func TestIdleReapingLeavesTheSpareAlone(t *testing.T) {
	t.Parallel()
	testOrphans(t, "VM_WARM=true")
}

func testOrphans(t *testing.T, env string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become PID 1")
	}
	cmd := serverCommand(t, "TEST_MOUNT_PROC=1", env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	s := startCommand(t, cmd)
	pid := s.cmd.Process.Pid
	for range 20 {
		// Enter the namespace, and leave an orphan that ends a little later.
		if output, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "--mount", "sh", "-c", "sleep 0.1 & exit").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		if got := s.ask("hello"); got.Status != "success" {
			t.Errorf("a command beside an orphan: %+v", got)
		}
	}
	spares := strings.Count(env, "true")
	eventually(t, "the orphans are reaped", func() bool { return len(childPIDs(pid)) == spares })
}

// A server without CAP_KILL can't signal another user's processes. It must
// say so instead of going on.
func TestAnUnkillableProcessEndsTheService(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to give up a capability")
	}
	cmd := serverCommand(t, "VM_USER=nobody", "VM_CLAUDE="+publicSelf(t), "VM_HEARTBEAT=100ms", "VM_SHUTDOWN_GRACE=1s")
	cmd.Path = lookPath(t, "setpriv")
	cmd.Args = append([]string{"setpriv", "--bounding-set=-kill", "--inh-caps=-kill", "--"}, publicSelf(t))
	cmd.Dir = "/"
	s := startCommand(t, cmd)
	marker := newMarker()
	defer killMarked(t, marker)
	outcomes := make(chan outcome, 2)
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
	if got.Error == nil || got.Error.Code != "agent_crashed" || !strings.Contains(got.Error.Message, "cannot kill") {
		t.Errorf("answer: %+v, %+v", got, got.Error)
	}
	if status, state := s.state(); status != 503 || !strings.Contains(fmt.Sprint(state["reason"]), "cannot kill") {
		t.Errorf("health: %d %v", status, state)
	}
	response, body, err := s.post(context.Background(), "hello")
	if err != nil || response.StatusCode != 503 || !strings.Contains(body, "cannot kill") {
		t.Errorf("next command: %v %s %v", response, body, err)
	}
	if !strings.Contains(s.stderr.String(), "level=ERROR") {
		t.Error("the log doesn't say it loudly")
	}
}
