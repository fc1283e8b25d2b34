package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAnAnswer(t *testing.T) {
	v := start(t)
	a := v.ask("success", "hello")
	if a.Result != "hello" || a.SessionID == "" || len(a.MCPServers) != 1 || a.MCPServers[0].Status != "connected" {
		t.Errorf("%+v", a)
	}
}

func TestAConversationGoesOn(t *testing.T) {
	v := start(t)
	first := v.ask("success", "the first thing said")
	again := v.askIn("success", "recall", first.SessionID)
	if again.Result != "the first thing said" || again.SessionID != first.SessionID {
		t.Errorf("first %+v\nthen %+v", first, again)
	}
	if other := v.ask("success", "recall"); other.SessionID == first.SessionID || other.Result != "recall" {
		t.Errorf("a new conversation remembers: %+v", other)
	}
}

func TestAnUnknownSession(t *testing.T) {
	v := start(t)
	a := v.askIn("failed", "hello", "11111111-2222-4333-8444-555555555555")
	if a.Error.Code != "session_not_found" || !strings.Contains(a.Error.Message, "leave session_id out") {
		t.Errorf("%+v", a)
	}
}

func TestAPromptThatLooksLikeAnOption(t *testing.T) {
	v := start(t)
	if a := v.ask("success", "--version"); a.Result != "--version" {
		t.Errorf("%+v", a)
	}
}

func TestAPromptOf1MB(t *testing.T) {
	v := start(t)
	prompt := strings.Repeat("0123456789abcdef", 1<<16)[:1<<20-100]
	if a := v.ask("success", prompt); a.Result != prompt {
		t.Errorf("%d bytes came back as %d", len(prompt), len(a.Result))
	}
}

func TestAPageInChromium(t *testing.T) {
	needChromium(t)
	v := start(t)
	a := v.ask("success", "open: data:text/html,<title>A page of the test</title><h1>It works</h1>")
	if !strings.Contains(a.Result, "Page Title: A page of the test") {
		t.Errorf("%+v", a)
	}
	a = v.ask("success", "open: data:text/html,<h1>It works</h1>\nscreenshot")
	if !strings.Contains(a.Result, "Screenshot of viewport") || !strings.Contains(a.Result, ".png") {
		t.Errorf("%+v", a)
	}
	if list, err := os.ReadDir(v.dir + "/workspace"); err != nil || len(list) > 0 {
		t.Errorf("the browser left something in the workspace: %v %v", list, err)
	}
}

func TestABrokenMCPServerIsReported(t *testing.T) {
	dir := newDir(t)
	if err := os.WriteFile(dir+"/workspace/broken.json", []byte(`{"mcpServers":{"broken":{"command":"/no/such/program"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	workspace := dir + "/workspace"
	if image != "" {
		workspace = "/workspace"
	}
	v := startIn(t, dir, "VM_MCP_CONFIG="+workspace+"/broken.json")
	a := v.ask("success", "hello")
	if len(a.MCPServers) != 1 || a.MCPServers[0].Name != "broken" || a.MCPServers[0].Status != "failed" {
		t.Errorf("%+v", a)
	}
}

func TestAWrongKeyIsToldInSeconds(t *testing.T) {
	v := start(t, "ANTHROPIC_API_KEY=wrong-key")
	a := v.ask("failed", "hello")
	if a.Error.Code != "authentication_failed" || a.DurationMS > 15000 {
		t.Errorf("%+v", a)
	}
}

func TestNoKeyAtAll(t *testing.T) {
	v := start(t, "ANTHROPIC_API_KEY=")
	if a := v.ask("failed", "hello"); a.Error.Code != "authentication_failed" {
		t.Errorf("%+v", a)
	}
}

func TestADevServerLeftInTheBackground(t *testing.T) {
	v := start(t)
	a := v.ask("success", "background: node -e \"require('http').createServer().listen(0, '127.0.0.1')\"\nsay: it runs")
	if a.Result != "it runs" || a.DurationMS > 20000 {
		t.Errorf("%+v", a)
	}
}

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
	cmd := exec.Command(root(t)+"/node_modules/.bin/claude", "-p", "--dangerously-skip-permissions")
	cmd.Dir, cmd.Stdin = v.workspace, strings.NewReader(daemons+" sleep 1004")
	control := "E2E_MARK=control-" + v.mark
	cmd.Env = append(agentEnv(v.modelURL), "PATH="+os.Getenv("PATH"), "HOME="+v.dir+"/home", "IS_SANDBOX=1", control)
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
	v.eventually("what the control left is gone", func() bool {
		list := markedProcesses(control, -1)
		for _, line := range list {
			pid, _, _ := strings.Cut(line, " ")
			exec.Command("kill", "-9", pid).Run()
		}
		return len(list) == 0
	})
}

const busy = "open: data:text/html,<h1>open</h1>\n" + daemons + " sleep 1004"

// busyNow waits until Chromium and the Bash tree run.
func (v *vm) busyNow() {
	v.t.Helper()
	v.eventually("Chromium and Bash run", func() bool {
		list := strings.Join(v.left(), "\n")
		return strings.Contains(list, "chromium") && strings.Contains(list, "sleep 1001") && strings.Contains(list, "sleep 1004")
	})
}

func TestATimeoutWithABrowserAndDaemons(t *testing.T) {
	needChromium(t)
	v := start(t, "VM_TIMEOUT=20s")
	done := make(chan answer)
	go func() {
		a, _, _ := v.post(context.Background(), busy, "")
		done <- a
	}()
	v.busyNow()
	a := <-done
	v.nothingLeft()
	if a.Status != "timeout" || a.Error.Code != "timeout" || a.SessionID == "" {
		t.Errorf("%+v", a)
	}
	if again := v.askIn("success", "go on", a.SessionID); again.SessionID != a.SessionID {
		t.Errorf("the conversation doesn't go on: %+v", again)
	}
}

func TestAClientThatGoesAway(t *testing.T) {
	needChromium(t)
	v := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go v.post(ctx, busy, "")
	v.busyNow()
	cancel()
	v.eventually("nothing is left", func() bool { return len(v.left()) == 0 })
	v.ask("success", "hello")
}

func TestSIGTERMInMidCommand(t *testing.T) {
	needChromium(t)
	v := start(t, "VM_SHUTDOWN_GRACE=1s")
	done := make(chan answer)
	go func() {
		a, _, _ := v.post(context.Background(), busy, "")
		done <- a
	}()
	v.busyNow()
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
