package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const (
	maxLine    = 16 << 20         // a longer line of the CLI is skipped, bytes
	maxStderr  = 8 << 10          // how much of the end of its stderr is kept, bytes
	spareTakes = 10 * time.Second // a spare that has not read its prompt by then is hung; others need 0.2 s (measured)
)

// problem is an error for a program (Code) and for a person (Message, with the
// remedy). It never holds a prompt or a secret.
type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (p *problem) Error() string { return p.Message }

func fail(code, format string, args ...any) error {
	return &problem{code, fmt.Sprintf(format, args...)}
}

// Why an agent is stopped.
var (
	errTimeout    = fail("timeout", "the command took longer than VM_TIMEOUT and was stopped; send its session_id to go on")
	errShutdown   = fail("shutting_down", "the server is stopping; send the command again later, with the session_id if there is one")
	errClientGone = fail("client_gone", "the client went away")
	errKeyRefused = fail("authentication_failed", "the model's API refuses the server's credentials; check ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN)")
	errSilent     = fail("agent_crashed", "")
)

// agent is one Claude Code process, which answers one prompt. Concurrently with its user, os/exec copies its
// output, its context stops it, and the key proxy looks up its placeholder.
type agent struct {
	session, settings, placeholder string // the conversation it continues, what it read at its start, its key
	started                        time.Time
	process                        *os.Process
	in, feed                       *os.File    // both ends of its stdin, to see whether it read the prompt
	lines                          chan []byte // of its stdout, nil for one that was too long; closed after its end
	stderr                         tail        // complete once lines is closed
	exit                           string      // how it ended, once exited is closed
	exited                         chan struct{}
	ctx                            context.Context // ends when the agent must, with the reason
	stop                           context.CancelCauseFunc
}

// startAgent executes Claude Code directly, in a session of its own, to wait for a prompt. The caller
// holds s.agents and has no other agent.
func (s *server) startAgent(session string) (*agent, error) {
	a := &agent{session: session, settings: s.settings(), placeholder: "placeholder-" + rand.Text(), started: time.Now(),
		lines: make(chan []byte), exited: make(chan struct{})}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	args := []string{"-p", "--dangerously-skip-permissions", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"}
	if session != "" {
		args = append(args, "--resume", session)
	}
	if s.cfg.MCPConfig != "" {
		args = append(args, "--mcp-config", s.cfg.MCPConfig, "--strict-mcp-config")
	}
	cmd := exec.CommandContext(a.ctx, s.cfg.Claude, append(args, strings.Fields(s.cfg.ClaudeArgs)...)...)
	cmd.Dir, cmd.Env = s.cfg.Workspace, s.cfg.agentEnv()
	if s.cfg.KeyProxy {
		cmd.Env = append(cmd.Env, "ANTHROPIC_API_KEY="+a.placeholder, "ANTHROPIC_BASE_URL="+s.proxyURL)
		for _, name := range []string{"NO_PROXY", "no_proxy"} { // or an HTTPS_PROXY would get prompts that are for the loopback
			cmd.Env = append(cmd.Env, name+"=127.0.0.1,"+os.Getenv(name))
		}
	}
	// A session is a process group too, and has no terminal that it could share with the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.cfg.credential}
	out := &splitter{line: func(line []byte) { a.lines <- line }}
	cmd.Stdout, cmd.Stderr = out, &a.stderr
	cmd.WaitDelay = 2*s.cfg.StopGrace + s.cfg.Timeout // for who holds its output but is not below this server
	cmd.Cancel = func() error {                       // the stop ladder
		go func() {
			for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
				cmd.Process.Signal(sig)
				cmd.Process.Signal(syscall.SIGCONT) // as systemd does: a stopped process would not act on it
				select {
				case <-a.exited:
					return
				case <-time.After(s.cfg.StopGrace):
				}
			}
		}()
		return nil
	}
	var err error
	if a.in, a.feed, err = os.Pipe(); err == nil {
		cmd.Stdin = a.in
		err = s.children.start(cmd, func(status syscall.WaitStatus) {
			a.exit = fmt.Sprintf("exit status %d", status.ExitStatus())
			if status.Signaled() {
				a.exit = "signal: " + status.Signal().String()
			}
			close(a.exited)
			cmd.Wait() // until its output is copied
			out.Write([]byte("\n"))
			close(a.lines)
		})
	}
	if err != nil {
		a.in.Close()
		a.feed.Close()
		s.log.Error("cannot start Claude Code", "error", err)
		return nil, fail("agent_crashed", "cannot start Claude Code: %v; see VM_CLAUDE, VM_WORKSPACE and VM_USER, and the limits of processes and memory", err)
	}
	a.process = cmd.Process
	return a, nil
}

