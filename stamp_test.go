package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAStaleSpareIsReplaced(t *testing.T) {
	t.Parallel()
	mcp, elsewhere := t.TempDir()+"/mcp.json", t.TempDir()
	write := func(path, text string) func(*testServer) {
		return func(s *testServer) {
			path := strings.Replace(path, "$PWD", s.cmd.Dir, 1)
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(mcp, "{}")(&testServer{cmd: serverCommand(t)})
	tests := []struct {
		name   string
		change func(*testServer)
		stale  bool
	}{
		{"nothing changed", func(*testServer) {}, false},
		{"a file of the workspace changed", write("$PWD/main.c", "int main;"), false},
		{"the MCP configuration changed", write(mcp, "{ }"), true},
		{"an MCP server of the workspace was added", write("$PWD/.mcp.json", "{}"), true},
		{"the user's settings changed", write("$PWD/.claude/settings.json", "{}"), true},
		{"a command deep in a folder was added", write("$PWD/.claude/commands/a/b/c.md", ""), true},
		{"a CLAUDE.md was added above the workspace", func(s *testServer) { write(filepath.Dir(s.cmd.Dir)+"/CLAUDE.md", "")(s) }, true},
		{"a CLAUDE.md of the user's configuration elsewhere changed", write(elsewhere+"/CLAUDE.md", "changed"), true},
		{"the workspace's own settings changed", write("$PWD/.claude/settings.local.json", "{}"), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := serverCommand(t, "VM_WARM=true", "VM_MCP_CONFIG="+mcp, "CLAUDE_CONFIG_DIR="+elsewhere)
			cmd.Dir += "/odd [name"
			if err := os.Mkdir(cmd.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			s := startWarmCommand(t, cmd)
			spare := s.sparePID()
			test.change(s)
			if got := s.whoAnswers(""); (got != spare) != test.stale {
				t.Errorf("the spare was %d, %d answered", spare, got)
			}
		})
	}
	t.Run("it is old", func(t *testing.T) {
		s := startWarm(t, "TEST_SERVER=short lives")
		eventually(t, "it is too old to answer", func() bool {
			spare := s.sparePID()
			time.Sleep(1100 * time.Millisecond) // its life is a second here
			return s.whoAnswers("") != spare
		})
	})
}

// What the server keeps of the files that a spare read is bounded, as the agent
// may make any number of them.
func TestAnyNumberOfAgentFiles(t *testing.T) {
	t.Parallel()
	s := newServer(&config{Workspace: t.TempDir(), Warm: true, home: t.TempDir()}, nil)
	size := []int{len(strings.Split(s.settings(), "\n"))}
	os.MkdirAll(s.cfg.Workspace+"/.claude/agents", 0o755)
	for i := range 1500 {
		if err := os.WriteFile(fmt.Sprintf("%s/.claude/agents/%d.md", s.cfg.Workspace, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if i == 499 || i == 1499 {
			size = append(size, len(strings.Split(s.settings(), "\n"))-size[0])
		}
	}
	if diff := cmp.Diff([]int{501, 1000}, size[1:]); diff != "" { // the directory is one more
		t.Errorf("what is kept of 500 and of 1500 files (-want +got):\n%s", diff)
	}
}
