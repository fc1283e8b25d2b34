package main

import (
	"context"
	"slices"
	"sync"
)

// queue gives turns to commands: one at a time, first come, first served. It is safe for
// concurrent use.
type queue struct {
	limit   int           // how many may wait while one has its turn
	closing chan struct{} // closed by close
	drained chan struct{} // closed once it is closed and empty

	mu      sync.Mutex
	tickets []*ticket // the first one has its turn
	closed  error     // why nobody may enter any more; nil while it is open
}

// ticket is a command's place in the queue.
type ticket struct {
	turn  chan struct{}   // closed when its turn comes
	moved func(ahead int) // reports its position while it waits; must not block
}

func newQueue(limit int) *queue {
	return &queue{
		limit:   limit,
		closing: make(chan struct{}),
		drained: make(chan struct{}),
	}
}

// enter takes the last place. Whoever gets a ticket must call leave.
func (q *queue) enter(moved func(ahead int)) (*ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.closed != nil {
		return nil, q.closed
	}
	if len(q.tickets) > q.limit {
		return nil, errorf(codeQueueFull,
			"one command runs and %d wait (VM_QUEUE; without VM_TOKEN none may wait); "+
				"try again later", q.limit)
	}

	t := &ticket{turn: make(chan struct{}), moved: moved}
	q.tickets = append(q.tickets, t)
	q.notify(len(q.tickets) - 1)
	return t, nil
}

// wait returns nil when it is the ticket's turn, or the reason why it gets none.
func (q *queue) wait(ctx context.Context, t *ticket) error {
	select {
	case <-t.turn:
	case <-q.closing:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return q.whyClosed() // which may have come at the same moment as the turn
}

// leave gives up the ticket's place.
func (q *queue) leave(t *ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()

	i := slices.Index(q.tickets, t)
	q.tickets = slices.Delete(q.tickets, i, i+1)
	for ; i < len(q.tickets); i++ {
		q.notify(i)
	}
	if q.closed != nil && len(q.tickets) == 0 {
		close(q.drained)
	}
}

// notify tells a ticket its new position. mu is held.
func (q *queue) notify(position int) {
	t := q.tickets[position]
	if position == 0 {
		close(t.turn)
		return
	}

	t.moved(position)
}

// close lets nobody in any more, and ends every wait. Only the first call counts.
func (q *queue) close(reason error) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.closed != nil {
		return
	}
	q.closed = reason
	close(q.closing)
	if len(q.tickets) == 0 {
		close(q.drained)
	}
}

func (q *queue) whyClosed() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.tickets)
}
