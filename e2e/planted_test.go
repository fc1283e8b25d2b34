package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
)

// What a command plants in settings or in a repository is run by the next Claude Code when
// that starts to wait, with no command running.

// planted are places where a command can leave a program, as the shell makes them.
// PROGRAM stands for the program.
var planted = []struct {
	name, script string
	runs         bool // while the CLI waits (measured)
}{
	{"a SessionStart hook of the workspace",
		`mkdir -p .claude; echo '{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"PROGRAM"}]}]}}' >.claude/settings.json`, true},
	{"a SessionStart hook of the user",
		`mkdir -p ~/.claude; echo '{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"PROGRAM"}]}]}}' >~/.claude/settings.json`, true},
	{"core.fsmonitor of the repository", `git init -q . && touch f && git add f && git -c user.name=a -c user.email=a@b commit -qm a && git config core.fsmonitor PROGRAM`, false},
	{"core.hooksPath of the repository", `git init -q . && mkdir hooks && cp PROGRAM hooks/post-index-change && git config core.hooksPath $PWD/hooks`, false},
	{"an apiKeyHelper", `mkdir -p ~/.claude; echo '{"apiKeyHelper":"PROGRAM"}' >~/.claude/settings.json`, true},
	{"an awsAuthRefresh", `mkdir -p ~/.claude; echo '{"awsAuthRefresh":"PROGRAM"}' >~/.claude/settings.json`, false},
	{"a statusLine", `mkdir -p ~/.claude; echo '{"statusLine":{"type":"command","command":"PROGRAM"}}' >~/.claude/settings.json`, false},
	{"an MCP server of the workspace", `echo '{"mcpServers":{"x":{"command":"PROGRAM"}}}' >.mcp.json`, false},
	{"a SessionEnd hook, which runs as the one before ends",
		`mkdir -p .claude; echo '{"hooks":{"SessionEnd":[{"hooks":[{"type":"command","command":"PROGRAM"}]}]}}' >.claude/settings.json`, false},
}

// plant has a command leave a program, and returns once the next Claude Code waits.
func (v *vm) plant(t *testing.T, script, body string) {
	t.Helper()
	program := v.workspace + "/planted"
	text := "#!/bin/sh\necho x >>" + v.workspace + "/ran\n" + body + "\n"
	if err := os.WriteFile(v.dir+"/workspace/planted", []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	before := v.spare("")
	a, out, err := v.post(t.Context(), "bash: "+strings.ReplaceAll(script, "PROGRAM", program)+"; rm -f ran", "")
	if err != nil || a.Status != "success" {
		t.Fatalf("%v: %s", err, out)
	}
	v.spare(before)
}

func (v *vm) isLeft(text string) bool {
	return strings.Contains(strings.Join(v.left(), "\n"), text)
}

// A daemon that it starts is ended within a second or so, with no command running. The
// control leaves it.
func TestNothingThatWasPlantedOutlivesTheStartOfTheNextClaudeCode(t *testing.T) {
	t.Parallel()
	const daemon = "setsid nohup sleep 1008 >/dev/null 2>&1 &"
	off := ""
	if image == "" { // whose program is not built here
		off = "E2E_PROGRAM=" + mutant(t, "warm.go", "	s.reaper.kill(listOrphans)\n", "")
	}
	for _, place := range planted {
		t.Run(place.name, func(t *testing.T) {
			v := startWarm(t)
			v.plant(t, place.script, daemon)
			if place.runs {
				v.eventually("it has run", func() bool { return exists(v.dir + "/workspace/ran") })
			}
			v.eventually("its daemon is gone, and the waiting one there", func() bool {
				return !v.isLeft("sleep 1008") && v.isLeft("--input-format")
			})
			if isThere := exists(v.dir + "/workspace/ran"); isThere != place.runs {
				t.Errorf("it has run: %v, want %v", isThere, place.runs)
			}
			if !place.runs || image != "" {
				return
			}

			control := startWarm(t, off)
			control.plant(t, place.script, daemon)
			control.eventually("the control's daemon runs", func() bool { return control.isLeft("sleep 1008") })
		})
	}
}

// A hook that does not end keeps its Claude Code from waiting, until the next command.
func TestAHookThatStaysEndsTheWaitingClaudeCode(t *testing.T) {
	t.Parallel()
	v := startWarm(t)
	v.plant(t, "touch stays; "+planted[0].script, "if [ -e "+v.workspace+"/stays ]; then sleep 1009; fi")
	v.eventually("nothing is left", func() bool { return len(v.left()) == 0 })
	if !strings.Contains(v.log.String(), "has processes of a hook") {
		t.Errorf("nobody says it:\n%s", v.log)
	}
	if err := os.Remove(v.dir + "/workspace/stays"); err != nil { // or the next one would wait for its hook
		t.Fatal(err)
	}
	a, body, err := v.post(t.Context(), "bash: rm .claude/settings.json; echo done", "")
	if err != nil || a.Result != "done" {
		t.Errorf("the next command: %v %s", err, body)
	}
	v.spare("") // and then one waits again, since other settings may do better
}

// Without a token the agent can send commands to its own server. None of them waits until
// the agent is gone: what comes while a command runs is refused. The control has a token,
// which the agent would not have.
func TestWithoutATokenTheAgentLeavesNoCommandBehind(t *testing.T) {
	for _, test := range []struct{ name, token, want string }{
		{"without a token", "", "queue_full"},
		{"the control: with one", "sesame", "position"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := start(t, "VM_TOKEN="+test.token)
			v.token = test.token
			body, _ := json.Marshal(map[string]string{"command": "bash: touch left-behind"})
			// One byte after the body, and net/http no longer watches the connection.
			request := "POST /command HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\nAccept: text/event-stream\\r\\n" +
				"Authorization: Bearer " + test.token + "\\r\\nContent-Length: " + strconv.Itoa(len(body)) + "\\r\\n\\r\\n"
			host, port, _ := strings.Cut(strings.TrimPrefix(v.url, "http://"), ":")
			script := `exec 3<>/dev/tcp/` + host + `/` + port + `; printf '` + request + `%sx' '` + string(body) + `' >&3; timeout 3 cat <&3`
			a, out, err := v.post(t.Context(), "bash: bash -c "+quote(script), "")
			if err != nil || !strings.Contains(a.Result, test.want) {
				t.Errorf("%v: the agent's own command is answered %q, want %q: %s", err, a.Result, test.want, out)
			}
			v.bash("success", "echo next")
			if test.token == "" && exists(v.dir+"/workspace/left-behind") {
				t.Error("it ran when the agent was gone")
			}
		})
	}
}

// quote makes a word of a text for the shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
