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

func TestASpareThatReadSomethingElseIsReplaced(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path string // what is written: $WORKSPACE, $MCP and $OWN stand for places
		stale      bool
	}{
		{"nothing changed", "", false},
		{"a file of the workspace changed", "$WORKSPACE/main.c", false},
		{"the MCP configuration changed", "$MCP", true},
		{"an MCP server of the workspace was added", "$WORKSPACE/.mcp.json", true},
		{"the workspace's settings changed", "$WORKSPACE/.claude/settings.json", true},
		{"the workspace's local settings changed", "$WORKSPACE/.claude/settings.local.json", true},
		{"a command deep in a folder was added", "$WORKSPACE/.claude/commands/a/b/c.md", true},
		{"a CLAUDE.md was added above the workspace", "$WORKSPACE/../CLAUDE.md", true},
		{"a CLAUDE.md of the user's configuration elsewhere changed", "$OWN/CLAUDE.md", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			mcp, own := t.TempDir()+"/mcp.json", t.TempDir()
			if err := os.WriteFile(mcp, []byte(`{"mcpServers": {}}`), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := serverCommand(t, "VM_WARM=true", "VM_MCP_CONFIG="+mcp, "CLAUDE_CONFIG_DIR="+own)
			cmd.Dir += "/odd [name"
			if err := os.Mkdir(cmd.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			s := startWarmCommand(t, cmd)
			spare := s.spare()
			places := strings.NewReplacer("$WORKSPACE", cmd.Dir, "$MCP", mcp, "$OWN", own)
			if path := places.Replace(test.path); path != "" {
				os.MkdirAll(filepath.Dir(path), 0o755)
				if err := os.WriteFile(path, []byte("{ }"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.whoAnswers(""); (got != spare) != test.stale {
				t.Errorf("the spare was %v, %v answered", spare, got)
			}
		})
	}
}

func TestAnOldSpareIsReplaced(t *testing.T) {
	t.Parallel()
	s := startWarm(t, "TEST_SERVER=short lives")
	eventually(t, "it is too old to answer", func() bool {
		spare := s.spare()
		time.Sleep(1100 * time.Millisecond) // its life is a second here
		return s.whoAnswers("") != spare
	})
}

// The agent may make any number of them.
func TestWhatIsKeptOfTheFilesThatASpareReadIsBounded(t *testing.T) {
	t.Parallel()
	workspace, home := t.TempDir(), t.TempDir()
	size := []int{len(stampOf(workspace, home))}
	os.MkdirAll(workspace+"/.claude/agents", 0o755)
	for i := range 1500 {
		path := fmt.Sprintf("%s/.claude/agents/%d.md", workspace, i)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if i == 499 || i == 1499 {
			size = append(size, len(stampOf(workspace, home))-size[0])
		}
	}
	if diff := cmp.Diff([]int{501, 1000}, size[1:]); diff != "" { // the directory is one more
		t.Errorf("what is kept of 500 and of 1500 files (-want +got):\n%s", diff)
	}
}
