package main

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// writeTimeout is how long a client may take to read one event or heartbeat and, once its
// command has ended, everything that is left. Then it is disconnected.
const writeTimeout = 30 * time.Second

// wantsStream reports whether a client asks for an event stream: whether it accepts one,
// and does not prefer JSON (RFC 9110, 12.5.1).
func wantsStream(r *http.Request) bool {
	quality := map[string]float64{}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	for entry := range strings.SplitSeq(accept, ",") {
		kind, parameters, err := mime.ParseMediaType(entry)
		if err != nil {
			continue
		}
		q, err := strconv.ParseFloat(parameters["q"], 64)
		if err != nil {
			q = 1
		}
		quality[kind] = q
	}

	stream := quality["text/event-stream"]
	return stream > 0 && stream >= quality["application/json"]
}

// sendJSON sends an operation's response as JSON, after a newline every heartbeat, which
// JSON allows there. The head is sent with the first byte, since a proxy may still answer
// in its own words until then. It returns errClientGone when gone is closed before there
// is a response.
func sendJSON(w http.ResponseWriter, o *operation, heartbeat time.Duration,
	gone <-chan struct{}) error {
	out := newStreamWriter(w, "application/json")
	tick := time.Tick(heartbeat) // never for 0
	for {
		select {
		case <-o.done:
			out.limitRest()
			out.write(o.response, []byte("\n"))
			return out.flush()
		case <-gone:
			return errClientGone
		case <-tick:
			out.write([]byte("\n"))
			out.flush()
		}
	}
}

// sendEvents sends an operation's events as a stream (HTML Living Standard, 9.2), the
// response as the last one, and a comment every heartbeat. It returns errClientGone when
// gone is closed before there is a response.
func sendEvents(w http.ResponseWriter, o *operation, heartbeat time.Duration,
	gone <-chan struct{}) error {
	out := newStreamWriter(w, "text/event-stream")
	out.flush() // so that the client knows that it is connected
	subscriber := o.subscribe()
	tick := time.Tick(heartbeat)
	for {
		isDone := o.isDone() // before the look, so that it finds the last event
		if isDone {
			out.limitRest()
		}
		e, changed := subscriber.take()
		switch {
		case e != nil:
			out.writeEvent(e)
			continue
		case isDone:
			out.writeEvent(&event{name: "response", data: o.response})
			return out.flush()
		}

		out.flush()
		select {
		case <-changed:
		case <-o.done:
		case <-gone:
			return errClientGone
		case <-tick:
			out.write([]byte(":\n\n"))
		}
	}
}

// streamWriter writes to one client. After the first error it writes no more.
type streamWriter struct {
	w         http.ResponseWriter
	control   *http.ResponseController
	isLimited bool // by the deadline for the rest
	err       error
}

func newStreamWriter(w http.ResponseWriter, contentType string) *streamWriter {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx would hold heartbeats and events back

	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Time{}) // the request is read; its sender may wait for long
	s := &streamWriter{w: w, control: control}
	s.setDeadline()
	return s
}

func (s *streamWriter) setDeadline() {
	s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
}

// limitRest sets the deadline for all that follows, when it is called first.
func (s *streamWriter) limitRest() {
	if !s.isLimited {
		s.setDeadline()
		s.isLimited = true
	}
}

// write writes parts that belong together, under one deadline.
func (s *streamWriter) write(parts ...[]byte) {
	if !s.isLimited {
		s.setDeadline()
	}
	for _, part := range parts {
		if s.err == nil {
			_, s.err = s.w.Write(part)
		}
	}
}

// writeEvent writes an event. A carriage return, which JSON allows between its values,
// would end a line of the stream and let the agent forge events.
func (s *streamWriter) writeEvent(e *event) {
	data := e.data
	if bytes.Contains(data, []byte("\r")) {
		data = bytes.ReplaceAll(data, []byte("\r"), nil)
	}
	s.write(fmt.Appendf(nil, "event: %s\ndata: ", e.name), data, []byte("\n\n"))
}

func (s *streamWriter) flush() error {
	if s.err == nil {
		s.err = s.control.Flush()
	}
	return s.err
}
