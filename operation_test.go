package main

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// numbers are the events of an operation that a subscriber takes now, by their data.
func (s *subscriber) numbers() (list []string) {
	for {
		e, _ := s.take()
		if e == nil {
			return list
		}
		list = append(list, e.name+" "+string(e.data[:min(len(e.data), 20)]))
	}
}

func TestASubscriberGetsTheLastInitThenRecentEventsThenWhatFollows(t *testing.T) {
	t.Parallel()
	o := newOperation(context.Background(), &request{}, "")
	first := o.subscribe()
	o.publishPosition(2)
	o.publishPosition(1)
	second := o.subscribe()
	o.publish(&event{name: "agent", data: []byte("hook")})
	o.publish(&event{name: "agent", data: []byte("init"), isInit: true})
	o.publish(&event{name: "agent", data: []byte("word")})
	third := o.subscribe()
	o.publish(&event{name: "agent", data: []byte("last")})

	const two, one = `queued {"position":2}`, `queued {"position":1}`
	for _, test := range []struct {
		name       string
		subscriber *subscriber
		want       []string
	}{
		{"from the beginning", first, []string{two, one, "agent hook", "agent init", "agent word", "agent last"}},
		{"while it waits", second, []string{one, "agent hook", "agent init", "agent word", "agent last"}},
		{"after its turn began", third, []string{"agent init", "agent hook", "agent word", "agent last"}},
		{"after all of that", o.subscribe(), []string{"agent init", "agent hook", "agent word", "agent last"}},
		{"when nothing came since", first, nil},
	} {
		if diff := cmp.Diff(test.want, test.subscriber.numbers()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// Whatever it does not take, the command goes on, and its response comes in the end.
func TestASubscriberThatFallsBehindSkipsEventsAndNeverTheResponse(t *testing.T) {
	t.Parallel()
	o := newOperation(context.Background(), &request{}, "")
	slow := o.subscribe()
	o.publish(&event{name: "agent", data: []byte("first")})
	const count = 100
	for i := range count {
		data := fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", maxRecent/10))
		o.publish(&event{name: "agent", data: data})
	}
	got := slow.numbers()
	if len(got) == 0 || len(got) > 10 || !strings.HasPrefix(got[len(got)-1], "agent 99 ") {
		t.Errorf("it takes %q", got)
	}

	o.finish([]byte("{}"))
	w := httptest.NewRecorder()
	if err := sendEvents(w, o, 0, nil); err != nil {
		t.Error(err)
	}
	_, end, _ := strings.Cut(w.Body.String(), "event: response\n")
	if diff := cmp.Diff("data: {}\n\n", end); diff != "" {
		t.Errorf("the response (-want +got):\n%s", diff)
	}
}
