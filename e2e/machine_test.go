package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the image tells its agent of the machine, and what it takes away.

// read is a file of the project.
func read(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(root(t) + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// inside runs a command in the running container, as root.
func (v *vm) inside(command ...string) (string, error) {
	output, err := exec.Command(engine, append([]string{"exec", v.container}, command...)...).CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

// outliving are the CLI's tools for work after the answer.
var outliving = []string{"CronCreate", "CronDelete", "CronList", "ScheduleWakeup"}

// offered lists those of some tools that the CLI says, in its first line, to have.
func (v *vm) offered(tools ...string) (list []string) {
	v.t.Helper()
	_, body, err := v.post(context.Background(), "hello", "", "Accept", "text/event-stream")
	if err != nil {
		v.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		var init struct {
			Subtype string
			Tools   []string
		}
		json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &init)
		if init.Subtype != "init" {
			continue
		}
		for _, name := range init.Tools {
			if slices.Contains(tools, name) {
				list = append(list, name)
			}
		}
		if !slices.Contains(init.Tools, "Bash") {
			v.t.Errorf("no Bash among %q", init.Tools)
		}
		slices.Sort(list)
		return list
	}
	v.t.Fatalf("no init in:\n%s", body)
	return nil
}

// operators makes a settings file of an operator's, which takes WebSearch away.
func operators(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "settings.json")
	if err := os.WriteFile(path, []byte(`{"permissions": {"deny": ["WebSearch"]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImageNoToolIsOfferedForWorkAfterTheAnswer(t *testing.T) {
	needImage(t)
	tools := append([]string{"WebSearch"}, outliving...)
	empty := t.TempDir()
	os.Chmod(empty, 0o755)
	for _, test := range []struct {
		name string
		flag string
		want []string
	}{
		{"as the image is", "", []string{"WebSearch"}},
		{"beside an operator's own settings, which hold as well", "--volume=" + operators(t) + ":/etc/claude-code/managed-settings.json:ro", nil},
		{"the control: without the image's settings all are offered", "--volume=" + empty + ":/etc/claude-code:ro", append(slices.Clone(outliving), "WebSearch")},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := []string{"VM_STOP_GRACE=3s"}
			if test.flag != "" {
				env = append(env, test.flag)
			}
			if diff := cmp.Diff(test.want, start(t, env...).offered(tools...)); diff != "" {
				t.Errorf("offered (-want +got):\n%s", diff)
			}
		})
	}
}

func TestImageAWakeUpIsRefusedAtOnce(t *testing.T) {
	needImage(t)
	v := start(t)
	begin := time.Now()
	a := v.ask("success", `tool: ScheduleWakeup {"delaySeconds": 60, "reason": "the tests", "prompt": "report"}`)
	if took := time.Since(begin); !strings.Contains(a.Result, "No such tool") || took > 30*time.Second {
		t.Errorf("after %s: %q", took, a.Result)
	}
}

// sent is all text of what the model was sent last.
func (v *vm) sent() string {
	v.t.Helper()
	calls := v.model.Calls()
	if len(calls) == 0 {
		v.t.Fatal("the model was sent nothing")
	}
	var text strings.Builder
	var collect func(any)
	collect = func(value any) {
		switch value := value.(type) {
		case string:
			text.WriteString(value + "\n")
		case []any:
			for _, one := range value {
				collect(one)
			}
		case map[string]any:
			for _, one := range value {
				collect(one)
			}
		}
	}
	var body any
	if err := json.Unmarshal([]byte(calls[len(calls)-1].Body), &body); err != nil {
		v.t.Fatal(err)
	}
	collect(body)
	return text.String()
}

func TestImageTheModelIsToldOfTheMachine(t *testing.T) {
	needImage(t)
	text := strings.TrimSpace(read(t, "image/CLAUDE.md"))
	for _, subject := range []string{"ends with your answer", "Wait for background work", "can't ask back", "headless Chromium", "each screenshot that you take", "inbox/", "outbox/", "git over https"} {
		if !strings.Contains(text, subject) {
			t.Errorf("it says nothing of %q", subject)
		}
	}

	dir := newDir(t)
	if err := os.WriteFile(dir+"/workspace/CLAUDE.md", []byte("What the workspace itself says.\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := startIn(t, dir)
	v.ask("success", "hello")
	for _, want := range []string{text, "What the workspace itself says."} {
		if got := v.sent(); !strings.Contains(got, want) {
			t.Errorf("the model was not sent:\n%s\nbut:\n%.3000s", want, got)
		}
	}

	empty := t.TempDir()
	os.Chmod(empty, 0o755)
	control := start(t, "--volume="+empty+":/etc/claude-code:ro")
	control.ask("success", "hello")
	if strings.Contains(control.sent(), "ends with your answer") {
		t.Error("it is sent without the file too, so the test proves nothing")
	}
}

func TestImageWhatTheAgentIsToldIsTrue(t *testing.T) {
	needImage(t)
	v := start(t)
	page := v.ask("success", `open: data:text/html,<script>document.title=navigator.userAgent</script>`)
	if !strings.Contains(page.Result, "HeadlessChrome") {
		t.Errorf("the browser says %q", page.Result)
	}
	got := v.ask("success", "open: data:text/html,x\nscreenshot\n"+
		`bash: ls -d "/tmp/playwright-$USER"/*.png; ls -A; sudo -n true || echo no root; touch "$HOME/x" /workspace/x && echo lasting`).Result
	v.want(got, `/tmp/playwright-node/.*\.png`, "no root", "lasting")
	v.ask("success", "background: sleep 1005\nsay: it runs") // and nothing is left, as ask looks
	for _, address := range []string{"https://127.0.0.1:1/repo"} {
		v.want(v.bash("success", "git clone -q "+address+" || echo refused"), "refused")
	}
}

// changes prints a line for each try to change what the agent is told.
const changes = `tried() { if (eval "$2") >/dev/null 2>&1; then echo "$1: yes"; else echo "$1: no"; fi; }; ` +
	`tried instructions 'echo >> /etc/claude-code/CLAUDE.md'; tried managed 'echo "{}" > /etc/claude-code/managed-settings.json'; ` +
	`tried drop-in 'echo >> /etc/claude-code/managed-settings.d/50-cockpit-vm.json'; tried later 'echo "{}" > /etc/claude-code/managed-settings.d/99.json'; ` +
	`tried mode 'chmod 777 /etc/claude-code'; tried rename 'mv /etc/claude-code /etc/claude-code-'`

// The file system is writable here, or nobody could change anything; the control
// is root, who can.
func TestImageTheAgentCannotChangeWhatItIsTold(t *testing.T) {
	needImage(t)
	v := start(t, "--read-only=false")
	v.want(v.bash("success", changes), "instructions: no", "managed: no", "drop-in: no", "later: no", "mode: no", "rename: no")
	control, err := v.inside("sh", "-c", changes)
	if err != nil {
		t.Fatal(err, control)
	}
	v.want(control, "instructions: yes", "managed: yes", "drop-in: yes", "later: yes", "mode: yes", "rename: yes")
}
