package main

import (
	"context"
	"fmt"
	"time"
)

// One command from its turn in the queue to its answer: the prompt is handed to an
// agent, its output followed, its end awaited, and everything it left is cleared
// away before the next command's turn.

// spareTakes is when a spare that has not read its prompt counts as hung; others
// need 0.2 s (measured).
const spareTakes = 10 * time.Second

// commands runs one command at a time; several may wait for their turn.
type commands struct {
	cfg    *config
	keeper *keeper
	proxy  *keyProxy
	health *health
}

// job is what a command asks for, and where its events go.
type job struct {
	*request
	tell func(event)
}

// run waits for the command's turn, runs it, and tells its events, of which the
// response is the last. When ctx ends, with the reason, the command must.
func (c *commands) run(ctx context.Context, p *place, j job) *transcript {
	waiting := func(before int) {
		j.tell(event{name: "queued", data: fmt.Appendf(nil, `{"position":%d}`, before)})
	}

	started := time.Now()
	t := &transcript{stopped: p.turn(ctx, waiting)}
	if t.stopped == nil {
		started = time.Now()
		t = c.execute(ctx, j)
	}
	p.leave()

	t.judge()
	t.DurationMS = time.Since(started).Milliseconds()
	j.tell(event{name: "response", data: t.answer.encode()})
	return t
}

// execute runs the command in its turn. When it returns, no process of it is left,
// or the keeper has given up.
func (c *commands) execute(ctx context.Context, j job) *transcript {
	c.keeper.hold()
	defer c.keeper.release()
	c.health.begin()
	defer c.health.end()

	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, errTimeout)
	defer cancel()
	if ctx.Err() != nil {
		return &transcript{stopped: context.Cause(ctx)}
	}

	t, err := c.ask(ctx, j)
	if err != nil {
		return &transcript{stopped: err}
	}

	// The next command most likely does as this one did: goes on in the same
	// conversation, or begins another.
	if t.conversation == j.session {
		c.keeper.expect(j.session)
	} else {
		c.keeper.expect("")
	}
	return t
}

// ask has the spare answer or, where it can't, a new agent.
//
// A prompt is never sent to a model twice. The spare is the only one that is asked
// first and may be followed by another, and only if it can't have sent the prompt
// on, because it never had the whole of it: either the server's write of it did
// not complete, or some of it is still in the pipe. That is looked at when the
// spare and everything it started are dead (attend has swept), so nobody is left
// who could read more; and the server itself, which holds both ends of the pipe,
// reads nothing. An agent could put some of it back, so one that said anything of
// its own counts as having read it. A spare that hung before it read is killed, so
// that this can be looked at, and the command need not wait for its timeout.
func (c *commands) ask(ctx context.Context, j job) (*transcript, error) {
	var first transcript
	spare := c.keeper.take(j.session)
	if spare != nil {
		hung := time.AfterFunc(spareTakes, func() {
			if spare.prompt.isHeld() {
				spare.process.Kill()
			}
		})
		t := c.attend(ctx, spare, j)
		hung.Stop()
		t.warm = true

		mayTryAgain := t.unread && !t.begun && ctx.Err() == nil
		if !mayTryAgain {
			return t, nil
		}
		first = *t
	}

	a, err := c.keeper.start(j.session)
	if err != nil {
		return nil, err
	}
	t := c.attend(ctx, a, j)
	t.Swept += first.Swept
	t.skipped += first.skipped
	return t, nil
}

// attend asks one agent and follows it to its end: that of its own accord, or the
// one that comes when ctx ends or it falls silent. It returns when no process is
// left and all output is read, or when processes could not be cleared away.
func (c *commands) attend(ctx context.Context, a *agent, j job) *transcript {
	defer a.release()
	// Not before: a waiting one needs no key (measured), and a hook of its gets no git.
	l := &lease{placeholder: a.placeholder, stop: a.stop}
	end := c.proxy.lend(l)
	defer end()
	unwatch := context.AfterFunc(ctx, func() { a.stop(context.Cause(ctx)) })
	defer unwatch()

	a.prompt.give(j.request)
	t := &transcript{}
	c.follow(a, t, j.tell)

	t.stopped = context.Cause(a.ctx)
	t.retryAt = l.wanted()
	if a.hasExited() {
		t.exit = a.exit
	}
	if t.unswept == nil {
		t.stderr = string(a.stderr)
		t.unread = a.prompt.unread()
	}
	return t
}

// follow takes the agent's lines in until it is over and swept. Where it can't be
// swept, output may be left.
func (c *commands) follow(a *agent, t *transcript, tell func(event)) {
	for _, line := range a.early {
		c.take(line, a, t, tell)
	}

	lines := a.lines
	swept := c.sweepAfter(a)
	var silent <-chan time.Time // begins anew with each line, once there is a result

	for lines != nil || swept != nil {
		select {
		case line, open := <-lines:
			if !open {
				lines = nil
				continue
			}
			c.take(line, a, t, tell)

			silent = nil
			if t.complete {
				silent = time.After(c.cfg.ExitGrace)
			}
		case <-silent:
			a.stop(errSilent)
		case outcome := <-swept:
			t.Swept = outcome.killed
			t.unswept = outcome.err
			if t.unswept != nil {
				return
			}
			swept = nil
		}
	}
}

// take takes one line in and passes it on.
func (c *commands) take(line []byte, a *agent, t *transcript, tell func(event)) {
	m := parseLine(line)
	if m == nil {
		t.begun = true
		t.skipped++
		return
	}

	if m.refusesKey() {
		a.stop(errKeyRefused)
	}
	if m.Version != "" {
		c.health.runs(m.Version)
	}
	t.note(m, a.ctx.Err() != nil)
	tell(event{name: "agent", data: line, isInit: m.isInit()})
}

type sweepOutcome struct {
	killed int
	err    error
}

// sweepAfter sweeps once the agent is over, or its stop ladder is. Until then what
// it started may still hold its output, which therefore has to be read meanwhile.
func (c *commands) sweepAfter(a *agent) <-chan sweepOutcome {
	outcome := make(chan sweepOutcome, 1)
	go func() {
		a.awaitEnd()
		killed, err := c.keeper.clear()
		outcome <- sweepOutcome{killed, err}
	}()
	return outcome
}
