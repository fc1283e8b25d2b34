package main

import (
	"fmt"
	"strings"
	"testing"
)

// The bodies of photos are large: only a few are read at a time, whoever sends how
// many. What is not read waits in the kernel. The control lets as many be read as
// there are.
func TestLargeBodiesAreReadAFewAtATime(t *testing.T) {
	t.Parallel()
	const senders = 20
	few := startServer(t, "VM_QUEUE=1")
	many := startServer(t, "VM_QUEUE=18")
	half := strings.Repeat(" ", 200<<10)
	servers := []*testServer{few, many}
	for _, s := range servers {
		for range senders {
			connection := s.dial(t)
			go fmt.Fprintf(connection, "POST /command HTTP/1.1\r\nHost: localhost\r\n"+
				"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", 8<<20, half)
		}
	}
	areRead := func(s *testServer) (count int) {
		for _, unread := range s.connections() {
			if unread == 0 {
				count++
			}
		}
		return count
	}
	eventually(t, "3 of the bodies are read", func() bool {
		return len(few.connections()) == senders && areRead(few) == 3
	})
	eventually(t, "the control reads them all", func() bool { return areRead(many) == senders })
	few.goesOn() // as a small one waits for no large one
	if got := areRead(few); got != 3 {
		t.Errorf("%d bodies are read", got)
	}
}
