package main

import (
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
// counts as gone, and a second more for each slowest bytes.
const (
	writeLimit = 20 * time.Second
	slowest    = 64 << 10
)

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
type command struct {
	prompt, session string
	moved           chan int // its places in the queue, one after the other; 0 is its turn
}

// event is what the client of a command is told: queued, agent or, last, response.
type event struct {
	name string
	data []byte
}

// queue hands out turns, first come, first served.
type queue struct {
	mu      sync.Mutex      // guards places, and that nobody enters once closing has ended
	places  []*command      // the first has its turn
	closing context.Context // ends when nobody may enter any more, with the reason
	cancel  context.CancelCauseFunc
	answers sync.WaitGroup // for each who entered, until it is answered
}

// enter takes the last place, unless limit others wait behind the first.
func (q *queue) enter(c *command, limit int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closing.Err() != nil {
		return context.Cause(q.closing)
	}
	if len(q.places) > limit {
		return fail("queue_full", "one command runs and %d wait (VM_QUEUE); try again later", limit)
	}
	c.moved = make(chan int, limit+1) // so that none is ever waited for
	c.moved <- len(q.places)
	q.places = append(q.places, c)
	q.answers.Add(1)
	return nil
}

func (q *queue) leave(c *command) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.Index(q.places, c)
	q.places = slices.Delete(q.places, at, at+1)
	for i, behind := range q.places[at:] {
		behind.moved <- at + i
	}
}

// close lets nobody in any more. Those who wait must leave.
func (q *queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cancel(why)
}

// await returns when it is c's turn, or why it gets none.
func (s *server) await(ctx context.Context, c *command, events chan<- event) error {
	for {
		select {
		case place := <-c.moved:
			if place == 0 {
				return context.Cause(s.queue.closing) // which may have ended just before
			}
			events <- event{"queued", fmt.Appendf(nil, `{"position":%d}`, place)}
		case <-s.queue.closing.Done():
			return context.Cause(s.queue.closing)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	methods := map[string]string{"/command": "POST", "/healthz": "GET, HEAD"}[r.URL.Path]
	switch {
	case methods == "":
		s.refuse(w, r, fail("not_found", "there are POST /command and GET /healthz"))
	case !slices.Contains(strings.Split(methods, ", "), r.Method):
		w.Header().Set("Allow", methods)
		s.refuse(w, r, fail("method_not_allowed", "use %s", methods))
	case methods == "POST":
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
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "10")
	}
	s.log.Info("refused", "remote", r.RemoteAddr, "status", "rejected", "code", why.Code)
	writeJSON(w, status, map[string]any{"status": "rejected", "error": why})
}

func (s *server) health(w http.ResponseWriter) {
	s.queue.mu.Lock()
	length := len(s.queue.places)
	s.queue.mu.Unlock()
	status, state := http.StatusOK, map[string]any{"status": "ok", "busy": length > 0, "queued": max(0, length-1), "version": version,
		"key_proxy": s.cfg.KeyProxy, "warm": s.warmth()}
	s.facts.Range(func(name, value any) bool {
		state[name.(string)] = value
		return true
	})
	if why := context.Cause(s.queue.closing); why != nil {
		status, state["status"], state["reason"] = http.StatusServiceUnavailable, "unavailable", why.Error()
	}
	writeJSON(w, status, state)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeLimit))
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
		w.Header().Set("WWW-Authenticate", "Bearer")
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
	return &command{prompt: prompt, session: session}, nil
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
	events, t := make(chan event), &transcript{}
	go func() {
		started := time.Now()
		if t.stopped = s.await(ctx, c, events); t.stopped == nil {
			started = time.Now()
			t = s.execute(ctx, c, events)
		}
		s.queue.leave(c)
		t.judge()
		t.DurationMS = time.Since(started).Milliseconds()
		data, _ := json.Marshal(t.answer)
		events <- event{"response", data}
	}()
	err = s.reply(w, r, events)
	s.log.Info("command", "request", rand.Text()[:8], "remote", r.RemoteAddr, "status", t.Status, "code", cmp.Or(t.Error, &problem{}).Code, "duration_ms", t.DurationMS,
		"exit", t.exit, "warm", t.warm, "swept", t.swept, "lines_skipped", t.skipped, "cost_usd", t.CostUSD, "answered", err == nil)
	go s.renewSpare() // the answer ends when this returns
}

// reply sends a command's events up to the response, as an event stream where
// the client asked for one, else the response alone, as JSON. While there is none
// it sends what means nothing: JSON allows white space before the value, an event
// stream comments.
func (s *server) reply(w http.ResponseWriter, r *http.Request, events <-chan event) (err error) {
	control, kind, beat := http.NewResponseController(w), "application/json", "\n"
	tick, pause := time.Tick(s.cfg.Heartbeat), time.NewTimer(0)
	stream := strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	if stream {
		kind, beat = "text/event-stream", ":\n\n"
	} else {
		pause.Stop() // a proxy may still answer in its own words
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx would hold heartbeats and events back
	control.SetReadDeadline(time.Time{})      // the request is read; its sender may now wait for long
	control.SetWriteDeadline(time.Now().Add(writeLimit))
	for ended := false; !ended; {
		var data []byte
		select {
		case e := <-events:
			ended = e.name == "response"
			switch {
			case stream: // a carriage return, which JSON allows, would end a line and let the agent forge events
				data = fmt.Appendf(nil, "event: %s\ndata: %s\n\n", e.name, bytes.ReplaceAll(e.data, []byte("\r"), nil))
			case ended:
				data = append(e.data, '\n')
			}
		case <-tick:
			data = []byte(beat)
		case <-pause.C:
			err = cmp.Or(err, control.Flush())
		}
		if err == nil && data != nil {
			control.SetWriteDeadline(time.Now().Add(writeLimit + time.Duration(len(data)/slowest)*time.Second))
			_, err = w.Write(data)
			pause.Reset(10 * time.Millisecond) // what comes quickly is sent together
		}
	}
	return cmp.Or(err, control.Flush())
}
