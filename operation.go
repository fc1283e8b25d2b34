package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"
)

// event is one thing that the client of a command may be told: queued, agent or, as the
// last one, response.
type event struct {
	name   string
	data   []byte
	isInit bool // a turn of the agent begins with it
}

const (
	// maxRecent is how much of an operation's latest events is kept, bytes; and one event
	// before them, or a large one would be lost as soon as another one follows.
	maxRecent = 4 << 20

	eventOverhead = 64 // what an event takes beside its data, bytes
)

func (e *event) size() int { return len(e.data) + eventOverhead }

// operation is an accepted command, with its latest events and, in the end, its response.
// Any number of clients subscribe to it, and none of them can delay it: a subscriber that
// falls behind skips events, but never the response. It is safe for concurrent use.
type operation struct {
	id     string // in the log
	req    *request
	remote string
	ticket *ticket

	ctx    context.Context // ends when the command must end, with the reason
	cancel context.CancelCauseFunc

	done     chan struct{} // closed once there is a response
	response []byte        // to be read once done is closed

	mu      sync.Mutex
	recent  []*event
	first   int           // the number of recent[0]; an operation's events are numbered from 0
	size    int           // of recent, bytes
	init    *event        // the last init, even if it is no longer recent
	changed chan struct{} // closed with the next event; nil while nobody waits
}

func newRequestID() string { return rand.Text()[:8] }

func newOperation(ctx context.Context, req *request, remote string) *operation {
	o := &operation{
		id:     newRequestID(),
		req:    req,
		remote: remote,
		done:   make(chan struct{}),
	}

	o.ctx, o.cancel = context.WithCancelCause(ctx)
	return o
}

