package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	maxLine    = 16 << 20         // a longer line of the CLI is skipped, bytes
	maxStderr  = 8 << 10          // how much of the end of its stderr is kept, bytes
	sweepLimit = 10 * time.Second // far more than the kernel needs to end killed processes
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

// agent is one Claude Code process, which answers one prompt.
type agent struct {
	process *os.Process
	stdin   io.WriteCloser
	pipes   []io.Closer
	events  <-chan event // one for each line of stdout; closed at its end
	stderr  <-chan tail  // its last bytes, once it has ended
	exited  <-chan syscall.WaitStatus
}

// startAgent executes Claude Code directly, in a process group of its own, with
// env besides the usual. It waits for a prompt; session is the conversation to
// continue, if any.
func (s *server) startAgent(session string, env []string) (*agent, error) {
	args := []string{"-p", "--dangerously-skip-permissions", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"}
	if session != "" {
		args = append(args, "--resume", session)
	}
	if s.cfg.MCPConfig != "" {
		args = append(args, "--mcp-config", s.cfg.MCPConfig, "--strict-mcp-config")
	}
	cmd := exec.Command(s.cfg.Claude, append(args, strings.Fields(s.cfg.ClaudeArgs)...)...)
	cmd.Dir, cmd.Env = s.cfg.Workspace, append(s.cfg.agentEnv(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.cfg.credential}
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	stderr, err3 := cmd.StderrPipe()
	process, exited, err := (*os.Process)(nil), (<-chan syscall.WaitStatus)(nil), cmp.Or(err1, err2, err3)
	if err == nil {
		process, exited, err = s.children.start(cmd)
	}
	if err != nil {
		return nil, fail("agent_crashed", "cannot start Claude Code: %v; see VM_CLAUDE, VM_WORKSPACE and VM_USER, and the limits of processes and memory", err)
	}
	events, ended := make(chan event), make(chan tail, 1)
	go func() {
		defer close(events)
		readLines(stdout, maxLine, func(line []byte) { events <- parseEvent(line) })
	}()
	go func() {
		var end tail
		io.Copy(&end, stderr)
		ended <- end
	}()
	return &agent{process, stdin, []io.Closer{stdin, stdout, stderr}, events, ended, exited}, nil
}

// prompt hands over the prompt without waiting for the CLI to read it, and
// closes stdin, as no other follows. An error shows in how the CLI ends.
func (a *agent) prompt(text string) {
	line, _ := json.Marshal(map[string]any{"type": "user", "message": map[string]string{"role": "user", "content": text}})
	go func() {
		a.stdin.Write(append(line, '\n'))
		a.stdin.Close()
	}()
}

// execute runs one command. When it returns, no process of it is left, or the
// queue is closed. emit gets every line of the CLI that is JSON.
func (s *server) execute(ctx context.Context, c *command, emit func([]byte)) *transcript {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Timeout, errTimeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var env []string
	if s.proxy != nil {
		env = s.proxy.issue(func() { stop(errKeyRefused) })
		defer s.proxy.current.Store(nil)
	}
	a, err := s.startAgent(c.session, env)
	if err != nil {
		return &transcript{stopped: err}
	}
	a.prompt(c.prompt)
	return s.attend(ctx, stop, a, emit)
}

// attend follows the agent to its end: that of its own accord, or the one that
// end brings about when ctx ends or when the CLI falls silent. It returns when
// no process is left and all output is read. stop ends ctx.
func (s *server) attend(ctx context.Context, stop context.CancelCauseFunc, a *agent, emit func([]byte)) *transcript {
	t, ended := &transcript{}, make(chan struct{})
	go func() {
		s.end(ctx, a, t)
		close(ended)
	}()
	quiet := time.NewTimer(s.cfg.ExitGrace)
	quiet.Stop()
	events, stderr, running := a.events, a.stderr, ended
	for events != nil || stderr != nil || running != nil {
		select {
		case e, open := <-events:
			if !open { // it can say nothing more
				events = nil
				quiet.Reset(s.cfg.ExitGrace)
				continue
			}
			t.note(e, ctx.Err() != nil)
			if t.keyRefused {
				stop(errKeyRefused)
			}
			if e.line != nil {
				emit(e.line)
			}
			if quiet.Stop(); t.complete || running == nil {
				quiet.Reset(s.cfg.ExitGrace)
			}
		case t.stderr = <-stderr:
			stderr = nil
		case <-running:
			running = nil
			quiet.Reset(s.cfg.ExitGrace)
		case <-quiet.C:
			if stop(errSilent); running == nil {
				a.close() // who still holds a pipe is not below this server and can't delay the answer
			}
		}
	}
	t.stopped = context.Cause(ctx)
	a.close()
	return t
}

func (a *agent) close() {
	for _, pipe := range a.pipes {
		pipe.Close()
	}
	a.process.Release()
}

// end waits for the CLI to end, or for ctx and then goes down the stop ladder,
// and clears away what is left: KillMode=control-group without a cgroup.
func (s *server) end(ctx context.Context, a *agent, t *transcript) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case status := <-a.exited:
			t.exit = exitText(status)
		case <-ctx.Done():
			a.process.Signal(sig)
			a.process.Signal(syscall.SIGCONT) // as systemd does: a stopped process would not act on it
			grace, cancel := context.WithTimeout(context.Background(), s.cfg.StopGrace)
			defer cancel()
			ctx = grace
			continue
		}
		break
	}
	if t.swept, t.leftover = s.sweep(sweepLimit); t.leftover != nil {
		s.log.Error("no further command is taken: restart the container", "error", t.leftover)
		s.queue.close(t.leftover.Error())
	}
	select {
	case status := <-a.exited: // by SIGKILL, or by the sweep
		t.exit = exitText(status)
	default:
	}
}

