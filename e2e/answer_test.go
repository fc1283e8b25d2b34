package main

import (
	"os"
	"strings"
	"testing"
)

func TestAPromptIsAnswered(t *testing.T) {
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

func TestAnUnknownSessionIsNotFound(t *testing.T) {
	v := start(t)
	a := v.askIn("failed", "hello", "11111111-2222-4333-8444-555555555555")
	if a.Error.Code != "session_not_found" || !strings.Contains(a.Error.Message, "leave session_id out") {
		t.Errorf("%+v", a)
	}
}

func TestAPromptThatLooksLikeAnOptionIsNone(t *testing.T) {
	v := start(t)
	if a := v.ask("success", "--version"); a.Result != "--version" {
		t.Errorf("%+v", a)
	}
}

func TestAPromptOf1MBArrivesWhole(t *testing.T) {
	v := start(t)
	prompt := strings.Repeat("0123456789abcdef", 1<<16)[:1<<20-100]
	if a := v.ask("success", prompt); a.Result != prompt {
		t.Errorf("%d bytes came back as %d", len(prompt), len(a.Result))
	}
}

func TestChromiumOpensAPageAndLeavesNoFile(t *testing.T) {
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

func TestAMissingKeyIsTold(t *testing.T) {
	v := start(t, "ANTHROPIC_API_KEY=")
	if a := v.ask("failed", "hello"); a.Error.Code != "no_credentials" {
		t.Errorf("%+v", a)
	}
}

func TestADevServerInTheBackgroundDelaysNoAnswer(t *testing.T) {
	v := start(t)
	a := v.ask("success", "background: node -e \"require('http').createServer().listen(0, '127.0.0.1')\"\nsay: it runs")
	if a.Result != "it runs" || a.DurationMS > 20000 {
		t.Errorf("%+v", a)
	}
}
