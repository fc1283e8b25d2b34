package main

import (
	"bytes"
	"cmp"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A command's events on their way to its client, in one of two forms: JSON, which
// is the response alone, or an event stream. While there is nothing to send, a
// heartbeat that means nothing keeps proxies and clients from giving up.

// A client that is sent data, and takes less than a piece of it within writeLimit,
// counts as gone.
const (
	writeLimit = 20 * time.Second
	pieceSize  = 1 << 20 // bytes
)

// event is what the client of a command is told: queued, agent or, last, response.
type event struct {
	name   string
	data   []byte
	isInit bool // a turn of the agent begins with it
}

func (e event) isLast() bool { return e.name == "response" }

// form is how events look on the wire.
type form interface {
	contentType() string
	encode(event) [][]byte // in parts, as data is shared and long; none for what it doesn't tell
	heartbeat() []byte
}

func isStream(f form) bool {
	_, is := f.(streamForm)
	return is
}

// formOf is the form that the client asked for: a stream where it names that, and
// doesn't want JSON more (RFC 9110, 12.5.1).
func formOf(r *http.Request) form {
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
	if stream > 0 && stream >= quality["application/json"] {
		return streamForm{}
	}
	return jsonForm{}
}

// jsonForm is the response alone; JSON allows white space before it.
type jsonForm struct{}

func (jsonForm) contentType() string { return "application/json" }
func (jsonForm) heartbeat() []byte   { return []byte("\n") }

func (jsonForm) encode(e event) [][]byte {
	if !e.isLast() {
		return nil
	}
	return [][]byte{e.data, []byte("\n")}
}

// streamForm is every event; a line that begins with a colon is a comment.
type streamForm struct{}

func (streamForm) contentType() string { return "text/event-stream" }
func (streamForm) heartbeat() []byte   { return []byte(":\n\n") }

// A carriage return, which JSON allows between its values, would end a line, and
// let the agent forge events.
func (streamForm) encode(e event) [][]byte {
	data := e.data
	if bytes.Contains(data, []byte("\r")) {
		data = bytes.ReplaceAll(data, []byte("\r"), nil)
	}
	head := fmt.Appendf(nil, "event: %s\ndata: ", e.name)
	return [][]byte{head, data, []byte("\n\n")}
}

// reply sends events up to the response, and nothing after it. It takes all of
// them even when the client has gone, as who sends them may wait for that; but not
// once gone is closed. It returns why the client doesn't have the response.
func reply(w http.ResponseWriter, form form, beat time.Duration, events <-chan event,
	gone <-chan struct{}) error {
	out := newSender(w, form.contentType())
	if isStream(form) {
		out.due.Reset(0) // JSON's head waits, as a proxy may still answer in its own words
	}

	tick := time.Tick(beat) // never for 0
	for {
		select {
		case e := <-events:
			out.send(form.encode(e)...)
			if e.isLast() {
				out.flush()
				return out.err
			}
		case <-gone:
			return errClientGone
		case <-tick:
			out.send(form.heartbeat())
		case <-out.due.C:
			out.flush()
		}
	}
}

// sender writes to one client. After the first error it writes no more.
type sender struct {
	w       http.ResponseWriter
	control *http.ResponseController
	due     *time.Timer // when what was written has to be flushed
	err     error
}

func newSender(w http.ResponseWriter, contentType string) *sender {
	s := &sender{w: w, control: http.NewResponseController(w), due: time.NewTimer(time.Hour)}
	s.due.Stop()

	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx would hold heartbeats and events back

	s.control.SetReadDeadline(time.Time{}) // the request is read; its sender may now wait for long
	s.control.SetWriteDeadline(time.Now().Add(writeLimit))
	return s
}

// send writes the parts, unless there are none, and has them flushed soon.
func (s *sender) send(parts ...[]byte) {
	for _, part := range parts {
		for piece := range slices.Chunk(part, pieceSize) {
			s.write(piece)
		}
	}
}

func (s *sender) write(piece []byte) {
	if s.err != nil {
		return
	}
	s.control.SetWriteDeadline(time.Now().Add(writeLimit))
	_, s.err = s.w.Write(piece)
	s.flushSoon()
}

// flushSoon lets what comes quickly be sent together.
func (s *sender) flushSoon() { s.due.Reset(10 * time.Millisecond) }

func (s *sender) flush() { s.err = cmp.Or(s.err, s.control.Flush()) }
