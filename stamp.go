package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// What Claude Code reads at its start is stamped here, so that a waiting one which
// read something else than one that starts now is seen. Only names, sizes and
// times are looked at, never contents.

// startFiles are read in the workspace and in the folders above it; and those of
// .claude in the user's own folder (measured). What CLAUDE.md imports, and the MCP
// servers of ~/.claude.json, are not among them.
var startFiles = []string{
	"CLAUDE.md", "CLAUDE.local.md", "AGENTS.md", ".mcp.json",
	".git/HEAD", ".git/logs/HEAD",
	".claude/CLAUDE.md", ".claude/settings.json", ".claude/settings.local.json",
	".claude/agents", ".claude/commands", ".claude/skills", ".claude/rules",
}

// The agent may make any number of files, anywhere: these bound the walk, for
// safety. A change beyond them is not seen until the spare is old.
const (
	maxFiles = 1000 // for each of startFiles, in each folder
	maxDepth = 3    // of folders in it
)

// startStamp changes when the workspace is replaced, or one of startFiles, the MCP
// configuration or the CLI changes. It is "" where no CLI waits.
func startStamp(cfg *config) string {
	if !cfg.Warm {
		return ""
	}

	var stamp strings.Builder
	if info, err := os.Stat(cfg.Workspace); err == nil {
		fmt.Fprintln(&stamp, info.Sys().(*syscall.Stat_t).Ino)
	}
	for _, path := range startPaths(cfg) {
		w := walk{stamp: &stamp, left: maxFiles}
		w.visit(path, 0)
	}
	return stamp.String()
}

func startPaths(cfg *config) []string {
	paths := []string{cfg.Claude, cfg.MCPConfig}
	for _, name := range startFiles {
		own := strings.TrimPrefix(name, ".claude/")
		paths = append(paths, filepath.Join(cfg.agent.settings, own))
	}

	for dir := cfg.Workspace; ; dir = filepath.Dir(dir) {
		for _, name := range startFiles {
			paths = append(paths, filepath.Join(dir, name))
		}
		if dir == "/" {
			return paths
		}
	}
}

// walk describes files, left of them at most.
type walk struct {
	stamp *strings.Builder
	left  int
}

// visit describes a file, or a folder and what is in it.
func (w *walk) visit(path string, depth int) {
	info, err := os.Stat(path)
	w.left--
	if err != nil || w.left < 0 {
		return
	}

	fmt.Fprintln(w.stamp, path, info.Size(), info.ModTime())
	if !info.IsDir() || depth == maxDepth {
		return
	}
	for _, name := range w.names(path) {
		w.visit(path+"/"+name, depth+1)
	}
}

// names lists a folder, or some of a large one.
func (w *walk) names(path string) []string {
	// The agent may have put something else there meanwhile, such as a pipe.
	folder, err := os.OpenFile(path, syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer folder.Close()

	names, _ := folder.Readdirnames(w.left + 1)
	return names
}
