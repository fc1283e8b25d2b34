package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What README.md tells people to type, where no other test does.

// The first answer: `make run` without an account, and the curl beside it with the
// answer that is printed there. What it sets up, make setup has set up for the tests.
func TestTheFirstAnswerIsThatOfTheReadme(t *testing.T) {
	session := regexp.MustCompile(`(?m)^\$ (curl .*)\n(\{.*\})$`).FindStringSubmatch(read(t, "README.md"))
	if session == nil {
		t.Fatal("README.md has no curl with its answer")
	}
	build := exec.Command("make", "build")
	build.Dir = root(t)
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	v := &vm{t: t, log: &buffer{}, done: make(chan struct{})}
	v.cmd = exec.Command("../scripts/run")
	v.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "VM_ADDR=127.0.0.1:0", "VM_WORKSPACE=" + newDir(t) + "/workspace"}
	v.cmd.Stdout = v.log
	v.launch()
	t.Cleanup(func() {
		v.signal("TERM", syscall.SIGTERM)
		<-v.done
	})
	v.listens()

	output, err := exec.Command("sh", "-c", strings.Replace(session[1], "http://127.0.0.1:3001", v.url, 1)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s; the server's log:\n%s", err, output, v.log)
	}
	if !strings.Contains(v.log.String(), "SCRIPTED MODEL") {
		t.Errorf("it doesn't say whose answers these are:\n%s", v.log)
	}
	if diff := cmp.Diff(withoutChance(t, []byte(session[2])), withoutChance(t, output)); diff != "" {
		t.Errorf("the answer (-README.md +got):\n%s", diff)
	}
}

// withoutChance is an answer without what differs each time, which must be there.
func withoutChance(t *testing.T, data []byte) (fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	for _, name := range []string{"session_id", "duration_ms"} {
		if _, isThere := fields[name]; !isThere {
			t.Errorf("%s has no %s", data, name)
		}
		delete(fields, name)
	}
	return fields
}

// On a Mac nothing is downloaded in vain.
func TestSetupSaysWhatWorksOnAnotherSystem(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/uname", []byte("#!/bin/sh\necho Darwin\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../scripts/setup")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	output, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "scripts/linux make test") {
		t.Errorf("%v: it said %q", err, output)
	}
}

// ownMCPServer has one tool, in as few lines as there can be.
const ownMCPServer = `
require("readline").createInterface({ input: process.stdin }).on("line", line => {
	const { id, method, params } = JSON.parse(line)
	const result = {
		"initialize": { protocolVersion: params?.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: "own", version: "1" } },
		"tools/list": { tools: [{ name: "greet", description: "Greets", inputSchema: { type: "object" } }] },
		"tools/call": { content: [{ type: "text", text: "a greeting" }] },
	}[method]
	if (result) console.log(JSON.stringify({ jsonrpc: "2.0", id, result }))
})`

// The image of one's own, as README.md builds it: a further program, a further MCP
// server beside the browser, and instructions.
func TestImageOneOfYourOwn(t *testing.T) {
	needImage(t)
	recipe := regexp.MustCompile("(?s)```dockerfile\n(.*?)```").FindStringSubmatch(read(t, "README.md"))
	if recipe == nil {
		t.Fatal("README.md has no recipe")
	}
	var servers map[string]map[string]any
	if err := json.Unmarshal([]byte(read(t, ".mcp.json")), &servers); err != nil {
		t.Fatal(err)
	}
	servers["mcpServers"]["own"] = map[string]any{"command": "node", "args": []string{"-e", ownMCPServer}}
	config, err := json.Marshal(servers)
	if err != nil {
		t.Fatal(err)
	}

	dir := newDir(t)
	for name, text := range map[string]string{
		"Dockerfile": strings.Replace(recipe[1], "FROM cockpit-vm", "FROM "+image, 1),
		"mcp.json":   string(config),
		"CLAUDE.md":  "Instructions of an image of one's own.",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := "cockpit-vm-of-a-test"
	run(t, "build", "--tag="+name, dir)
	t.Cleanup(func() { run(t, "rmi", name) })

	v := startFrom(t, name, dir)
	if got := v.bash("success", "php -r 'echo 6 * 7;'"); got != "42" {
		t.Errorf("PHP says %q", got)
	}
	a := v.ask("success", "tool: mcp__own__greet {}")
	if diff := cmp.Diff("a greeting", a.Result); diff != "" {
		t.Errorf("the own server's tool (-want +got):\n%s", diff)
	}
	status := map[string]string{}
	for _, server := range a.MCPServers {
		status[server.Name] = server.Status
	}
	if diff := cmp.Diff(map[string]string{"playwright": "connected", "own": "connected"}, status); diff != "" {
		t.Errorf("MCP servers (-want +got):\n%s", diff)
	}
	if !strings.Contains(v.sent(), "Instructions of an image of one's own.") {
		t.Error("the model isn't told what the image's CLAUDE.md says")
	}
}
