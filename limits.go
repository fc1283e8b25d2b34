package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Which share of the descriptors connections may use: those of clients a third, and those
// of the agent to the credential proxy a sixth, since each of these may need another one to
// its upstream. So a third is left for agents and the reaper, whatever the agent does.
const (
	clientShare = 3
	agentShare  = 6
)

// newHTTPServer limits every connection, whoever makes it: by deadlines for slow clients,
// and by number. A handler that answers for longer than ReadTimeout lifts that deadline,
// and sets one for each of its writes.
func newHTTPServer(handler http.Handler, log *slog.Logger, share uint64) *http.Server {
	limiter := &connLimiter{share: share, log: log, open: map[net.Conn]*openConn{}}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState:         limiter.track,
		ConnContext:       limiter.connContext,
	}
}

// connLimiter bounds the number of open connections. Where there is one too many, the one
// that has been idle for longest makes room or, if none is between two requests, the oldest
// one whose request is not accepted: nobody can keep others out by holding connections. It is
// safe for concurrent use.
type connLimiter struct {
	share uint64 // one in so many descriptors may be a connection
	log   *slog.Logger

	mu      sync.Mutex
	open    map[net.Conn]*openConn
	lastLog time.Time
}

// openConn is what is known of a connection.
type openConn struct {
	isIdle     bool      // it is between two requests
	isAccepted bool      // it serves a request that was accepted
	since      time.Time // when it was opened, or its last request ended
}

// track is http.Server.ConnState: it is called for each connection, in order.
func (c *connLimiter) track(connection net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()

	switch state {
	case http.StateNew:
		c.open[connection] = &openConn{since: time.Now()}
		if uint64(len(c.open)) > maxOpenFiles()/c.share {
			c.closeIdle()
		}
	case http.StateActive:
		entry := c.open[connection]
		if entry != nil { // or it made room
			entry.isIdle = false
		}
	case http.StateIdle:
		entry := c.open[connection]
		if entry != nil {
			*entry = openConn{isIdle: true, since: time.Now()}
		}
	case http.StateClosed, http.StateHijacked: // a hijacked one never becomes closed
		delete(c.open, connection)
	}
}

// closeIdle closes the connection that has been idle for longest. The newest one, which has
// no request yet, may be all there is. mu is held.
func (c *connLimiter) closeIdle() {
	var idlest net.Conn
	for connection, entry := range c.open {
		if !entry.isAccepted && (idlest == nil || entry.goesBefore(c.open[idlest])) {
			idlest = connection
		}
	}

	delete(c.open, idlest)
	idlest.Close()

	if time.Since(c.lastLog) > time.Minute {
		c.lastLog = time.Now()
		c.log.Warn("too many connections are open: closed the one that was idle for longest",
			"limit", len(c.open))
	}
}

// goesBefore reports whether a connection makes room before another one.
func (o *openConn) goesBefore(other *openConn) bool {
	if o.isIdle != other.isIdle {
		return o.isIdle
	}
	return o.since.Before(other.since)
}

// acceptKey is the key of a connection's accept function in the context of its requests.
type acceptKey struct{}

// connContext is http.Server.ConnContext.
func (c *connLimiter) connContext(ctx context.Context, connection net.Conn) context.Context {
	accept := func() {
		c.mu.Lock()
		defer c.mu.Unlock()

		entry := c.open[connection]
		if entry != nil {
			entry.isAccepted = true
		}
	}

	return context.WithValue(ctx, acceptKey{}, accept)
}

// keepConnection protects a request's connection until its answer is sent: it makes no room
// for another one. Call it once the request is accepted.
func keepConnection(r *http.Request) {
	accept, isTracked := r.Context().Value(acceptKey{}).(func())
	if isTracked {
		accept()
	}
}

// maxOpenFiles returns how many files this process may open now (RLIMIT_NOFILE).
func maxOpenFiles() uint64 {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return limit.Cur
}