// event is what matters of one line of the CLI's output.
type event struct {
	line []byte // nil: it was too long, or no JSON object

	Type, Subtype, Error, Result string
	Errors                       []string
	Attempt                      int // of api_retry
	Message                      struct{ Content []struct{ Type, Text string } }
	Parent                       string      `json:"parent_tool_use_id"` // a subagent's events have one
	SessionID                    string      `json:"session_id"`
	MCPServers                   []mcpServer `json:"mcp_servers"`
	IsError                      bool        `json:"is_error"`
	NumTurns                     int         `json:"num_turns"`
	CostUSD                      float64     `json:"total_cost_usd"`
}

type mcpServer struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// parseEvent copies nothing of what doesn't matter, which may be megabytes of a
// screenshot. A field of an unexpected type counts as absent.
func parseEvent(line []byte) event {
	if bytes.HasPrefix(line, []byte(`{"type":"user",`)) && json.Valid(line) {
		return event{line: line, Type: "user"} // what tools return: most of the bytes
	}
	e := event{line: line}
	err := json.Unmarshal(line, &e)
	if wrong := (*json.UnmarshalTypeError)(nil); err != nil && !errors.As(err, &wrong) || e.Type == "" {
		return event{}
	}
	return e
}

// transcript is what is kept of a command's course: the last of everything.
type transcript struct {
	answer            // as far as it is known
	last       event  // result
	complete   bool   // it answers the prompt, and no other turn has begun since
	keyRefused bool   // by the API, as often as it takes to be sure
	skipped    int    // lines
	stopped    error  // why, if it was
	exit       string // of the CLI, "" if there was none
	stderr     tail
	swept      int   // processes that had to be killed
	leftover   error // and could not be
}

// note takes in one event. A background task that ends after a result begins
// another turn with an init of its own (measured), so the last result counts.
// What comes while stopping is about the stop, unless it is a good result.
func (t *transcript) note(e event, stopping bool) {
	if e.line == nil {
		t.skipped++
	}
	e.line = nil
	t.SessionID = cmp.Or(e.SessionID, t.SessionID)
	t.keyRefused = t.keyRefused || e.Error == "authentication_failed" && (e.Type == "assistant" || e.Attempt >= 3)
	switch {
	case stopping && t.complete:
	case e.Type == "result":
		t.last, t.NumTurns, t.CostUSD = e, e.NumTurns, e.CostUSD
		t.complete = !stopping || !e.IsError
	case e.Subtype == "init":
		t.complete, t.MCPServers = false, e.MCPServers
	case e.Type == "assistant" && e.Parent == "":
		t.complete = false
		var texts []string
		for _, content := range e.Message.Content {
			if content.Type == "text" {
				texts = append(texts, content.Text)
			}
		}
		if len(texts) > 0 {
			t.Result = strings.Join(texts, "\n")
		}
	}
}

// Why a command was stopped.
var (
	errTimeout      = fail("timeout", "the command took longer than VM_TIMEOUT and was stopped; send its session_id to go on")
	errShuttingDown = fail("shutting_down", "the server is stopping; send the command again later, with the session_id if there is one")
	errClientGone   = fail("client_gone", "the client went away")
	errKeyRefused   = fail("authentication_failed", "the model's API refuses the server's credentials; check ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN)")
	errSilent       = fail("agent_crashed", "")
)

// judge completes the answer. is_error decides, not subtype; not the exit status
// either, where there is a result.
func (t *transcript) judge() {
	t.MCPServers = append([]mcpServer{}, t.MCPServers...) // JSON: [], not null
	var why *problem
	switch result := t.last.Result; {
	case t.leftover != nil:
		t.stopped = fail("agent_crashed", "%v; restart the container", t.leftover)
	case !t.complete && t.stopped != nil && t.stopped != errSilent:
	case t.keyRefused && t.last.IsError:
		t.stopped = errKeyRefused
	case t.last.Type == "":
		t.stopped = fail("agent_crashed", "Claude Code ended without a result: %s; the end of its stderr: %s", t.exit, t.stderr)
	case !t.last.IsError:
		t.Status, t.Result = "success", result
		return
	case len(t.last.Errors) > 0 && strings.HasPrefix(t.last.Errors[0], "No conversation found"):
		t.stopped = fail("session_not_found", "%s; leave session_id out to begin a new conversation", t.last.Errors[0])
	default:
		t.stopped = fail("agent_error", "%s", cmp.Or(result, strings.Join(t.last.Errors, "; "), t.last.Subtype))
	}
	errors.As(t.stopped, &why)
	t.Error, t.Status = why, cmp.Or(map[string]string{"timeout": "timeout", "shutting_down": "canceled", "client_gone": "canceled"}[why.Code], "failed")
}

// exitText says how a process ended, in os.ProcessState's words.
func exitText(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// readLines calls line for each line of r that isn't empty, with nil for one
// longer than limit, until r ends or fails. line may keep what it gets.
func readLines(r io.Reader, limit int, line func([]byte)) {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		var whole []byte
		for size, more := 0, true; more; {
			part, partly, err := in.ReadLine()
			if err != nil {
				return
			}
			if size, more = size+len(part), partly; size > limit {
				whole = nil
			} else {
				whole = append(whole, part...)
			}
			if !more && (size > limit || len(whole) > 0) {
				line(whole)
			}
		}
	}
}

// tail keeps the last maxStderr bytes of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	*t = append((*t)[:0], (*t)[max(0, len(*t)-maxStderr):]...)
	return len(p), nil
}
