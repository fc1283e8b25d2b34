package main

import (
	"context"
	"slices"
	"sync"
)

// The queue hands out turns, one command at a time, first come, first served.
// Whoever entered must leave, and must be answered: a shutdown waits for it.

// queue owns who waits, and whether anybody may still enter.
type queue struct {
	limit int // how many may wait behind the first

	mu      sync.Mutex     // guards places, and that nobody enters once closing has ended
	places  []*place       // the first has its turn
	answers sync.WaitGroup // one for each client that waits for a command's answer

	closing context.Context // ends when nobody may enter any more, with the reason
	cancel  context.CancelCauseFunc
}

// place is one command's place. turn and leave are called by one goroutine.
type place struct {
	queue *queue
	moved chan int // how many stand before it, when that has changed; the newest alone
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.closing, q.cancel = context.WithCancelCause(context.Background())
	return q
}

// enter takes the last place, or says why there is none.
func (q *queue) enter() (*place, error) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.closing.Err() != nil {
		return nil, context.Cause(q.closing)
	}
	if len(q.places) > q.limit {
		return nil, fail("queue_full",
			"one command runs and %d wait (VM_QUEUE); try again later", q.limit)
	}

	p := &place{queue: q, moved: make(chan int, 1)}
	p.moved <- len(q.places)
	q.places = append(q.places, p)
	q.answers.Add(1) // under the lock, so that none is added once close has returned
	return p, nil
}

// turn returns when it is p's turn, or why it gets none. Until then it calls
// waiting with how many stand before it, each time that changes.
func (p *place) turn(ctx context.Context, waiting func(before int)) error {
	closing := p.queue.closing
	for {
		select {
		case before := <-p.moved:
			if before == 0 {
				return context.Cause(closing) // which may have ended just before
			}
			waiting(before)
		case <-closing.Done():
			return context.Cause(closing)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave gives the place up, and tells those behind.
func (p *place) leave() {
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()

	at := slices.Index(q.places, p)
	q.places = slices.Delete(q.places, at, at+1)

	for before, behind := range q.places {
		if before >= at {
			behind.move(before)
		}
	}
}

// move replaces what p has not read yet. The queue's lock is held, so nobody
// else fills the channel.
func (p *place) move(before int) {
	select {
	case <-p.moved:
	default:
	}
	p.moved <- before
}

// join counts one more client, who waits for a command that entered. It says false
// for a command that is over, and so not counted itself, once a shutdown waits.
func (q *queue) join(isOpen bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()

	if !isOpen && q.closing.Err() != nil {
		return false
	}
	q.answers.Add(1)
	return true
}

// answered says that a client of a command that entered has its answer.
func (q *queue) answered() { q.answers.Done() }

// close lets nobody in any more. Those who wait are told why.
func (q *queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cancel(why)
}

// drained is closed once everybody who entered is answered. Call it after close.
func (q *queue) drained() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		q.answers.Wait()
		close(done)
	}()
	return done
}

// closed says why nobody may enter, nil while it is open.
func (q *queue) closed() error { return context.Cause(q.closing) }

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.places)
}