// holdsPrompt says whether the pipe to the agent still holds some of the prompt: FIONREAD, pipe(7).
func (a *agent) holdsPrompt() bool {
	var unread int32
	if pipe, err := a.in.SyscallConn(); err == nil {
		pipe.Control(func(fd uintptr) {
			syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCINQ, uintptr(unsafe.Pointer(&unread)))
		})
	}
	return unread > 0
}

// close gives up what is left of an agent that has been swept.
func (a *agent) close() {
	a.in.Close()
	a.feed.Close()
	go func() {
		for range a.lines { // or what copies them would wait for ever
		}
	}()
}

// execute runs one command, by the spare if that can serve it. When it returns, no process of it is left, or
// the queue is closed.
func (s *server) execute(ctx context.Context, c *command, events chan<- event) (t *transcript) {
	s.agents.Lock()
	defer s.agents.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Timeout, errTimeout)
	defer cancel()
	s.facts.Store("busy_since", time.Now())
	defer s.facts.Delete("busy_since")
	if ctx.Err() != nil {
		return &transcript{stopped: context.Cause(ctx)}
	}
	if a := s.takeSpare(c.session); a != nil {
		hung := time.AfterFunc(spareTakes, func() {
			if a.holdsPrompt() {
				a.process.Kill()
			}
		})
		t = s.attend(ctx, a, c.prompt, events)
		hung.Stop()
		t.warm = true
	}
	// A spare that left some of the prompt unread can't have sent it to a model.
	if t == nil || t.unread && ctx.Err() == nil {
		if err := context.Cause(s.queue.closing); err != nil { // a spare could not be cleared away
			return &transcript{stopped: err}
		}
		a, err := s.startAgent(c.session)
		if err != nil {
			return &transcript{stopped: err}
		}
		t = s.attend(ctx, a, c.prompt, events)
	}
	s.next = c.session
	if t.session != c.session { // there is no such conversation
		s.next = ""
	}
	return t
}

// attend hands over the prompt and follows the agent to its end: that of its own accord, or the one that
// comes when ctx ends or it falls silent. It returns when no process is left and all output is read.
func (s *server) attend(ctx context.Context, a *agent, prompt string, events chan<- event) *transcript {
	defer a.close()
	s.keyed.Store(a) // not before: a waiting one needs no key (measured)
	defer s.keyed.Store(nil)
	defer context.AfterFunc(ctx, func() { a.stop(context.Cause(ctx)) })()
	var quiet <-chan time.Time // begins anew with each line, once there is a result
	written := make(chan error, 1)
	go func() {
		input := json.NewEncoder(a.feed)
		input.SetEscapeHTML(false) // which would make it longer than the CLI takes
		written <- input.Encode(map[string]any{"type": "user", "message": map[string]string{"role": "user", "content": prompt}})
		a.feed.Close() // as no other prompt follows
	}()
	t, swept := &transcript{}, make(chan error)
	go func() {
		select {
		case <-a.exited:
		case <-a.ctx.Done():
			select {
			case <-a.exited:
			case <-time.After(2*s.cfg.StopGrace + time.Second): // all of the stop ladder
			}
		}
		killed, err := s.clear()
		t.swept = killed
		swept <- err
	}()
	for lines := a.lines; lines != nil || swept != nil; {
		select {
		case line, open := <-lines:
			if m := parseLine(line); m != nil {
				t.note(m, a)
				if m.Version != "" {
					s.facts.Store("cli_version", fmt.Sprintf("%.40s", m.Version))
				}
				events <- event{"agent", line}
			} else if open {
				t.skipped++
			} else {
				lines = nil
			}
			if quiet = nil; t.complete {
				quiet = time.After(s.cfg.ExitGrace)
			}
		case <-quiet:
			a.stop(errSilent)
		case err := <-swept:
			if swept = nil; err != nil {
				t.stopped, t.complete = fail("agent_crashed", "%v; restart the container", err), false
				return t
			}
		}
	}
	t.stopped, t.exit, t.stderr = context.Cause(a.ctx), a.exit, a.stderr
	a.feed.Close() // so that nothing is written any more
	t.unread = <-written != nil || a.holdsPrompt()
	return t
}

