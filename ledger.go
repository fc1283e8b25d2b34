package main

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"
)

// The ledger knows which command belongs to which Idempotency-Key: those that wait
// or run, and the last ones that are over, with their answers. A key runs its
// command once, however often it is sent, until its answer is forgotten.

// What is kept, the newest first; the newest answer whatever its size.
const (
	maxKept     = 64       // answers
	maxKeptSize = 16 << 20 // of them together, bytes
	keptAge     = 30 * time.Minute
)

// ledger is safe for concurrent use.
type ledger struct {
	queue   *queue
	running context.Context // ends when every command must
	maxAge  time.Duration   // of an answer that is kept

	mu       sync.Mutex // the queue's is taken below it
	commands map[string]*keyed
	kept     []*keyed // those that are over, the oldest first
	size     int      // of their answers, bytes
}

// keyed is a command that belongs to a key, and not to a client.
type keyed struct {
	*audience
	key    string
	digest [32]byte // of the body that the key came with
	id     string   // in the log
	stop   context.CancelCauseFunc

	endedAt time.Time // of one that is kept
}

// visit is what a request with a key finds.
type visit struct {
	*keyed
	isReplay  bool // the command was over before
	isCounted bool // a shutdown waits until queue.answered is called

	// Of a command that is new, which the visitor then runs; ctx ends when it must.
	ctx   context.Context
	place *place
}

func newLedger(queue *queue, running context.Context) *ledger {
	return &ledger{
		queue:    queue,
		running:  running,
		maxAge:   keptAge,
		commands: map[string]*keyed{},
	}
}

// visit finds the command of the request's key or, where there is none, has a new
// one enter the queue. Who is counted calls queue.answered once it has its answer,
// and who runs a new command does once more, after end.
func (l *ledger) visit(req *request) (*visit, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	l.forget()
	k := l.commands[req.key]
	if k == nil {
		return l.open(req)
	}
	if k.digest != req.digest {
		return nil, fail("key_reused", "this Idempotency-Key came with another body before; "+
			"take a new key for a new command")
	}

	v := &visit{keyed: k, isReplay: k.isOver()}
	// While it is not over its runner is counted: that calls answered after end, which
	// waits for mu.
	v.isCounted = l.queue.join(!v.isReplay)
	return v, nil
}

// open has a new command enter the queue. mu is held.
func (l *ledger) open(req *request) (*visit, error) {
	place, err := l.queue.enter()
	if err != nil {
		return nil, err
	}
	l.queue.join(true)

	ctx, stop := context.WithCancelCause(l.running)
	k := &keyed{
		audience: newAudience(l.queue.closing),
		key:      req.key,
		digest:   req.digest,
		id:       rand.Text()[:8],
		stop:     stop,
	}
	l.commands[req.key] = k
	return &visit{keyed: k, isCounted: true, ctx: ctx, place: place}, nil
}

// end says that a command has told its response, which is kept from now on.
func (l *ledger) end(k *keyed) {
	l.mu.Lock()
	defer l.mu.Unlock()

	k.stop(nil)
	k.endedAt = time.Now()
	l.kept = append(l.kept, k)
	l.size += len(k.response.data)
	l.forget()
}

// stop stops the key's command. It says nil where none waits or runs.
func (l *ledger) stop(key string) *keyed {
	l.mu.Lock()
	defer l.mu.Unlock()

	k := l.commands[key]
	if k == nil || k.isOver() {
		return nil
	}
	k.stop(errStopped)
	return k
}

// forget keeps no more than it may. mu is held.
func (l *ledger) forget() {
	for len(l.kept) > 0 {
		oldest := l.kept[0]
		isOne := len(l.kept) == 1
		isTooMuch := len(l.kept) > maxKept || l.size > maxKeptSize && !isOne
		isOld := time.Since(oldest.endedAt) > l.maxAge
		if !isTooMuch && !isOld {
			return
		}
		l.kept = slices.Delete(l.kept, 0, 1) // and of the array, so that nothing keeps it
		l.size -= len(oldest.response.data)
		delete(l.commands, oldest.key)
	}
}
