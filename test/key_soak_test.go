package test

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// Most of the commands are stopped while they wait, as that costs no process; each is
// kept like any other.
func TestSoakOf10000KeysKeepsTheMemory(t *testing.T) {
	t.Parallel()
	s := startKeyed(t, "VM_TIMEOUT=10m")
	s.countable()
	next := 0
	round := func() {
		outcomes := make(chan reply, 1)
		busy := fmt.Sprint("busy-", next)
		s.background(context.Background(), "waits", outcomes, withKey(busy)...)
		s.queued(0)
		var all sync.WaitGroup
		for range 4 {
			first := next
			next += 490
			all.Go(func() {
				for i := first; i < first+490; i++ {
					s.stopWaiting(fmt.Sprint("key-", i))
				}
			})
		}
		all.Wait()
		s.stopKey(busy)
		<-outcomes
		for range 40 {
			s.askWithKey(fmt.Sprint("key-", next), "hello")
			next++
		}
	}

	round() // warms up
	before := s.resources()
	first := kilobytes(s.cmd.Process.Pid, "VmRSS")
	for range 4 {
		round()
	}
	s.back(before, 2)
	last := kilobytes(s.cmd.Process.Pid, "VmRSS")
	t.Logf("%d kB after 2,000 keys, %d kB after %d", first, last, next)
	if last > first*5/4 && !hasRaceDetector() { // whose memory grows with every address
		t.Error("the memory grew by more than a quarter")
	}
}

// stopWaiting sends a command behind another, and stops it.
func (s *testServer) stopWaiting(key string) {
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "hello", outcomes, withKey(key)...)
	for s.stopKey(key) != 202 { // it is not there yet
	}
	if o := <-outcomes; inShort(o.answer) != "canceled stopped" {
		s.t.Errorf("%s is answered %+v", key, o)
	}
}
