package main

import (
	"os"
	"strings"
	"testing"
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
