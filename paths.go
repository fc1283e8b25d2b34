package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// What every agent is started with: the program, its folder, its MCP configuration
// and its arguments. What can't work is refused now and not by every command.

// findPrograms makes paths absolute, as the agent starts in the workspace.
func (c *config) findPrograms(*slog.Logger) error {
	claude, err := exec.LookPath(c.Claude)
	if err == nil {
		claude, err = filepath.Abs(claude)
	}
	if err != nil {
		return fmt.Errorf("cannot find Claude Code (VM_CLAUDE): %w; "+
			"install it: npm install -g @anthropic-ai/claude-code", err)
	}
	c.Claude = claude

	c.Workspace, err = filepath.Abs(c.Workspace)
	if err == nil {
		err = checkFolder(c.Workspace)
	}
	if err != nil {
		return fmt.Errorf("cannot use VM_WORKSPACE: %w; create it or name another folder", err)
	}

	if c.MCPConfig == "" {
		return nil
	}
	c.MCPConfig, err = filepath.Abs(c.MCPConfig)
	if err == nil {
		err = checkServers(c.MCPConfig)
	}
	mayBeTheAgents := c.agent.credential != nil && errors.Is(err, fs.ErrPermission)
	if err != nil && !mayBeTheAgents {
		return fmt.Errorf("cannot use VM_MCP_CONFIG: %w; "+
			`name a file of JSON such as {"mcpServers": {}}, or unset it`, withoutPath(err))
	}
	return nil
}

func checkFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", path)
	}
	return nil
}

// checkServers refuses a file that the CLI refuses (measured). A server in it that
// can't work is no reason: the answers tell its status. No error quotes path: it may be
// the JSON itself, with its keys.
func checkServers(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is a directory or a device")
	}

	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // as the CLI does (measured)
	if !json.Valid(data) {
		return errors.New("it is not JSON")
	}

	var file struct {
		Servers map[string]any `json:"mcpServers"`
	}
	err = json.Unmarshal(data, &file)
	if err != nil || file.Servers == nil {
		return errors.New("it has no object mcpServers")
	}
	return nil
}

// checkArgs refuses a shell's quotes: there is no shell, so they would be part of
// an argument.
func (c *config) checkArgs(*slog.Logger) error {
	for word := range strings.FieldsSeq(c.ClaudeArgs) {
		isQuoted := strings.Trim(word, `"'`) != word
		isQuoted = isQuoted || strings.Contains(word, `="`) || strings.Contains(word, `='`)
		isQuoted = isQuoted || strings.Count(word, `"`)%2 == 1 // a space stood within the two
		if isQuoted {
			return errors.New("cannot use the quotes in VM_CLAUDE_ARGS: it is split at spaces, " +
				"without a shell; put long texts into a file, as for --append-system-prompt-file")
		}
	}
	return nil
}
