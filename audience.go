package main

import (
	"context"
	"sync"
)

// Who waits for a command that belongs to a key. Clients come and go; none of them
// delays the command, and each that stays gets the response.

// Events that are too many are lost. The response is not counted, and never lost.
const (
	maxBehind = 4 << 20  // a stream for which so many bytes wait loses the next event
	maxOut    = 32 << 20 // and so it does when the audience's clients have so many in all
	perEvent  = 64       // what an event costs beside its data
)

// audience is one command's clients. It is safe for concurrent use.
type audience struct {
	over     chan struct{} // closed once there is the response
	response event         // read it once over is closed

	mu     sync.Mutex
	before *event    // what a newcomer has missed: its place in the queue, or the last init
	newest *listener // of the event streams, which alone hears the agent; nil for none
	out    int       // of what waits for clients, or is in their hands, bytes

	closing context.Context // when it has ended, nobody is told more than the response
}

// listener is what waits for one client. The audience's lock guards it.
type listener struct {
	wake    chan struct{} // holds one when there may be an event
	waiting []event
	size    int // of what waits, bytes
	held    int // of what was taken, bytes
}

func newAudience(closing context.Context) *audience {
	return &audience{over: make(chan struct{}), closing: closing}
}

func (e event) size() int { return len(e.data) + perEvent }

// tell tells an event to who listens, and never waits. The response is the last.
func (a *audience) tell(e event) {
	a.mu.Lock()
	defer a.mu.Unlock()

	if e.isLast() {
		a.response = e
		a.before = nil
		a.newest = nil // it still has what waits for it
		close(a.over)
		return
	}

	hasPlace := a.before != nil && a.before.name == "queued"
	switch {
	case e.name == "queued" || e.isInit:
		a.before = &e
	case hasPlace: // no more, as its turn has come
		a.before = nil
	}
	a.put(e)
}

// put adds an event for the newest stream, unless too much waits already. mu is held.
func (a *audience) put(e event) {
	l := a.newest
	if l == nil || l.size >= maxBehind || a.out >= maxOut {
		return
	}
	l.waiting = append(l.waiting, e)
	l.size += e.size()
	a.out += e.size()

	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// drop forgets what waits for l. mu is held.
func (a *audience) drop(l *listener) {
	a.out -= l.size
	l.waiting = nil
	l.size = 0
}

// isOver says whether the command has its answer.
func (a *audience) isOver() bool {
	select {
	case <-a.over:
		return true
	default:
		return false
	}
}

// follow returns what a client is told from now on, until ctx ends. Every client is
// told the response, and the newest event stream what comes before it.
func (a *audience) follow(ctx context.Context, isStream bool) <-chan event {
	l := &listener{wake: make(chan struct{}, 1)}
	if isStream {
		a.seat(l)
	}

	events := make(chan event)
	go func() {
		defer a.unseat(l)
		for {
			e, isThere := a.next(ctx, l)
			if !isThere {
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
			if e.isLast() {
				return
			}
			a.handed(l, e)
		}
	}()
	return events
}

// next waits for l's next event. It says false when ctx has ended.
func (a *audience) next(ctx context.Context, l *listener) (e event, isThere bool) {
	for {
		e, isThere = a.take(l)
		if isThere {
			return e, true
		}

		select {
		case <-l.wake:
		case <-a.over:
			e, isThere = a.take(l) // which may have come just before
			if !isThere {
				e = a.response
			}
			return e, true
		case <-ctx.Done():
			return event{}, false
		}
	}
}

func (a *audience) take(l *listener) (e event, isThere bool) {
	a.mu.Lock()
	defer a.mu.Unlock()

	if a.isOver() && a.closing.Err() != nil {
		a.drop(l) // as a shutdown waits for the response to be read
	}
	if len(l.waiting) == 0 {
		return event{}, false
	}
	e = l.waiting[0]
	l.waiting[0] = event{} // or the array would keep it
	l.waiting = l.waiting[1:]
	l.size -= e.size()
	l.held += e.size()
	return e, true
}

// handed says that a client has taken an event, and so is done with those before.
func (a *audience) handed(l *listener, e event) {
	a.mu.Lock()
	defer a.mu.Unlock()

	a.out -= l.held - e.size()
	l.held = e.size()
}

// seat makes l the newest. The one before it loses what it has not taken, as most
// likely its client is gone and this is the same one again.
func (a *audience) seat(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()

	if a.isOver() {
		return
	}
	if a.newest != nil {
		a.drop(a.newest)
	}
	a.newest = l
	if a.before != nil {
		a.put(*a.before)
	}
}

func (a *audience) unseat(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()

	a.drop(l)
	a.out -= l.held
	if a.newest == l {
		a.newest = nil
	}
}
