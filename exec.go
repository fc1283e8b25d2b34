package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// agent is one Claude Code process, from its start to its end. It answers one prompt.
type agent struct {
	session     string // the conversation that it continues, "" for a new one
	placeholder string // what it gets instead of the credentials
	fingerprint string // of the files that it reads at its start
	started     time.Time

	hookOutput [][]byte      // what its hooks printed while it waited
	lines      chan []byte   // of its stdout, nil for one that was too long; closed at its end
	exited     chan struct{} // closed when the process has ended
	exit       string        // how it ended, to be read once exited is closed
	stderr     tailBuffer    // to be read once lines is closed

	ctx         context.Context // ends when it must stop, with the reason
	stop        context.CancelCauseFunc
	stopTimeout time.Duration // after which a stopped agent has ended, if it can be killed

	process *os.Process
	stdin   *os.File
	stdout  *os.File
	stderrR *os.File
}

// agentStarter starts agents.
type agentStarter struct {
	cfg      *config
	log      *slog.Logger
	reaper   *reaper
	proxyURL string // of the credential proxy, if there is one
}

// start executes Claude Code directly, never through a shell. It then waits for a prompt.
// The caller calls close, and may have one agent at a time.
func (s *agentStarter) start(session string) (*agent, error) {
	a := &agent{
		session:     session,
		placeholder: "placeholder-" + rand.Text(),
		fingerprint: fingerprint(s.cfg),
		started:     time.Now(),
		lines:       make(chan []byte),
		exited:      make(chan struct{}),
		stopTimeout: 2*s.cfg.StopGrace + time.Second,
	}

	a.ctx, a.stop = context.WithCancelCause(context.Background())

	cmd := exec.Command(s.cfg.Claude, s.arguments(session)...)
	cmd.Dir = s.cfg.Workspace
	cmd.Env = agentEnvironment(s.cfg, s.proxyURL, a.placeholder)
	// A session is a process group too, and has no terminal to share with the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.cfg.agent.credential}

	err := a.startWithPipes(cmd, s.reaper)
	if err != nil {
		a.close()
		s.log.Error("cannot start Claude Code", "error", err)
		return nil, errorf(codeAgentCrashed, "cannot start Claude Code: %v; "+
			"see VM_CLAUDE, VM_WORKSPACE and VM_USER, and the limits of processes and memory", err)
	}

	go a.waitExit(cmd, s.reaper)
	go a.readOutput()
	context.AfterFunc(a.ctx, func() { a.terminate(s.cfg.StopGrace) })
	return a, nil
}

// arguments are all that the CLI gets: the prompt comes on stdin.
func (s *agentStarter) arguments(session string) []string {
	args := []string{
		"-p", "--dangerously-skip-permissions",
		"--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
	}

	if session != "" {
		args = append(args, "--resume", session)
	}

	if s.cfg.MCPConfig != "" {
		args = append(args, "--mcp-config", s.cfg.MCPConfig, "--strict-mcp-config")
	}

	return append(args, strings.Fields(s.cfg.ClaudeArgs)...)
}

// startWithPipes starts the process with pipes of the agent's own: those of os/exec would
// let its Wait wait for whatever else holds them.
func (a *agent) startWithPipes(cmd *exec.Cmd, r *reaper) (err error) {
	var stdin, stdout, stderr *os.File
	for _, pipe := range []struct{ read, write **os.File }{
		{&stdin, &a.stdin}, {&a.stdout, &stdout}, {&a.stderrR, &stderr},
	} {
		*pipe.read, *pipe.write, err = os.Pipe()
		if err != nil {
			break
		}
	}

	// The child's ends are closed here in any case. Closing a nil file does nothing.
	defer stdin.Close()
	defer stdout.Close()
	defer stderr.Close()
	if err != nil {
		return err
	}

	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	err = r.start(cmd)
	a.process = cmd.Process
	return err
}

func (a *agent) waitExit(cmd *exec.Cmd, r *reaper) {
	r.wait(cmd)
	a.exit = cmd.ProcessState.String() // such as "exit status 1", "signal: killed"
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Stopped() {
		// Then it has made this process its tracer, and can't go on (ptrace(2)).
		a.exit = "it stopped, was traced, and was killed"
	}

	close(a.exited)
}