// clear leaves no process of an agent or, where it can't, closes the queue.
func (s *server) clear() (killed int, err error) {
	killed, err = s.sweep()
	s.facts.Store("last_sweep", map[string]any{"time": time.Now(), "killed": killed})
	if err != nil {
		s.log.Error("no further command is taken: restart the container", "error", err)
		s.queue.close(fail("shutting_down", "no command is taken: %v", err))
	}
	return killed, err
}

// takeSpare returns the spare where it serves as well as a new agent would: it waits for the same conversation,
// is alive, said nothing yet, is not old and read the same settings. Another is killed. The caller holds s.agents.
func (s *server) takeSpare(session string) *agent {
	a := s.spare.Swap(nil)
	if a == nil {
		return nil
	}
	select {
	case <-a.exited:
		s.log.Warn("the waiting Claude Code ended", "exit", a.exit)
	case _, spoke := <-a.lines:
		s.log.Warn("the waiting Claude Code ended or spoke before it was asked", "spoke", spoke)
	default:
		if a.session == session && time.Since(a.started) < s.maxIdle && a.settings == s.settings() {
			return a
		}
	}
	a.stop(errSilent) // so that it takes its own files away, which takes 0.2 s (measured)
	for tries := 0; tries < 50 && !s.children.reap(); tries++ {
		time.Sleep(10 * time.Millisecond)
	}
	s.clear()
	a.close()
	return nil
}

// renewSpare keeps the next agent started: for the conversation that the last command continued or, where it
// continued none, for a new one. It is called after each command and once a minute, so one that keeps failing
// to start can't spin.
func (s *server) renewSpare() {
	if !s.cfg.Warm || !s.agents.TryLock() {
		return // a command runs, after which it is called again
	}
	defer s.agents.Unlock()
	a := s.takeSpare(s.next)
	if a == nil && s.queue.closing.Err() == nil {
		a, _ = s.startAgent(s.next)
	}
	s.spare.Store(a)
}

// warmth is the spare's state: off, none, waiting, or how it ended.
func (s *server) warmth() string {
	a := s.spare.Load()
	if !s.cfg.Warm {
		return "off"
	} else if a == nil {
		return "none"
	}
	select {
	case <-a.exited:
		return a.exit
	default:
		return "waiting"
	}
}

// startFiles are what the CLI reads at its start, in the workspace and the folders above it; and those of .claude
// in its user's own (measured). What CLAUDE.md imports, and the MCP servers of ~/.claude.json, are not among them.
const startFiles = "CLAUDE.md CLAUDE.local.md AGENTS.md .mcp.json .git/HEAD .git/logs/HEAD .claude/CLAUDE.md .claude/settings.json " +
	".claude/settings.local.json .claude/agents .claude/commands .claude/skills .claude/rules"

// settings changes when the workspace is replaced or one of startFiles, the MCP configuration or the CLI changes.
func (s *server) settings() string {
	if !s.cfg.Warm {
		return ""
	}
	paths, own := []string{s.cfg.Claude, s.cfg.MCPConfig}, cmp.Or(os.Getenv("CLAUDE_CONFIG_DIR"), s.cfg.home+"/.claude")
	for _, name := range strings.Fields(startFiles) {
		paths = append(paths, filepath.Join(own, strings.TrimPrefix(name, ".claude/")))
		for dir := s.cfg.Workspace; ; dir = filepath.Dir(dir) {
			if paths = append(paths, filepath.Join(dir, name)); dir == "/" {
				break
			}
		}
	}
	var stamp strings.Builder
	if info, err := os.Stat(s.cfg.Workspace); err == nil {
		fmt.Fprintln(&stamp, info.Sys().(*syscall.Stat_t).Ino)
	}
	for _, path := range paths {
		left := 1000 // as the agent may make any number of files
		look(&stamp, path, 3, &left)
	}
	return stamp.String()
}

// look describes a file, or what is in a folder and, to that depth, in those below it; left of them at most.
func look(stamp *strings.Builder, path string, depth int, left *int) {
	info, err := os.Stat(path)
	if *left--; err != nil || *left < 0 {
		return
	}
	fmt.Fprintln(stamp, path, info.Size(), info.ModTime())
	if !info.IsDir() || depth == 0 {
		return
	}
	folder, _ := os.OpenFile(path, syscall.O_DIRECTORY, 0) // the agent may have put something else there
	names, _ := folder.Readdirnames(*left + 1)
	folder.Close()
	for _, name := range names {
		look(stamp, path+"/"+name, depth-1, left)
	}
}

