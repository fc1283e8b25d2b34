package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// writeLimit is how long a client may leave unread what it is sent before it
// counts as gone.
const writeLimit = 20 * time.Second

// answer is how an accepted command ended.
type answer struct {
	Status     string      `json:"status"`
	Result     string      `json:"result"`
	SessionID  string      `json:"session_id,omitempty"`
	DurationMS int64       `json:"duration_ms"`
	NumTurns   int         `json:"num_turns"`
	CostUSD    float64     `json:"cost_usd"`
	MCPServers []mcpServer `json:"mcp_servers"`
	Error      *problem    `json:"error,omitempty"`
}

// command is what an accepted request asks for.
type command struct{ prompt, session string }

// queue hands out turns, first come, first served: the first place has its turn.
type queue struct {
	mu      sync.Mutex // guards all below
	places  []*command
	closed  string         // why nobody may enter any more
	changed chan struct{}  // closed and replaced at each change
	answers sync.WaitGroup // for each who entered, until it is answered; none is added once closed
}

// look tells how many are there, which place is c's (-1 for none), why nobody
// may enter any more, and what is closed at the next change of any of these.
func (q *queue) look(c *command) (length, place int, closed string, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.places), slices.Index(q.places, c), q.closed, q.changed
}

func (q *queue) change(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	close(q.changed)
	q.changed = make(chan struct{})
}

// enter takes the last place, unless limit others wait behind the first.
func (q *queue) enter(c *command, limit int) (err error) {
	q.change(func() {
		switch {
		case q.closed != "":
			err = fail("shutting_down", "no command is taken: %s", q.closed)
		case len(q.places) > limit:
			err = fail("queue_full", "one command runs and %d wait (VM_QUEUE); try again later", limit)
		default:
			q.places = append(q.places, c)
			q.answers.Add(1)
		}
	})
	return err
}

func (q *queue) leave(c *command) {
	q.change(func() { q.places = slices.DeleteFunc(q.places, func(other *command) bool { return other == c }) })
}

// close lets nobody in any more. Those who wait must leave.
func (q *queue) close(why string) {
	q.change(func() { q.closed = cmp.Or(q.closed, why) })
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	methods := map[string]string{"/command": "POST", "/healthz": "GET, HEAD"}[r.URL.Path]
	switch {
	case methods == "":
		s.refuse(w, r, fail("not_found", "there are POST /command and GET /healthz"))
	case !slices.Contains(strings.Split(methods, ", "), r.Method):
		w.Header().Set("Allow", methods)
		s.refuse(w, r, fail("method_not_allowed", "use %s", methods))
	case r.URL.Path == "/command":
		s.command(w, r)
	default:
		s.health(w)
	}
}

// refuse answers and logs a request that was not accepted.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	why := &problem{"invalid_request", err.Error()}
	errors.As(err, &why)
	status := map[string]int{"invalid_request": 400, "unauthorized": 401, "forbidden_origin": 403, "not_found": 404, "method_not_allowed": 405,
		"body_too_large": 413, "unsupported_media_type": 415, "queue_full": 429, "shutting_down": 503}[why.Code]
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "10")
	}
	s.log.Info("refused", "remote", r.RemoteAddr, "status", "rejected", "code", why.Code)
	writeJSON(w, status, map[string]any{"status": "rejected", "error": why})
}

func (s *server) health(w http.ResponseWriter) {
	length, _, closed, _ := s.queue.look(nil)
	status, state := http.StatusOK, map[string]any{"status": "ok", "busy": length > 0, "queued": max(0, length-1), "version": version}
	if closed != "" {
		status, state["status"], state["reason"] = http.StatusServiceUnavailable, "unavailable", closed
	}
	writeJSON(w, status, state)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value)
}

// admit holds a request against every door and reads it. Its errors say what
// is wrong and where.
func (s *server) admit(w http.ResponseWriter, r *http.Request) (*command, error) {
	// Keeps web pages out: cross-site requests and, while no token is asked for,
	// those that DNS rebinding makes same-site. It is no authentication.
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil || s.cfg.Token == "" && !isLoopback(host) {
		return nil, fail("forbidden_origin", "a web page's cross-site request is refused, and so is a Host that is not loopback while no VM_TOKEN is set")
	}
	// Digests, so that the time taken tells nothing of the token or its length.
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(s.cfg.Token)), sha256.Sum256([]byte(token))
	if s.cfg.Token != "" && !(strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(want[:], got[:]) == 1) {
		return nil, fail("unauthorized", "send the server's VM_TOKEN as Authorization: Bearer TOKEN")
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return nil, fail("unsupported_media_type", "send Content-Type: application/json")
	}
	// To its end, or net/http would not notice that the client goes away.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.cfg.MaxBody))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, fail("body_too_large", "the body may have %d bytes (VM_MAX_BODY)", s.cfg.MaxBody)
	}
	if err != nil {
		return nil, errors.New("cannot read the body: it ended early, or took too long")
	}
	return decodeCommand(body)
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// decodeCommand reads {"command": "…", "session_id": "…"} and nothing else.
func decodeCommand(body []byte) (*command, error) {
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("the body is not UTF-8 at byte %d", bytes.IndexRune(body, utf8.RuneError))
	}
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil {
		at := int64(len(body))
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			at = syntax.Offset
		}
		return nil, fmt.Errorf("the body is not one JSON object: %w, at byte %d", err, at)
	}
	for name, value := range fields {
		text, isText := value.(string)
		switch {
		case name != "command" && name != "session_id":
			return nil, fmt.Errorf("unknown field %.40q: there are command and session_id", name)
		case !isText:
			return nil, fmt.Errorf("%s is not a string: leave it out if there is none", name)
		case strings.Contains(text, "\x00"):
			return nil, fmt.Errorf("%s holds a NUL at byte %d", name, strings.IndexByte(text, 0))
		case name == "session_id" && !uuid.MatchString(text):
			return nil, errors.New("session_id is not a UUID: send one from an earlier answer, or leave it out")
		}
	}
	prompt, _ := fields["command"].(string)
	if strings.TrimSpace(prompt) == "" {
		return nil, errors.New(`command is missing or blank: send {"command": "…"}`)
	}
	session, _ := fields["session_id"].(string)
	return &command{prompt, session}, nil
}

