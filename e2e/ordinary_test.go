package main

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the real CLI does on an ordinary day, and what a person is told of it.

// A command that takes longer than the CLI lets one take in the foreground is moved to the
// background, and its turn ends. It is waited for, as the bare CLI does; the control is one
// that the agent itself puts there.
func TestACommandThatTheCLIMovesToTheBackgroundIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, warm := range []string{"true", "false"} {
		for word, waits := range map[string]bool{"bash": true, "background": false} {
			t.Run(word+", VM_WARM="+warm, func(t *testing.T) {
				t.Parallel()
				v := start(t, "VM_WARM="+warm, "VM_EXIT_GRACE=500ms", "BASH_DEFAULT_TIMEOUT_MS=1000", "BASH_MAX_TIMEOUT_MS=1000")
				const late = `node -e "setTimeout(() => require('fs').writeFileSync('done', ''), 5000)"`
				a, body, err := v.post(context.Background(), word+": "+late+"\nsay: it is under way", "")
				if err != nil || a.Status != "success" {
					t.Fatal(body, err)
				}
				_, err = os.Stat(v.dir + "/workspace/done")
				if diff := cmp.Diff(waits, err == nil); diff != "" {
					t.Errorf("the command has ended (-want +got):\n%s%+v", diff, a)
				}
				if diff := cmp.Diff(!waits, len(a.Warnings) > 0); diff != "" || a.Result != "it is under way" {
					t.Errorf("there is a warning (-want +got):\n%s%+v", diff, a)
				}
			})
		}
	}
}

// Without the space that the server puts before it, the CLI would not ask the model.
func TestAPromptThatBeginsLikeACommandOfTheTerminalIsAnswered(t *testing.T) {
	t.Parallel()
	v := start(t)
	if a := v.ask("success", "/login is broken on my site"); strings.TrimSpace(a.Result) != "/login is broken on my site" {
		t.Errorf("%+v", a)
	}
	if a := v.ask("success", "/context"); !strings.Contains(a.Result, "Context Usage") {
		t.Errorf("a command that works without a terminal: %+v", a)
	}
}

func TestWhatRestrictsTheAgentIsAWarning(t *testing.T) {
	t.Parallel()
	for settings, want := range map[string][]string{
		`{}`: nil, // the control
		`{"permissions":{"ask":["Bash(echo:*)"]}}`: {
			`the project's own settings did not allow a call of the tool "Bash"`},
		`{"permissions":{"disableBypassPermissionsMode":"disable"}}`: {
			`the project's own settings restrict what Claude Code may do: its permission mode is "default"`,
			`the project's own settings did not allow a call of the tool "Bash"`},
	} {
		t.Run(settings, func(t *testing.T) {
			t.Parallel()
			v := start(t)
			v.put(t, ".claude/settings.json", settings)
			a := v.ask("success", "bash: echo hello >file")
			if diff := cmp.Diff(want, a.Warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnMCPServerThatFailsIsAWarning(t *testing.T) {
	t.Parallel()
	v := start(t)
	path := v.dir + "/broken.json"
	if err := os.WriteFile(path, []byte(`{"mcpServers": {"broken": {"command": "/no/such/program"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	broken := startIn(t, v.dir, "VM_MCP_CONFIG="+path)
	want := []string{`the MCP server "broken" failed to start`}
	if diff := cmp.Diff(want, broken.ask("success", "hello").Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// The API rejects the conversation for good, whatever is sent next.
func TestAConversationThatIsRejectedForGoodIsTold(t *testing.T) {
	t.Parallel()
	v := start(t)
	for _, refusal := range []string{
		"400 invalid_request_error - prompt is too long: 250000 tokens > 200000 maximum",
		"400 invalid_request_error - messages: Too much media: 0 document pages + 101 images > 100",
		"413 request_too_large - Request exceeds the maximum size",
	} {
		a := v.ask("failed", "refuse: "+refusal)
		if a.Error.Code != "conversation_unusable" || !strings.Contains(a.Error.Message, "leave session_id out") {
			t.Errorf("%s: %+v", refusal, a)
		}
	}
	if a := v.ask("failed", "refuse: 400 invalid_request_error - something else"); a.Error.Code != "agent_error" { // the control
		t.Errorf("%+v", a)
	}
}

// A screenshot with a file's name is a file, and no picture for anybody: image/CLAUDE.md
// tells the agent to give none.
func TestAScreenshotWithAFilesNameIsNotInTheStream(t *testing.T) {
	t.Parallel()
	needChromium(t)
	v := start(t)
	const tool = "mcp__playwright__browser_take_screenshot"
	url := page(t, "<h1 id=x>hello</h1>"+strings.Repeat("<p>more</p>", 100))
	for arguments, isThere := range map[string]bool{
		`{"type":"png"}`: true,
		`{"type":"png","element":"title","ref":"e2","target":"e2"}`: true,
		`{"type":"png","filename":"x.png"}`:                         false,
		`{"type":"png","filename":"y.png","fullPage":true}`:         false,
	} {
		command := "open: " + url + "\ntool: mcp__playwright__browser_snapshot {}\ntool: " + tool + " " + arguments + "\nsay: taken"
		_, stream, err := v.post(context.Background(), command, "", "Accept", "text/event-stream")
		if err != nil || !strings.Contains(stream, `"result":"taken"`) {
			t.Fatalf("%v: %.3000s", err, stream)
		}
		_, data := pictureFrom(stream, tool)
		if diff := cmp.Diff(isThere, len(data) > 0); diff != "" {
			t.Errorf("%s: a picture is in the stream (-want +got):\n%s", arguments, diff)
		}
	}
}