// message is what matters of one line of the CLI's output.
type message struct {
	Type, Subtype, Error, Result string
	Errors                       []string
	Attempt                      int // of api_retry
	Message                      struct{ Content []struct{ Type, Text string } }
	Parent                       string      `json:"parent_tool_use_id"` // a subagent's messages have one
	SessionID                    string      `json:"session_id"`
	Version                      string      `json:"claude_code_version"`
	MCPServers                   []mcpServer `json:"mcp_servers"`
	IsError                      bool        `json:"is_error"`
	NumTurns                     int         `json:"num_turns"`
	CostUSD                      float64     `json:"total_cost_usd"`
}

type mcpServer struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// parseLine returns nil for what is no message. A field of an unexpected type
// counts as absent.
func parseLine(line []byte) *message {
	m := &message{}
	err := json.Unmarshal(line, m)
	if wrong := (*json.UnmarshalTypeError)(nil); err != nil && !errors.As(err, &wrong) || m.Type == "" {
		return nil
	}
	return m
}

// transcript is what is kept of a command's course: the last of everything.
type transcript struct {
	answer           // as far as it is known
	last     message // result
	complete bool    // it answers the prompt, and no other turn has begun since
	skipped  int     // lines
	stopped  error   // why, if it was
	exit     string  // how the CLI ended, "" if there was none
	stderr   tail
	unread   bool   // some of the prompt, so that the CLI never had it
	warm     bool   // the CLI had been waiting
	swept    int    // processes that had to be killed
	session  string // as the last init named it
}

// note takes in one message. A background task that ends after a result begins another turn with an init of
// its own (measured), so the last result counts. What comes while stopping is about the stop, unless it is a
// good result. A key that is refused for the third time will not be taken later.
func (t *transcript) note(m *message, a *agent) {
	t.SessionID = cmp.Or(m.SessionID, t.SessionID)
	if m.Error == "authentication_failed" && (m.Type == "assistant" || m.Attempt >= 3) {
		a.stop(errKeyRefused)
	}
	stopping := a.ctx.Err() != nil
	switch {
	case stopping && t.complete:
	case m.Type == "result":
		t.last, t.NumTurns, t.CostUSD = *m, m.NumTurns, m.CostUSD
		t.complete = !stopping || !m.IsError
	case m.Subtype == "init":
		t.complete, t.MCPServers, t.session = false, m.MCPServers, m.SessionID
	case m.Type == "assistant" && m.Parent == "":
		t.complete = false
		var texts []string
		for _, content := range m.Message.Content {
			if content.Type == "text" {
				texts = append(texts, content.Text)
			}
		}
		t.Result = cmp.Or(strings.Join(texts, "\n"), t.Result)
	}
}

// judge completes the answer. is_error decides, not subtype; not the exit status
// either, where there is a result.
func (t *transcript) judge() {
	t.MCPServers = append([]mcpServer{}, t.MCPServers...) // JSON: [], not null
	why, last := t.stopped, t.last
	switch {
	case !t.complete && why != nil && why != errSilent:
	case last.Type == "":
		why = fail("agent_crashed", "Claude Code ended without a result: %s; the end of its stderr: %s", t.exit, t.stderr)
	case !last.IsError:
		t.Status, t.Result = "success", last.Result
		return
	case len(last.Errors) > 0 && strings.HasPrefix(last.Errors[0], "No conversation found"):
		why = fail("session_not_found", "%s; leave session_id out to begin a new conversation", last.Errors[0])
	default:
		why = fail("agent_error", "%s", cmp.Or(last.Result, strings.Join(last.Errors, "; "), last.Subtype))
	}
	t.Error = why.(*problem)
	t.Status = cmp.Or(map[string]string{"timeout": "timeout", "shutting_down": "canceled", "client_gone": "canceled"}[t.Error.Code], "failed")
}

// splitter calls line for each line that is written to it and isn't empty, with nil for one longer than maxLine.
// line may keep what it gets.
type splitter struct {
	line  func([]byte)
	begun []byte
	size  int // of the line that has begun
}

func (s *splitter) Write(p []byte) (int, error) {
	for part := range bytes.Lines(p) {
		text := bytes.TrimSuffix(part, []byte("\n"))
		if s.size += len(text); s.size <= maxLine {
			s.begun = append(s.begun, text...)
		} else {
			s.begun = nil
		}
		if len(text) < len(part) {
			if s.size > 0 {
				s.line(s.begun)
			}
			s.begun, s.size = nil, 0
		}
	}
	return len(p), nil
}

// tail keeps the last maxStderr bytes of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	*t = append((*t)[:0], (*t)[max(0, len(*t)-maxStderr):]...)
	return len(p), nil
}
