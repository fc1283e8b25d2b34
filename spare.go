package main

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// There is one agent at a time: the one that answers a command or, while none
// runs, the spare, which is the next agent, started and waiting. The keeper
// decides who may have it, whether the spare serves as well as a new one, and
// does away with one that doesn't.

// spareAge is how old a spare may be: one that had waited for 29 minutes answered
// well (measured).
const spareAge = 30 * time.Minute

// maxEarly is the longest line of a hook that a spare keeps, bytes.
const maxEarly = 64 << 10

// keeper owns the right to have an agent. Its lock is held for as long as somebody
// has one: through a whole command. It is taken before any other lock.
type keeper struct {
	log      *slog.Logger
	launcher *launcher
	children *children
	health   *health
	warm     bool            // VM_WARM
	maxAge   time.Duration   // an older spare is replaced
	closing  context.Context // ends when no agent may be started any more, with the reason
	giveUp   func(error)     // ends closing, when processes can't be cleared away

	sweep func() (sweepResult, error) // children.sweep; a test's control leaves it out

	mu    sync.Mutex            // held by who may have an agent
	next  string                // the conversation that the next command most likely continues
	spare atomic.Pointer[agent] // changed with mu held; healthz reads it without
}

// hold waits for the right to have an agent, release gives it back. take, start,
// expect and clear are for who holds it.
func (k *keeper) hold()    { k.mu.Lock() }
func (k *keeper) release() { k.mu.Unlock() }

// take returns the spare if it serves in that conversation. Another is done away
// with, and nil returned.
func (k *keeper) take(session string) *agent {
	a := k.spare.Swap(nil)
	if a == nil {
		return nil
	}
	if k.serves(a, session) {
		return a
	}
	k.discard(a)
	return nil
}

// serves says whether a spare would answer as a new agent does: it is alive and
// said nothing yet, continues the conversation, is not old, and read at its start
// what one that starts now would read. One that is not alive or spoke is logged,
// as that is no normal course.
func (k *keeper) serves(a *agent, session string) bool {
	if a.hasExited() {
		k.log.Warn("the waiting Claude Code ended", "exit", a.exit)
		return false
	}

	if !hear(a) {
		k.log.Warn("the waiting Claude Code ended or spoke before it was asked")
		return false
	}

	isYoung := time.Since(a.started) < k.maxAge
	return a.session == session && isYoung && a.stamp == startStamp(k.launcher.cfg)
}

// hear takes in what a spare has said so far, which may be what the user's hooks
// say: it belongs to the output of the command that the spare will answer. It says
// false for another word, which is lost, but so is the agent.
func hear(a *agent) bool {
	const most = 100 // lines

	for {
		select {
		case line := <-a.lines:
			m := parseLine(line)
			isHook := m != nil && m.isHook()
			if !isHook || len(a.early) == most || len(line) > maxEarly {
				return false
			}
			a.early = append(a.early, line)
		default:
			return true
		}
	}
}

// discard ends a spare. It has half a second to take its own files away, for
// which it needs 0.2 s (measured).
func (k *keeper) discard(a *agent) {
	a.stop(errUnneeded)
	for range 50 {
		_, noneLeft := k.children.reap()
		if noneLeft {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	k.clear()
	a.release()
}

// start starts an agent, unless none may be started any more.
func (k *keeper) start(session string) (*agent, error) {
	err := context.Cause(k.closing)
	if err != nil {
		return nil, err
	}
	return k.launcher.start(session)
}

// expect says which conversation the next command most likely continues, "" for a
// new one.
func (k *keeper) expect(session string) { k.next = session }

// clear leaves no process of an agent or, where it can't, gives up: no command is
// taken any more.
func (k *keeper) clear() (killed int, err error) {
	result, err := k.sweep()
	k.health.swept(result.killed)

	if result.lastResort {
		k.log.Warn("a command outran the sweep: everything but the server was killed")
	}
	if err != nil {
		k.log.Error("no further command is taken: restart the container", "error", err)
		k.giveUp(fail("shutting_down", "no command is taken: %v", err))
	}
	return result.killed, err
}

// renew has a spare wait that serves the command that is expected. It is called
// after each command and once a minute, so one that keeps failing to start can't
// spin. While a command runs it does nothing.
func (k *keeper) renew() {
	if !k.warm || !k.mu.TryLock() {
		return
	}
	defer k.mu.Unlock()

	a := k.take(k.next)
	if a == nil {
		a, _ = k.start(k.next) // which logs its errors
	}
	k.spare.Store(a)
}

// retire does away with the spare for good. Call it once closing has ended.
func (k *keeper) retire() {
	k.mu.Lock()
	defer k.mu.Unlock()

	a := k.spare.Swap(nil)
	if a == nil {
		return
	}
	k.serves(a, a.session) // or its log would lack a spare that has failed
	k.discard(a)
}

// state is off, none, waiting, or how the spare ended.
func (k *keeper) state() string {
	a := k.spare.Load()
	switch {
	case !k.warm:
		return "off"
	case a == nil:
		return "none"
	case a.hasExited():
		return a.exit
	default:
		return "waiting"
	}
}
