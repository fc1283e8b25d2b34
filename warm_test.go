package main

import (
	"crypto/sha256"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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
