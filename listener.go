package main

import (
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// What every connection is held to, whoever makes it: deadlines for slow
// clients, and a limit of connections that leaves descriptors for the rest of
// the server.

// What part of the descriptors may be connections: of clients a third, and of the agent
// to the key proxy a sixth, as each may take one more, to whom it leads. The last third
// is for agents and the sweep, whatever the agent does.
const (
	thirdOfDescriptors = 3
	sixthOfDescriptors = 6
)

// newWebServer serves handler, with one in so many descriptors as connections. A handler
// that answers for longer than ReadTimeout lifts that deadline, and sets one for each of
// its writes.
func newWebServer(handler http.Handler, log *slog.Logger, oneIn uint64) *http.Server {
	connections := &connections{oneIn: oneIn}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState:         connections.note,
	}
}

// connections counts those that are open and closes one too many at once.
type connections struct {
	oneIn uint64
	open  atomic.Uint64
}

// note is http.Server.ConnState: called for each connection, in order.
func (c *connections) note(connection net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if c.open.Add(1) > descriptors()/c.oneIn {
			connection.Close()
		}
	case http.StateClosed, http.StateHijacked: // the latter is never closed
		c.open.Add(^uint64(0))
	}
}

// descriptors is how many files this process may open now (RLIMIT_NOFILE).
func descriptors() uint64 {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return limit.Cur
}
