package main

import (
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
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
	connections := &connLimiter{share: share}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState:         connections.track,
	}
}

// connLimiter counts open connections, and closes one too many at once.
type connLimiter struct {
	share uint64 // one in so many descriptors may be a connection
	open  atomic.Uint64
}

// track is http.Server.ConnState: it is called for each connection, in order.
func (c *connLimiter) track(connection net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if c.open.Add(1) > maxOpenFiles()/c.share {
			connection.Close()
		}
	case http.StateClosed, http.StateHijacked: // a hijacked one never becomes closed
		c.open.Add(^uint64(0))
	}
}

// maxOpenFiles returns how many files this process may open now (RLIMIT_NOFILE).
func maxOpenFiles() uint64 {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return limit.Cur
}
