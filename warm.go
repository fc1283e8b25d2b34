package main

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// standbyTTL is how old a waiting CLI may become: one that had waited for 29 minutes
	// answered well (measured).
	standbyTTL = 30 * time.Minute

	// settleTime is how long the hooks of a waiting CLI may run.
	settleTime = 10 * time.Second

	maxHookLines = 100
	maxHookLine  = 64 << 10 // bytes
)

// standby has the next agent, which is started before its command comes and waits for it
// (VM_WARM). There is one agent at a time: the one that answers a command or, while none
// runs, the waiting one. While it waits, nothing else of the agent's user is left running:
// what an earlier command planted, in settings or in a repository, runs only when a CLI
// starts, and for settleTime at most.
type standby struct {
	cfg     *config
	log     *slog.Logger
	starter *agentStarter
	reaper  *reaper
	health  *health
	queue   *queue
	fatal   func(error) // ends the server; must not block

	mu       sync.Mutex            // held by whoever may have an agent, by a command throughout
	session  string                // the conversation that the next command most likely continues
	isBanned bool                  // no CLI waits until the next command
	slow     string                // the fingerprint of the last one whose hooks took too long
	slowAt   time.Time             // when that was
	settled  bool                  // the hooks of the waiting CLI have ended
	isBusy   bool                  // at the last check they had not, after settleTime
	waiting  atomic.Pointer[agent] // changed with mu held, read without it
}

// agent returns the waiting agent or, if that does not fit, a new one. mu is held.
func (s *standby) agent(session string) (a *agent, isWarm bool, err error) {
	a = s.waiting.Swap(nil)
	if a != nil && s.isUsable(a, session) {
		return a, true, nil
	}
	if a != nil {
		s.discard(a)
	}
	a, err = s.start(session)
	return a, false, err
}

// start starts an agent, unless the server is stopping. mu is held.
func (s *standby) start(session string) (*agent, error) {
	err := s.queue.whyClosed()
	if err != nil {
		return nil, err
	}
	return s.starter.start(session)
}

// isUsable reports whether a waiting agent would answer as a new one does: it lives and
// printed nothing but hooks' output, continues the conversation, is not too old, and read
// at its start what one that starts now would read. mu is held.
func (s *standby) isUsable(a *agent, session string) bool {
	if !a.drainHookOutput() || a.hasExited() {
		exit := "running"
		if a.hasExited() {
			exit = a.exit
		}
		s.log.Warn("the waiting Claude Code ended, or printed output before it got a prompt",
			"exit", exit)
		return false
	}

	isYoung := time.Since(a.started) < standbyTTL
	return a.session == session && isYoung && a.fingerprint == fingerprint(s.cfg)
}

// drainHookOutput takes in what a waiting agent has printed so far. What its user's hooks
// print belongs to the command that it will answer. It returns false for anything else.
func (a *agent) drainHookOutput() bool {
	for {
		select {
		case line := <-a.lines:
			m := parseLine(line)
			isHook := m != nil && m.isHook()
			if !isHook || len(a.hookOutput) == maxHookLines || len(line) > maxHookLine {
				return false
			}
			a.hookOutput = append(a.hookOutput, line)
		default:
			return true
		}
	}
}

// discard ends a waiting agent. It has half a second to remove its own files, for which it
// needs 0.2 s (measured). mu is held.
func (s *standby) discard(a *agent) {
	a.stop(errNotNeeded)
	select {
	case <-a.exited:
	case <-time.After(500 * time.Millisecond):
		a.process.Kill()
	}
	s.killAll()
	a.close()
}

// killAll leaves no process of an agent. If it can't, the server ends: the container
// engine starts a new container, and the kernel kills what is left in the old one. mu is
// held.
func (s *standby) killAll() (killed int, err error) {
	killed, usedLastResort, err := s.reaper.killAll()
	s.health.recordKilled(killed)
	if usedLastResort {
		s.log.Warn("a command forked faster than its processes could be killed: " +
			"killed every other process in the container")
	}

	if err != nil {
		s.log.Error("the server ends, so that a new container replaces it", "error", err)
		s.fatal(err)
	}

	return killed, err
}

// prepareNext starts the next agent after a command. If another one runs already, it waits
// for that.
func (s *standby) prepareNext() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isBanned = false
	s.renew()
}

