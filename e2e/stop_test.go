package main

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemons leaves the CLI's reach in every way that Bash has.
const daemons = "bash: setsid nohup sleep 1001 >/dev/null 2>&1 & (setsid sleep 1002 &) ; nohup sleep 1003 & "

func TestDaemonsDoNotOutliveTheirCommand(t *testing.T) {
	v := start(t)
	v.ask("success", daemons+" echo ok")
}

// The control: the CLI without vm-server, ended by its process group as a
// careful wrapper would, leaves processes, and the same look sees them.
func TestWithoutTheServerDaemonsAreLeft(t *testing.T) {
	if image != "" {
		t.Skip("the same control as for the program outside a container")
	}
	v := start(t)
	cmd := v.claude(daemons + " sleep 1004")
	control := "E2E_MARK=control-" + v.mark
	cmd.Env = append(cmd.Env, control)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.eventually("Bash runs", func() bool { return strings.Contains(strings.Join(markedProcesses(control, -1), "\n"), "sleep 1004") })
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	cmd.Wait()
	list := markedProcesses(control, -1)
	if !strings.Contains(strings.Join(list, "\n"), "sleep 1001") {
		t.Errorf("nothing is left, so the tests beside this one prove nothing: %v", list)
	}
	v.killAll(func() []string { return markedProcesses(control, -1) })
}

// busy has Chromium open and daemons beside a Bash that goes on.
const busy = "open: data:text/html,<h1>open</h1>\n" + daemons + " sleep 1004"

// postBusy sends busy, waits until it runs, and returns where the answer comes.
func (v *vm) postBusy(ctx context.Context) <-chan answer {
	v.t.Helper()
	done := make(chan answer, 1)
	go func() {
		a, _, _ := v.post(ctx, busy, "")
		done <- a
	}()
	v.eventually("Chromium and Bash run", func() bool {
		list := strings.Join(v.left(), "\n")
		return strings.Contains(list, "chromium") && strings.Contains(list, "sleep 1001") && strings.Contains(list, "sleep 1004")
	})
	return done
}

func TestATimeoutEndsBrowserAndDaemonsAndNotTheConversation(t *testing.T) {
	t.Parallel()
	needChromium(t)
	// Longer than VM_TIMEOUT, or the CLI would move Bash's command to the background before.
	v := start(t, "VM_TIMEOUT=50s", "BASH_DEFAULT_TIMEOUT_MS=120000")
	done := v.postBusy(context.Background())
	a := <-done
	v.nothingLeft()
	if a.Status != "timeout" || a.Error.Code != "timeout" || a.SessionID == "" {
		t.Errorf("%+v", a)
	}
	if again := v.askIn("success", "go on", a.SessionID); again.SessionID != a.SessionID {
		t.Errorf("the conversation doesn't go on: %+v", again)
	}
}

func TestAClientThatGoesAwayEndsItsCommand(t *testing.T) {
	needChromium(t)
	v := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	v.postBusy(ctx)
	cancel()
	v.eventually("nothing is left", func() bool { return len(v.left()) == 0 })
	v.ask("success", "hello")
}

func TestSIGTERMInMidCommandIsAnsweredAndLeavesNothing(t *testing.T) {
	needChromium(t)
	v := start(t, "VM_SHUTDOWN_GRACE=1s")
	done := v.postBusy(context.Background())
	v.signal("TERM", syscall.SIGTERM)
	select {
	case a := <-done:
		if a.Status != "canceled" || a.Error.Code != "shutting_down" || a.SessionID == "" {
			t.Errorf("%+v", a)
		}
	case <-time.After(time.Minute):
		t.Error("no answer")
	}
	<-v.done
	v.nothingLeft()
}
