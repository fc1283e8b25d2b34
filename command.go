package main

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"time"
	"unicode/utf8"
)

// outputTimeout is how long a CLI may print nothing at all after its prompt, unless a hook
// of its user runs. It prints its init at once (measured).
const outputTimeout = time.Minute

// runner runs operations, one at a time: it gives the prompt to an agent, follows its
// output, waits for its end, and kills everything it left before the next one's turn.
type runner struct {
	cfg        *config
	log        *slog.Logger
	queue      *queue
	operations *operations
	standby    *standby
	proxy      *credentialProxy
	health     *health
	files      *fileStore
}

// run runs an operation to its response. Call it once for each.
func (r *runner) run(o *operation) {
	started := time.Now()
	out := &outcome{stopped: r.queue.wait(o.ctx, o.ticket)}
	if out.stopped == nil {
		started = time.Now()
		out = r.execute(o)
	}

	r.queue.leave(o.ticket)

	out.RequestID = o.id
	out.hasKey = o.req.key != ""
	out.remedy = r.cfg.credentials.remedy()
	out.finish()
	out.DurationMS = time.Since(started).Milliseconds()
	r.operations.finish(o, out.answer.encode())
	r.logCommand(o, out)
	r.standby.prepareNext()
}

// logCommand logs a command that is over, without its prompt and what it printed.
func (r *runner) logCommand(o *operation, out *outcome) {
	r.log.Info("command",
		"request", o.id,
		"remote", o.remote,
		"status", out.Status,
		"code", cmp.Or(out.Error, &apiError{}).Code,
		"reason", out.logReason(),
		"duration_ms", out.DurationMS,
		"exit", out.exit,
		"warm", out.warm,
		"swept", out.Killed,
		"lines_skipped", out.skippedLines,
		"conversation_cost_usd", out.CostUSD)
}

// execute runs the operation in its turn. When it returns, no process of it is left, or
// the server is about to end.
func (r *runner) execute(o *operation) *outcome {
	r.standby.mu.Lock()
	defer r.standby.mu.Unlock()
	r.health.setBusy(time.Now())
	defer r.health.setBusy(time.Time{})

	ctx, cancel := context.WithTimeoutCause(o.ctx, r.cfg.Timeout, errTimeout)
	defer cancel()
	if ctx.Err() != nil {
		return &outcome{stopped: context.Cause(ctx)}
	}
	a, isWarm, err := r.standby.agent(o.req.session)
	if err != nil {
		return &outcome{stopped: err}
	}
	defer a.close()

	// Not before the command: a waiting CLI needs no credentials (measured).
	grant := &grant{placeholder: a.placeholder, stop: a.stop}
	defer r.proxy.allow(grant)()
	stop := context.AfterFunc(ctx, func() { a.stop(context.Cause(ctx)) })
	defer stop()

	before := r.files.list()
	a.send(asText(r.cfg, o.req.prompt), o.req.images)
	out := r.supervise(a, o)
	out.warm = isWarm
	out.Files = r.files.changed(before)
	out.stopped = context.Cause(a.ctx)
	out.retryAt = grant.retryTime()
	out.outage = grant.unreachable()
	if a.hasExited() {
		out.exit = a.exit
	}
	if out.left == nil {
		out.stderr = string(a.stderr)
	}

	// The next command most likely does as this one did: it goes on in the same
	// conversation, or begins a new one.
	r.standby.session = ""
	if out.conversation == o.req.session {
		r.standby.session = o.req.session
	}
	return out
}

// supervise follows an agent to its end: that of its own accord, or the one that comes when
// it must stop. It returns when no process is left and all output is read, or when
// processes could not be killed.
func (r *runner) supervise(a *agent, o *operation) *outcome {
	out := &outcome{}
	hooks := 0 // that run
	for _, line := range a.hookOutput {
		hooks += r.handleLine(line, a, o, out)
	}

	silent := time.NewTimer(outputTimeout)
	defer silent.Stop()
	if hooks > 0 {
		silent.Stop()
	}
	idle := time.NewTimer(r.cfg.ExitGrace)
	idle.Stop()
	defer idle.Stop()
	lines := a.lines
	killed := r.killAfterExit(a)
	for lines != nil || killed != nil {
		select {
		case line, isOpen := <-lines:
			if !isOpen {
				lines = nil
				continue
			}

			hooks += r.handleLine(line, a, o, out)
			silent.Stop()
			if hooks == 0 && out.state == noResult && out.conversation == "" {
				silent.Reset(outputTimeout)
			}
			idle.Stop()
			if out.state == hasResult && !out.tasks.areRunning() {
				idle.Reset(r.cfg.ExitGrace)
			}
		case <-silent.C:
			a.stop(errNoOutput)
		case <-idle.C:
			a.stop(errIdleAfterResult)
		case result := <-killed:
			out.Killed, out.left = result.count, result.err
			if out.left != nil {
				return out
			}
			killed = nil
			a.limitOutput(time.Second) // nobody is left who could print more
		}
	}

	return out
}

// handleLine takes in one line and publishes it. It returns 1 if a hook began with it, and
// -1 if one ended.
func (r *runner) handleLine(line []byte, a *agent, o *operation, out *outcome) (hooks int) {
	if !utf8.Valid(line) { // which neither JSON nor an event stream may contain
		line = bytes.ToValidUTF8(line, []byte("\ufffd"))
	}
	m := parseLine(line)
	if m == nil {
		out.skippedLines++
		return 0
	}

	if m.isAuthFailure() {
		a.stop(errKeyRefused)
	}
	if m.Version != "" {
		r.health.setVersion(m.Version)
	}
	out.apply(m, a.ctx.Err() != nil)
	o.publish(&event{name: "agent", data: line, isInit: m.isInit()})
	switch m.Subtype {
	case "hook_started":
		return 1
	case "hook_response":
		return -1
	}
	return 0
}

// killResult is what killing everything that an agent left came to.
type killResult struct {
	count int
	err   error
}

// killAfterExit kills everything that the agent left once it has ended, or should have.
// Until then what it started may hold its output, which is read meanwhile.
func (r *runner) killAfterExit(a *agent) <-chan killResult {
	done := make(chan killResult, 1)
	go func() {
		a.waitStopped()
		count, err := r.standby.killAll()
		done <- killResult{count, err}
	}()
	return done
}