// readOutput passes lines on until nobody holds the pipes any more, or limitOutput ends it.
func (a *agent) readOutput() {
	defer close(a.lines)
	done := make(chan struct{})
	go func() {
		io.Copy(&a.stderr, a.stderrR)
		close(done)
	}()
	readLines(a.stdout, func(line []byte) { a.lines <- line })
	<-done
}

// limitOutput ends the output after that time, even if the pipes are held by a process
// that is not below this one.
func (a *agent) limitOutput(limit time.Duration) {
	deadline := time.Now().Add(limit)
	a.stdout.SetReadDeadline(deadline)
	a.stderrR.SetReadDeadline(deadline)
}

// send writes the prompt in the background, and ends the input, as there is no other.
func (a *agent) send(prompt string, images []image) {
	type message struct {
		Role    string `json:"role"`
		Content any    `json:"content"`
	}

	input := struct {
		Type    string  `json:"type"`
		Message message `json:"message"`
	}{"user", message{"user", content(prompt, images)}}

	go func() {
		encoder := json.NewEncoder(a.stdin)
		encoder.SetEscapeHTML(false) // which would make it longer than the CLI takes
		encoder.Encode(input)        // if it fails, the CLI is gone or prints an error
		a.stdin.Close()
	}()
}

// block is a text that is sent beside pictures.
type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// content is what the model is sent: a text or, with pictures, blocks.
func content(prompt string, images []image) any {
	if len(images) == 0 {
		return prompt
	}

	var blocks []any
	for _, picture := range images {
		blocks = append(blocks, picture)
	}

	return append(blocks, block{Type: "text", Text: prompt})
}

// terminate sends SIGINT, so that the CLI ends its turn and the conversation can go on; a
// grace later SIGTERM; a grace later SIGKILL. A stopped process would act on none of the
// first two, hence SIGCONT, as systemd does.
func (a *agent) terminate(grace time.Duration) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		a.process.Signal(sig)
		a.process.Signal(syscall.SIGCONT)

		select {
		case <-a.exited:
			return
		case <-time.After(grace):
		}
	}
}

// waitStopped returns when the process has ended or, once it was told to stop, when it must
// have been killed, whichever comes first.
func (a *agent) waitStopped() {
	select {
	case <-a.exited:
		return
	case <-a.ctx.Done():
	}

	select {
	case <-a.exited:
	case <-time.After(a.stopTimeout):
	}
}

func (a *agent) hasExited() bool {
	select {
	case <-a.exited:
		return true
	default:
		return false
	}
}

// close releases the pipes, and what still reads or writes them. Call it once the agent
// and what it left have ended, or can't be ended.
func (a *agent) close() {
	a.stop(nil)
	a.stdin.Close()
	a.stdout.Close()
	a.stderrR.Close()
	if a.process != nil {
		go func() {
			for range a.lines { // or readOutput would wait for ever
			}
		}()
	}
}

const (
	maxLine   = 16 << 20 // a longer line of the CLI is skipped, bytes
	maxStderr = 8 << 10  // how much of the end of its stderr is kept, bytes
)

// readLines calls emit for each line that is not empty, with nil for one that is longer
// than maxLine, until in ends. emit may keep what it gets.
func readLines(in io.Reader, emit func(line []byte)) {
	reader := bufio.NewReaderSize(in, 32<<10)
	var line []byte
	size := 0
	for {
		part, err := reader.ReadSlice('\n')
		isWhole := err == nil
		if isWhole {
			part = part[:len(part)-1]
		}

		size += len(part)
		if size <= maxLine {
			line = append(line, part...)
		} else {
			line = nil
		}

		if err == bufio.ErrBufferFull {
			continue
		}

		if size > 0 {
			emit(line)
		}

		if !isWhole {
			return
		}

		line, size = nil, 0
	}
}

// tailBuffer keeps the last maxStderr bytes that are written to it.
type tailBuffer []byte

func (t *tailBuffer) Write(p []byte) (int, error) {
	all := append(*t, p...)
	excess := max(0, len(all)-maxStderr)

	*t = append(all[:0], all[excess:]...)
	return len(p), nil
}