// command answers POST /command.
func (s *server) command(w http.ResponseWriter, r *http.Request) {
	c, err := s.admit(w, r)
	if err == nil {
		err = s.queue.enter(c, s.cfg.Queue)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer s.queue.answers.Done()
	ctx, cancel := context.WithCancelCause(s.running)
	defer cancel(nil)
	// net/http ends the request's context also when a write fails.
	defer context.AfterFunc(r.Context(), func() { cancel(errClientGone) })()
	out := newReply(w, r)
	go out.beat(r.Context(), s.cfg.Heartbeat)
	t, started := &transcript{}, time.Now()
	if t.stopped = s.await(ctx, c, out); t.stopped == nil {
		started = time.Now()
		t = s.execute(ctx, c, func(line []byte) { out.event("agent", line) })
	}
	s.queue.leave(c)
	t.judge()
	t.DurationMS = time.Since(started).Milliseconds()
	out.answer(t.answer)
	code := ""
	if t.Error != nil {
		code = t.Error.Code
	}
	s.log.Info("command", "request", rand.Text()[:8], "remote", r.RemoteAddr, "status", t.Status, "code", code, "duration_ms", t.DurationMS,
		"exit", t.exit, "swept", t.swept, "lines_skipped", t.skipped, "cost_usd", t.CostUSD, "answered", out.err == errAnswered)
}

// await returns when it is c's turn, or why it gets none.
func (s *server) await(ctx context.Context, c *command, out *reply) error {
	for told := 0; ; {
		_, place, closed, changed := s.queue.look(c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case closed != "": // also for who is first by now
			return errShuttingDown
		case place == 0:
			return nil
		case place != told:
			told = place
			out.event("queued", fmt.Appendf(nil, `{"position":%d}`, place))
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// reply writes to the client of an accepted command: one JSON object or, where
// it asked for that, an event stream.
type reply struct {
	mu      sync.Mutex // guards all below: heartbeats and flushes come from other goroutines
	w       http.ResponseWriter
	control *http.ResponseController
	buffer  *bufio.Writer
	flusher *time.Timer
	stream  bool
	err     error // the first; nothing is written after it
}

var errAnswered = errors.New("answered")

func newReply(w http.ResponseWriter, r *http.Request) *reply {
	o := &reply{w: w, control: http.NewResponseController(w), stream: strings.Contains(r.Header.Get("Accept"), "text/event-stream")}
	o.buffer = bufio.NewWriterSize(o, 64<<10)
	o.flusher = time.AfterFunc(time.Hour, o.flush)
	o.control.SetReadDeadline(time.Time{}) // the request is read; its sender may now wait for long
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx would hold heartbeats and events back
	w.Header().Set("Content-Type", "application/json")
	if o.stream {
		w.Header().Set("Content-Type", "text/event-stream")
		o.send(nil, []byte(":\n\n"))
		o.flush()
	}
	return o
}

// Write is the buffer's way to the client. A client that takes nothing for
// writeLimit counts as gone.
func (o *reply) Write(data []byte) (int, error) {
	for part := range slices.Chunk(data, 64<<10) {
		o.control.SetWriteDeadline(time.Now().Add(writeLimit))
		if _, err := o.w.Write(part); err != nil {
			return 0, err
		}
	}
	return len(data), nil
}

// send writes what is meant for the client's form, if anything is. It leaves
// once no more has come for a moment, or when it is much.
func (o *reply) send(asJSON, asStream []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream {
		asJSON = asStream
	}
	if o.err == nil && asJSON != nil {
		_, o.err = o.buffer.Write(asJSON)
		o.flusher.Reset(10 * time.Millisecond)
	}
}

func (o *reply) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = cmp.Or(o.buffer.Flush(), o.control.Flush())
	}
}

// beat sends what means nothing, until ctx ends: JSON allows white space before
// the value, an event stream allows comments.
func (o *reply) beat(ctx context.Context, every time.Duration) {
	for tick := time.Tick(every); ; {
		select {
		case <-tick:
			o.send([]byte("\n"), []byte(":\n\n"))
		case <-ctx.Done():
			return
		}
	}
}

// event sends an event to a stream. A carriage return, which JSON allows between
// values, would end a stream's line there and let the agent forge events.
func (o *reply) event(name string, data []byte) {
	if o.stream {
		o.send(nil, fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, bytes.ReplaceAll(data, []byte("\r"), nil)))
	}
}

// answer sends the last that is sent.
func (o *reply) answer(a answer) {
	data, _ := json.Marshal(a)
	o.event("response", data)
	if !o.stream {
		o.send(append(data, '\n'), nil)
	}
	o.flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flusher.Stop()
	o.err = cmp.Or(o.err, errAnswered)
}
