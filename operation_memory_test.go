package main

import (
	"context"
	"errors"
	"runtime"
	"testing"
)

// heap is what is live, in MB.
func heap() int {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc >> 20)
}

// keep has a command with a key answered by so many bytes.
func (s *operations) keep(t *testing.T, key string, size int) *operation {
	t.Helper()
	o, isNew, err := s.start(&request{key: key}, "")
	if err != nil || !isNew {
		t.Fatal(isNew, err)
	}
	s.queue.leave(o.ticket)
	s.finish(o, make([]byte, size))
	return o
}

// Small ones first, so that the lists have room to hold on to what they had.
func TestWhatIsForgottenOrReadIsFreed(t *testing.T) {
	before := heap()
	kept := newOperations(context.Background(), newQueue(1))
	for range maxAnswers + 1 {
		kept.keep(t, newMarker(), 10)
	}
	for range 30 {
		kept.keep(t, newMarker(), 16<<20)
	}
	if grown := heap() - before; grown > 40 {
		t.Errorf("%d MB are kept of answers, which may have 16 MiB", grown)
	}
	runtime.KeepAlive(kept)

	before = heap()
	o := newOperation(context.Background(), &request{}, "")
	var stuck []*subscriber
	for range 30 { // of events that nobody takes, or of which each client holds another
		stuck = append(stuck, o.subscribe())
		o.publish(&event{name: "agent", data: make([]byte, 10<<20)})
	}
	if grown := heap() - before; grown > 25 {
		t.Errorf("%d MB are kept of events", grown)
	}
	runtime.KeepAlive(stuck)
	runtime.KeepAlive(o)
}

// Or a client that comes late would have its command run twice.
func TestAKeyOutlivesItsAnswer(t *testing.T) {
	t.Parallel()
	kept := newOperations(context.Background(), newQueue(1))
	code := func(key string, digest byte) errorCode {
		_, _, err := kept.start(&request{key: key, digest: [32]byte{digest}}, "")
		var reason *apiError
		if !errors.As(err, &reason) {
			return ""
		}
		return reason.Code
	}
	for range maxAnswers + 1 {
		kept.keep(t, newMarker(), 10)
	}
	first := kept.answered[0].key
	if got := code(first, 0); got != codeAnswerForgotten {
		t.Errorf("the same request gets %q", got)
	}
	if got := code(first, 1); got != codeKeyReused {
		t.Errorf("another request gets %q", got)
	}
	for range maxKeys {
		kept.keep(t, newMarker(), 10)
	}
	if got := code(first, 0); got != "" {
		t.Errorf("a key that is forgotten too gets %q", got)
	}
	if len(kept.keys) > maxKeys+maxAnswers+1 {
		t.Errorf("%d keys are kept", len(kept.keys))
	}
}
