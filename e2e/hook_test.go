package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// A SessionStart hook speaks before there is a prompt. It runs once for each Claude
// Code, which answers as quickly as without it.
func TestAHookAtTheStartRunsOnceForEachAnswer(t *testing.T) {
	dir := newDir(t)
	settings := `{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"echo x >>hooked"}]}]}}`
	if err := os.MkdirAll(dir+"/workspace/.claude", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/workspace/.claude/settings.json", []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	if image != "" {
		os.Chown(dir+"/workspace/.claude", 1000, 1000)
	}
	runs := func() int {
		data, _ := os.ReadFile(dir + "/workspace/hooked")
		return strings.Count(string(data), "x")
	}

	v := startIn(t, dir, "VM_WARM=true")
	for i := range 3 {
		v.eventually("the spare's hook has run", func() bool { return runs() == i+1 })
		v.say("hello", "")
		if !v.quickly() {
			t.Errorf("command %d was answered without the spare", i)
		}
	}
	v.eventually("the last spare's hook has run", func() bool { return runs() == 4 })
}

// One that takes longer than a waiting Claude Code may is ended once. From then on each
// command runs it and waits for it, and it runs between none.
func TestASlowHookAtTheStartIsWaitedForByItsCommand(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	const hook = "echo x >>begun; sleep 13; echo x >>ended"
	v := startIn(t, dir, "VM_WARM=true")
	v.spare("")
	v.say(`bash: mkdir -p .claude; echo '{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"`+hook+`"}]}]}}' >.claude/settings.json`, "")
	count := func(name string) int {
		data, _ := os.ReadFile(dir + "/workspace/" + name)
		return strings.Count(string(data), "x")
	}
	v.eventually("the waiting one is ended", func() bool { return strings.Contains(v.log.String(), "processes of a hook") })
	if count("begun") != 1 || count("ended") != 0 {
		t.Errorf("the hook began %d times and ended %d times", count("begun"), count("ended"))
	}

	for i := range 2 {
		if a, body, err := v.post(t.Context(), "hello", ""); err != nil || a.Status != "success" {
			t.Fatal(body, err)
		}
		time.Sleep(2 * time.Second) // in which another one would start to wait
		if count("begun") != i+2 || count("ended") != i+1 {
			t.Errorf("after command %d the hook began %d times and ended %d times", i, count("begun"), count("ended"))
		}
	}
}
