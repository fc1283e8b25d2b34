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

// makeRun starts scripts/run, as make run does, and waits until the server listens. What it
// sets up, make setup has set up for the tests.
func makeRun(t *testing.T, env ...string) *vm {
	t.Helper()
	build := exec.Command("make", "build")
	build.Dir = root(t)
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	dir := newDir(t)
	v := &vm{t: t, log: &buffer{}, done: make(chan struct{})}
	v.cmd = exec.Command("../scripts/run")
	v.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir + "/home", "VM_ADDR=127.0.0.1:0",
		"VM_WORKSPACE=" + dir + "/workspace", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"}, env...)
	v.cmd.Stdout = v.log
	v.launch()
	t.Cleanup(func() {
		v.signal("TERM", syscall.SIGTERM)
		<-v.done
	})
	v.listens()
	return v
}

// typed runs a curl for the server as a person types it, with the server's own port.
func (v *vm) typed(line string, env ...string) (output []byte) {
	v.t.Helper()
	line = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).ReplaceAllLiteralString(line, v.url)
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(os.Environ(), env...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		v.t.Fatalf("%s: %v: %s; the server's log:\n%s", line, err, output, v.log)
	}
	return output
}

// The first answer: `make run` without an account, and the curl beside it with the
// answer that is printed there.
func TestTheFirstAnswerIsThatOfTheReadme(t *testing.T) {
	session := regexp.MustCompile(`(?m)^\$ (curl .*)\n(\{.*\})$`).FindStringSubmatch(read(t, "README.md"))
	if session == nil {
		t.Fatal("README.md has no curl with its answer")
	}
	v := makeRun(t)
	output := v.typed(session[1])
	if diff := cmp.Diff(withoutChance(t, []byte(session[2])), withoutChance(t, output)); diff != "" {
		t.Errorf("the answer (-README.md +got):\n%s", diff)
	}
}

// A person's own key, exported for something else, is no wish to let an agent loose on
// the person's machine: only REAL=1 is.
func TestMakeRunUsesAPersonsKeyOnlyWhereItIsTold(t *testing.T) {
	for _, test := range []struct {
		name  string
		env   []string
		isOwn bool // the person's API is asked
		says  []string
	}{
		{"without an account", nil, false, []string{"SCRIPTED MODEL", "make run REAL=1 is the real model"}},
		{"with a key exported", []string{"ANTHROPIC_API_KEY=mine"}, false,
			[]string{"SCRIPTED MODEL", "your credentials are not used", "REAL=1"}},
		{"with a subscription's token and a cloud", []string{"CLAUDE_CODE_OAUTH_TOKEN=mine", "CLAUDE_CODE_USE_BEDROCK=1"}, false,
			[]string{"SCRIPTED MODEL", "your credentials are not used"}},
		{"with a token of the server's", []string{"VM_TOKEN=correct"}, false, []string{"SCRIPTED MODEL", "Bearer $VM_TOKEN"}},
		{"with REAL=1", []string{"ANTHROPIC_API_KEY=mine", "REAL=1"}, true,
			[]string{"REAL MODEL", "may do on this machine whatever", "at your account's cost", "no VM_TOKEN is set"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			own := &model{}
			v := makeRun(t, append(test.env, "ANTHROPIC_BASE_URL="+newModelServer(t, own))...)
			line := regexp.MustCompile(`(?m)^curl .*$`).FindString(v.log.String())
			var got answer
			if err := json.Unmarshal(v.typed(line, test.env...), &got); err != nil || got.Status != "success" {
				t.Errorf("the curl that it prints, %q, is answered %+v, %v", line, got, err)
			}
			if isOwn := len(own.Calls()) > 0; isOwn != test.isOwn {
				t.Errorf("the person's own API was asked: %v, want %v", isOwn, test.isOwn)
			}
			for _, want := range test.says {
				if !strings.Contains(v.log.String(), want) {
					t.Errorf("it doesn't say %q:\n%s", want, v.log)
				}
			}
			for _, secret := range []string{"mine", "correct"} {
				if strings.Contains(v.log.String(), secret) {
					t.Errorf("it shows %q:\n%s", secret, v.log)
				}
			}
		})
	}
}

func TestMakeCleanRemovesOnlyWhatWasBuilt(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/Makefile", []byte(read(t, "Makefile")), 0o644); err != nil {
		t.Fatal(err)
	}
	folders := []string{"bin", "workspace/project", ".run/home/.claude", "node_modules/.bin", "examples/whatsapp-relay"}
	for _, name := range folders {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("make", "clean")
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for _, name := range folders {
		if isThere := exists(filepath.Join(dir, name)); isThere != (name != "bin") {
			t.Errorf("%s is there: %v", name, isThere)
		}
	}
}

// withoutChance is an answer without what differs each time, which must be there.
func withoutChance(t *testing.T, data []byte) (fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	for _, name := range []string{"session_id", "request_id", "duration_ms"} {
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
	for _, want := range []string{"Instructions of an image of one's own.", strings.TrimSpace(read(t, "image/CLAUDE.md"))} {
		if !strings.Contains(v.sent(), want) {
			t.Errorf("the model isn't told:\n%s", want)
		}
	}
}
