package main

import (
	"context"
	"runtime"
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

// Small ones first, so that the lists have room to hold on to what they had.
func TestWhatIsForgottenOrReadIsFreed(t *testing.T) {
	before := heap()
	kept := newKeptAnswers()
	for range maxKept + 1 {
		kept.add(10)
	}
	for range 30 {
		kept.add(16 << 20)
	}
	if grown := heap() - before; grown > 40 {
		t.Errorf("%d MB are kept of answers, which may have 16 MiB", grown)
	}
	runtime.KeepAlive(kept)

	before = heap()
	a := newAudience(context.Background())
	events := a.follow(t.Context(), true)
	for range 5000 {
		a.tell(event{name: "agent", data: make([]byte, 100)})
	}
	for range 5000 {
		<-events
	}
	for range 30 {
		a.tell(event{name: "agent", data: make([]byte, 10<<20)})
		<-events
	}
	if grown := heap() - before; grown > 25 { // one in each hand
		t.Errorf("%d MB are kept of events that were read", grown)
	}
	runtime.KeepAlive(a)
}

// However many come again and read nothing, what is held for all of them is bounded.
func TestWhatStuckClientsHoldIsBounded(t *testing.T) {
	before := heap()
	a := newAudience(context.Background())
	var stuck []<-chan event
	for range 20 {
		stuck = append(stuck, a.follow(t.Context(), true))
		for range 3 {
			a.tell(event{name: "agent", data: make([]byte, 15<<20)})
			runtime.Gosched()
		}
	}
	if grown := heap() - before; grown > (maxOut+16<<20)>>20 {
		t.Errorf("%d MB are held", grown)
	}
	a.tell(event{name: "response"})
	for _, events := range stuck {
		for e := <-events; !e.isLast(); e = <-events {
		}
	}
	if grown := heap() - before; grown > 1 {
		t.Errorf("%d MB are held when all is over", grown)
	}
	runtime.KeepAlive(a)
}

// A shutdown waits for the response to be read, so nothing is told before it any more.
func TestAShutdownDoesNotWaitForWhatASlowStreamHasNotHeard(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		closing bool
		most    int // events before the response
	}{{"the server stops", true, 1}, {"the control", false, 100}} {
		closing, stop := context.WithCancel(context.Background())
		defer stop()
		a := newAudience(closing)
		events := a.follow(t.Context(), true)
		for range 100 {
			a.tell(event{name: "agent"})
		}
		if test.closing {
			stop()
		}
		a.tell(event{name: "response"})
		heard := 0
		for e := <-events; !e.isLast(); e = <-events {
			heard++
		}
		if heard > test.most || heard < test.most-1 { // one may be in its hand
			t.Errorf("%s: %d events come before the response", test.name, heard)
		}
	}
}

// A shutdown waits for whom it may: who came before it, and who joined what runs.
func TestAShutdownCountsItsClients(t *testing.T) {
	t.Parallel()
	kept := newKeptAnswers()
	running := kept.begin("running")
	kept.end(kept.begin("over"))
	want := map[string]bool{"running": true, "over": true}
	if diff := cmp.Diff(want, kept.counted("running", "over")); diff != "" {
		t.Errorf("counted before (-want +got):\n%s", diff)
	}
	kept.ledger.queue.close(errShutdown)
	want["over"] = false
	if diff := cmp.Diff(want, kept.counted("running", "over")); diff != "" {
		t.Errorf("counted while it stops (-want +got):\n%s", diff)
	}
	kept.end(running)
}
