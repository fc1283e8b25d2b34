package main

import (
	"bytes"
	"cmp"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A command's events on their way to its client, in one of two forms: JSON, which
// is the response alone, or an event stream. While there is nothing to send, a
// heartbeat that means nothing keeps proxies and clients from giving up.

// writeLimit is how long a client may leave unread what it is sent before it
// counts as gone, and a second more for each slowest bytes.
const (
	writeLimit = 20 * time.Second
	slowest    = 64 << 10
)

// event is what the client of a command is told: queued, agent or, last, response.
type event struct {
	name string
	data []byte
}

func (e event) isLast() bool { return e.name == "response" }

// form is how events look on the wire.
type form interface {
	contentType() string
	encode(event) []byte // nil for what this form doesn't tell
	heartbeat() []byte
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

func (jsonForm) encode(e event) []byte {
	if !e.isLast() {
		return nil
	}
	return append(e.data, '\n')
}

// streamForm is every event; a line that begins with a colon is a comment.
type streamForm struct{}

func (streamForm) contentType() string { return "text/event-stream" }
func (streamForm) heartbeat() []byte   { return []byte(":\n\n") }

// A carriage return, which JSON allows between its values, would end a line, and
// let the agent forge events.
func (streamForm) encode(e event) []byte {
	data := bytes.ReplaceAll(e.data, []byte("\r"), nil)
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", e.name, data)
}

// reply sends events up to the response, and nothing after it. It takes all of
// them even when the client has gone, as who sends them waits for that; then it
// returns why.
func reply(w http.ResponseWriter, r *http.Request, beat time.Duration, events <-chan event) error {
	form := formOf(r)
	out := newSender(w, form.contentType())
	if _, isStream := form.(streamForm); isStream {
		out.due.Reset(0) // JSON's head waits, as a proxy may still answer in its own words
	}

	tick := time.Tick(beat) // never for 0
	for {
		select {
		case e := <-events:
			out.send(form.encode(e))
			if e.isLast() {
				out.flush()
				return out.err
			}
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

// send writes data, unless there is none, and has it flushed soon.
func (s *sender) send(data []byte) {
	if s.err != nil || data == nil {
		return
	}

	patience := writeLimit + time.Duration(len(data)/slowest)*time.Second
	s.control.SetWriteDeadline(time.Now().Add(patience))
	_, s.err = s.w.Write(data)
	s.flushSoon()
}

// flushSoon lets what comes quickly be sent together.
func (s *sender) flushSoon() { s.due.Reset(10 * time.Millisecond) }

func (s *sender) flush() { s.err = cmp.Or(s.err, s.control.Flush()) }