// maintain is called twice a second. While no command runs it kills whatever is not the
// waiting CLI or below it, and discards a CLI that has more children than MCP servers after
// settleTime: those of a hook, or of another program in its settings.
func (s *standby) maintain() {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()

	s.reaper.kill(listOrphans)
	s.reaper.reapAll()
	a := s.waiting.Load()
	if a == nil || s.settled || a.hasExited() || time.Since(a.started) < settleTime {
		return
	}
	wasBusy := s.isBusy
	s.isBusy = len(childrenOf(a.process.Pid)) > s.cfg.mcpServers
	s.settled = !s.isBusy
	if wasBusy && s.isBusy { // not just a child that came and went
		s.log.Warn("the waiting Claude Code has processes of a hook, or of its settings: ended it")
		s.waiting.Store(nil)
		s.isBanned = true
		s.slow, s.slowAt = a.fingerprint, time.Now()
		s.discard(a)
	}
}

// replaceOld is called once a minute, so that an agent that fails to start can't spin.
func (s *standby) replaceOld() {
	if s.mu.TryLock() {
		defer s.mu.Unlock()
		s.renew()
	}
}

// renew has an agent wait that fits the next command. mu is held.
func (s *standby) renew() {
	// A slow hook is run, and waited for, by each command.
	isSlow := time.Since(s.slowAt) < standbyTTL && s.slow == fingerprint(s.cfg)
	if !s.cfg.Warm || s.isBanned || isSlow {
		return
	}
	a := s.waiting.Swap(nil)
	if a != nil && !s.isUsable(a, s.session) {
		s.discard(a)
		a = nil
	}

	if a == nil {
		s.settled, s.isBusy = false, false
		a, _ = s.start(s.session) // which logs its errors
	}

	s.waiting.Store(a)
}

// close ends the waiting agent for good. The queue must be closed.
func (s *standby) close() {
	s.mu.Lock()
	defer s.mu.Unlock()

	a := s.waiting.Swap(nil)
	if a != nil {
		s.isUsable(a, a.session) // logs one that has failed
		s.discard(a)
	}
}

// state is off, none, waiting, or how the waiting agent ended.
func (s *standby) state() string {
	a := s.waiting.Load()
	switch {
	case !s.cfg.Warm:
		return "off"
	case a == nil:
		return "none"
	case a.hasExited():
		return a.exit
	default:
		return "waiting"
	}
}

// startupFiles are what the CLI reads at its start in the workspace and the folders above
// it, and those of .claude in its user's own folder (measured). Not among them are the
// files that CLAUDE.md imports and the MCP servers of ~/.claude.json.
var startupFiles = []string{
	"CLAUDE.md", "CLAUDE.local.md", "AGENTS.md", ".mcp.json",
	".git/HEAD", ".git/logs/HEAD",
	".claude/CLAUDE.md", ".claude/settings.json", ".claude/settings.local.json",
	".claude/agents", ".claude/commands", ".claude/skills", ".claude/rules",
}

// The agent may create any number of files, so these bound the look at each of
// startupFiles. A change beyond them is not seen until the waiting CLI is old.
const (
	maxFiles = 1000
	maxDepth = 3
)

// fingerprint changes when the workspace is replaced, or when one of startupFiles, the MCP
// configuration or the CLI changes its size or its time. It is "" where no CLI waits.
func fingerprint(cfg *config) string {
	if !cfg.Warm {
		return ""
	}

	paths := []string{cfg.Claude, cfg.MCPConfig}
	for _, name := range startupFiles {
		own := strings.TrimPrefix(name, ".claude/")
		paths = append(paths, filepath.Join(cfg.agent.configDir, own))
	}

	for dir := cfg.Workspace; ; dir = filepath.Dir(dir) {
		for _, name := range startupFiles {
			paths = append(paths, filepath.Join(dir, name))
		}
		if dir == "/" {
			break
		}
	}

	sum := sha256.New()
	info, err := os.Stat(cfg.Workspace)
	if err == nil {
		fmt.Fprintln(sum, info.Sys().(*syscall.Stat_t).Ino)
	}
	for _, path := range paths {
		budget := maxFiles
		addFile(sum, path, maxDepth, &budget)
	}

	return string(sum.Sum(nil))
}

// addFile adds a file or a folder, with what is in it down to a depth, while the budget
// lasts.
func addFile(sum hash.Hash, path string, depth int, budget *int) {
	info, err := os.Stat(path)
	*budget--
	if err != nil || *budget < 0 {
		return
	}
	fmt.Fprintln(sum, path, info.Size(), info.ModTime())
	if !info.IsDir() || depth == 0 {
		return
	}

	// The agent may have put something else there meanwhile, such as a pipe.
	folder, err := os.OpenFile(path, syscall.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(*budget + 1)
	for _, name := range names {
		addFile(sum, path+"/"+name, depth-1, budget)
	}
}
