package main

import (
	"crypto/sha256"
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

// The agent may make any number of them: those beyond the bound are not looked at.
func TestTheLookAtTheFilesOfAStartIsBounded(t *testing.T) {
	t.Parallel()
	workspace, home := t.TempDir(), t.TempDir()
	cfg := &config{Workspace: workspace, Warm: true, agent: agentUser{configDir: home}}
	add := func(count int) string {
		os.MkdirAll(workspace+"/.claude/agents", 0o755)
		for range count {
			path := workspace + "/.claude/agents/" + newMarker()
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		os.Chtimes(workspace+"/.claude/agents", time.Unix(1, 0), time.Unix(1, 0))
		return fingerprint(cfg)
	}
	few := add(500)
	if few == add(1) {
		t.Error("one more of 500 files is not seen")
	}
	budget := maxFiles
	addFile(sha256.New(), workspace+"/.claude/agents", maxDepth, &budget)
	if diff := cmp.Diff(maxFiles-502, budget); diff != "" {
		t.Errorf("the budget after 501 files and their folder (-want +got):\n%s", diff)
	}
	add(1000)
	budget = maxFiles
	addFile(sha256.New(), workspace+"/.claude/agents", maxDepth, &budget)
	if diff := cmp.Diff(-1, budget); diff != "" { // one more is listed, and not looked at
		t.Errorf("the budget after 1501 files (-want +got):\n%s", diff)
	}
}
