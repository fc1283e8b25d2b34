package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// One Claude Code process, from its start to its end: its arguments, its whole
// environment, the stop ladder. Who may start one, and when, is the
// keeper's to decide (spare.go); how its end is noticed stands in sweep.go.

// agent is a process that answers one prompt.
type agent struct {
	session     string // the conversation it continues, "" for a new one
	placeholder string // what it has instead of the API key
	stamp       string // of what it read at its start
	started     time.Time

	early  [][]byte      // what its hooks said while it waited; the keeper's, then the command's
	lines  chan []byte   // of its stdout, nil for one that was too long; closed after its end
	exited chan struct{} // closed when it has ended
	exit   string        // how it ended; read it once exited is closed
	stderr tail          // read it once lines is closed

	ctx    context.Context // ends when it must stop, with the reason
	stop   context.CancelCauseFunc
	ladder time.Duration // how long the stop ladder takes at most

	process *os.Process
	prompt  *prompt
}

// launcher starts agents.
type launcher struct {
	cfg      *config
	log      *slog.Logger
	children *children
	proxyURL string // of the key proxy, where there is one
}

// start executes Claude Code directly, never through a shell. It waits for a
// prompt. There is one agent at a time: the caller is the keeper.
func (l *launcher) start(session string) (*agent, error) {
	a := &agent{
		session:     session,
		placeholder: "placeholder-" + rand.Text(),
		stamp:       startStamp(l.cfg),
		started:     time.Now(),
		lines:       make(chan []byte),
		exited:      make(chan struct{}),
		ladder:      2*l.cfg.StopGrace + time.Second,
	}
	a.ctx, a.stop = context.WithCancelCause(context.Background())
	out := &splitter{line: func(line []byte) { a.lines <- line }}

	cmd := exec.CommandContext(a.ctx, l.cfg.Claude, l.arguments(session)...)
	cmd.Dir = l.cfg.Workspace
	cmd.Env = l.environment(a.placeholder)
	cmd.Stdout = out
	cmd.Stderr = &a.stderr
	cmd.Cancel = func() error { go a.descend(l.cfg.StopGrace); return nil }

	// From its stop or its end on. A holder of its output that is not below this server
	// is ended by nothing, and the answer must not wait for it for ever.
	cmd.WaitDelay = 2*l.cfg.StopGrace + l.cfg.Timeout
	// A session is a process group too, and has no terminal to share with the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: l.cfg.agent.credential}

	var err error
	a.prompt, err = newPrompt()
	if err == nil {
		cmd.Stdin = a.prompt.in
		err = l.children.start(cmd, func(status syscall.WaitStatus) { a.end(cmd, out, status) })
	}
	if err != nil {
		a.prompt.close()
		l.log.Error("cannot start Claude Code", "error", err)
		return nil, fail("agent_crashed", "cannot start Claude Code: %v; "+
			"see VM_CLAUDE, VM_WORKSPACE and VM_USER, and the limits of processes and memory", err)
	}
	a.process = cmd.Process
	return a, nil
}

// arguments are all that the CLI gets: the prompt comes on stdin.
func (l *launcher) arguments(session string) []string {
	args := []string{
		"-p", "--dangerously-skip-permissions",
		"--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
	}
	if session != "" {
		args = append(args, "--resume", session)
	}
	if l.cfg.MCPConfig != "" {
		args = append(args, "--mcp-config", l.cfg.MCPConfig, "--strict-mcp-config")
	}
	return append(args, strings.Fields(l.cfg.ClaudeArgs)...)
}

// environment is the server's without its configuration, which holds the token,
// and without what the key proxy keeps. Of a variable that is there twice the
// last counts.
func (l *launcher) environment(placeholder string) []string {
	env := []string{} // os/exec takes nil for the whole environment of the server
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		isOurs := strings.HasPrefix(entry, "VM_")
		isSecret := slices.Contains(secrets, name)
		isLogin := name == "ANTHROPIC_BASE_URL" && l.cfg.api.User != nil
		switch {
		case isOurs:
		case isLogin && l.cfg.KeyProxy: // a cloud's CLI doesn't use it (measured)
		case !isSecret || !l.cfg.KeyProxy:
			env = append(env, entry)
		case l.cfg.keyProxied && value != "":
			env = append(env, name+"="+placeholder)
		}
	}

	if l.cfg.User != "" {
		name := l.cfg.agent.name
		env = append(env, "HOME="+l.cfg.agent.home, "USER="+name, "LOGNAME="+name)
	}
	if l.cfg.keyProxied {
		env = append(env, "ANTHROPIC_BASE_URL="+l.proxyURL)
		if l.cfg.hasLoginOnly() {
			env = append(env, "ANTHROPIC_AUTH_TOKEN="+placeholder)
		}
		// Or an HTTPS_PROXY would get the prompts that are for the loopback.
		for _, name := range []string{"NO_PROXY", "no_proxy"} {
			env = append(env, name+"=127.0.0.1,"+os.Getenv(name))
		}
	}
	if l.cfg.GitToken != "" {
		env = append(env, l.cfg.gitEnvironment(l.proxyURL, placeholder)...)
	}
	return append(env, bashLimits(l.cfg.Timeout)...)
}

// bashLimits lets one command of the Bash tool take nearly as long as the whole command.
// By its own default the CLI moves one to the background after two minutes and ends its
// turn (measured), which loses what it was to print. What the operator set stays.
func bashLimits(timeout time.Duration) (env []string) {
	limit := timeout - min(10*time.Second, timeout/10) // time is left to report it
	milliseconds := min(limit.Milliseconds(), math.MaxInt32)
	for _, name := range []string{"BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS"} {
		if os.Getenv(name) == "" {
			env = append(env, fmt.Sprintf("%s=%d", name, max(1, milliseconds)))
		}
	}
	return env
}

// descend is the stop ladder: SIGINT, so that the CLI ends its turn and the
// conversation can go on; a grace later SIGTERM; a grace later SIGKILL. A stopped
// process would act on none of the first two, hence SIGCONT, as systemd does.
func (a *agent) descend(grace time.Duration) {
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

// end is called once the process has ended and its status is collected. Its
// output may go on: what it started can hold the same pipes, until the sweep.
func (a *agent) end(cmd *exec.Cmd, out *splitter, status syscall.WaitStatus) {
	a.exit = fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		a.exit = "signal: " + status.Signal().String()
	}
	close(a.exited)

	cmd.Wait()              // until its output is copied
	out.Write([]byte("\n")) // the last line may lack it
	close(a.lines)
}

// awaitEnd returns when the process has ended or, once it was told to stop, when
// the stop ladder must be through, whichever comes first.
func (a *agent) awaitEnd() {
	select {
	case <-a.exited:
		return
	case <-a.ctx.Done():
	}

	select {
	case <-a.exited:
	case <-time.After(a.ladder):
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

// release gives up what is left of an agent that has been swept.
func (a *agent) release() {
	a.prompt.close()
	go func() {
		for range a.lines { // or what copies them would wait for ever
		}
	}()
}