// publish adds an event for all subscribers. It never waits.
func (o *operation) publish(e *event) {
	o.mu.Lock()
	defer o.mu.Unlock()

	if e.isInit {
		o.init = e
	}
	o.recent = append(o.recent, e)
	o.size += e.size()
	for o.size-o.recent[0].size() > maxRecent {
		o.size -= o.recent[0].size()
		o.recent[0] = nil // or the array would keep it
		o.recent = o.recent[1:]
		o.first++
	}

	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// publishPosition publishes the operation's position in the queue.
func (o *operation) publishPosition(ahead int) {
	o.publish(&event{name: "queued", data: fmt.Appendf(nil, `{"position":%d}`, ahead)})
}

// finish sets the response. Call it once, after the last event.
func (o *operation) finish(response []byte) {
	o.response = response
	close(o.done)
	o.cancel(nil)
}

func (o *operation) isDone() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// subscriber is one event stream's position in an operation's events.
type subscriber struct {
	operation *operation
	init      *event // the last init when it subscribed, which comes first
	next      int    // the number of the next event
	joined    int    // the number of the first event after it subscribed
}

// subscribe returns a subscriber that gets the last init, the recent events and all that
// follow. Of the positions in the queue it gets the latest one only.
func (o *operation) subscribe() *subscriber {
	o.mu.Lock()
	defer o.mu.Unlock()

	return &subscriber{
		operation: o,
		init:      o.init,
		next:      -1,
		joined:    o.first + len(o.recent),
	}
}

// take returns the next event. Where there is none yet, changed is closed when one comes.
func (s *subscriber) take() (e *event, changed <-chan struct{}) {
	o := s.operation
	o.mu.Lock()
	defer o.mu.Unlock()

	if s.next < 0 {
		s.next = o.first
		if s.init != nil {
			return s.init, nil
		}
	}

	s.next = max(s.next, o.first) // it fell behind
	for s.next-o.first < len(o.recent) {
		e := o.recent[s.next-o.first]
		s.next++
		isOld := e.name == "queued" && s.next < s.joined
		if e != s.init && !isOld {
			return e, nil
		}
	}

	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return nil, o.changed
}

// What is kept of commands with an Idempotency-Key that are over.
const (
	maxAnswers     = 64
	maxAnswersSize = 16 << 20 // bytes; the latest answer is kept whatever its size
	answerTTL      = 30 * time.Minute
	maxKeys        = 10_000 // whose answers are forgotten
	keyTTL         = 24 * time.Hour
)

// operations starts operations, and finds those that have an Idempotency-Key: such a
// command runs at most once, however often it is sent. It is safe for concurrent use.
type operations struct {
	queue *queue
	ctx   context.Context // ends when every operation must end, with the reason

	mu       sync.Mutex // the queue's lock is taken while it is held
	keys     map[string]*keyEntry
	answered []*keyEntry // in the order in which their operations were done
	answers  int         // how many of these still have their answer: the last ones
	size     int         // of those answers, bytes
}

// keyEntry is what is known of a key.
type keyEntry struct {
	key       string
	digest    [32]byte   // of the request's body
	operation *operation // nil once its answer is forgotten
	done      time.Time
}

func newOperations(ctx context.Context, queue *queue) *operations {
	return &operations{
		queue: queue,
		ctx:   ctx,
		keys:  map[string]*keyEntry{},
	}
}

// start returns the operation of the request's key or, if there is none, a new one, which
// the caller must run.
func (s *operations) start(req *request, remote string) (o *operation, isNew bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.expire()
	entry := s.keys[req.key]
	switch {
	case req.key == "" || entry == nil:
		o, err = s.add(req, remote)
		return o, true, err
	case entry.digest != req.digest:
		return nil, false, errorf(codeKeyReused,
			"this Idempotency-Key came with another body before; "+
				"use a new key for a new command")
	case entry.operation == nil:
		return nil, false, errorf(codeAnswerForgotten,
			"the command of this Idempotency-Key is over and its answer is no longer kept; "+
				"to run it again, use a new key")
	default:
		return entry.operation, false, nil
	}
}

// add makes a new operation. mu is held.
func (s *operations) add(req *request, remote string) (*operation, error) {
	o := newOperation(s.ctx, req, remote)
	ticket, err := s.queue.enter(o.publishPosition)
	if err != nil {
		return nil, err
	}

	o.ticket = ticket
	if req.key != "" {
		s.keys[req.key] = &keyEntry{key: req.key, digest: req.digest, operation: o}
	}
	return o, nil
}

// finish ends an operation with its response, and keeps that if it has a key.
func (s *operations) finish(o *operation, response []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()

	o.finish(response)
	entry := s.keys[o.req.key]
	if o.req.key == "" {
		return
	}
	entry.operation = &operation{id: o.id, done: o.done, response: response} // no events
	entry.done = time.Now()
	s.answered = append(s.answered, entry)
	s.answers++
	s.size += len(response)
	s.expire()
}

// cancel stops the key's command. It returns nil if none waits or runs.
func (s *operations) cancel(key string) *operation {
	s.mu.Lock()
	defer s.mu.Unlock()

	entry := s.keys[key]
	if entry == nil || entry.operation == nil || entry.operation.isDone() {
		return nil
	}
	entry.operation.cancel(errStopped)
	return entry.operation
}

// expire forgets answers, and then keys, that are too many or too old. mu is held.
func (s *operations) expire() {
	for s.answers > 0 {
		oldest := s.answered[len(s.answered)-s.answers]
		isTooMuch := s.answers > maxAnswers || s.size > maxAnswersSize && s.answers > 1
		if !isTooMuch && time.Since(oldest.done) < answerTTL {
			break
		}
		s.size -= len(oldest.operation.response)
		s.answers--
		oldest.operation = nil
	}

	for len(s.answered) > s.answers {
		oldest := s.answered[0]
		isTooMany := len(s.answered)-s.answers > maxKeys
		if !isTooMany && time.Since(oldest.done) < keyTTL {
			break
		}
		s.answered = slices.Delete(s.answered, 0, 1)
		delete(s.keys, oldest.key)
	}
}
