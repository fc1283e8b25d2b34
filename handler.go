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
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
)

// The doors: who may send a command, and what an accepted or a refused request is
// answered. A request is held against every door before its body is read, and its
// body is read whole before it enters the queue.

// handler is the server's http.Handler.
type handler struct {
	cfg      *config
	log      *slog.Logger
	refusals *slog.Logger
	queue    *queue
	commands *commands
	keeper   *keeper
	health   *health
	running  context.Context // ends when every command must
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/command":
		if h.allows(w, r, "POST") {
			h.command(w, r)
		}
	case "/healthz":
		if h.allows(w, r, "GET", "HEAD") {
			h.tellHealth(w, r)
		}
	default:
		h.refuse(w, r, fail("not_found", "there are POST /command and GET /healthz"))
	}
}

// allows refuses a request whose method is none of these.
func (h *handler) allows(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, method := range methods {
		if r.Method == method {
			return true
		}
	}

	list := strings.Join(methods, ", ")
	w.Header().Set("Allow", list)
	h.refuse(w, r, fail("method_not_allowed", "use %s", list))
	return false
}

// command answers POST /command.
func (h *handler) command(w http.ResponseWriter, r *http.Request) {
	req, err := h.admit(w, r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	place, err := h.queue.enter()
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	defer h.queue.answered()

	ctx, cancel := context.WithCancelCause(h.running)
	defer cancel(nil)
	// net/http ends the request's context also when a write fails.
	unwatch := context.AfterFunc(r.Context(), func() { cancel(errClientGone) })
	defer unwatch()

	events := make(chan event)
	over := make(chan *transcript, 1)
	go func() { over <- h.commands.run(ctx, place, job{req, events}) }()
	err = reply(w, r, h.cfg.Heartbeat, events)

	h.logCommand(r, <-over, err)
	go h.keeper.renew() // the answer ends when this function returns
}

// admit holds a request against every door and reads it. Its errors say what is
// wrong and where.
func (h *handler) admit(w http.ResponseWriter, r *http.Request) (*request, error) {
	if !h.isFromHere(r) {
		return nil, fail("forbidden_origin", "a web page's cross-site request is refused, "+
			"and so is a Host that is not loopback while no VM_TOKEN is set")
	}
	if !h.hasToken(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, fail("unauthorized",
			"send the server's VM_TOKEN as Authorization: Bearer TOKEN")
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != "application/json" {
		return nil, fail("unsupported_media_type", "send Content-Type: application/json")
	}

	// To its end, or net/http would not notice that the client goes away.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, fail("body_too_large",
			"the body may have %d bytes (VM_MAX_BODY)", h.cfg.MaxBody)
	}
	if err != nil {
		return nil, errors.New("cannot read the body: it ended early, or took too long")
	}
	return decodeRequest(body)
}

// isFromHere keeps web pages out: cross-site requests and, while no token is asked
// for, those that DNS rebinding makes same-site. It is no authentication.
func (h *handler) isFromHere(r *http.Request) bool {
	if http.NewCrossOriginProtection().Check(r) != nil {
		return false
	}
	if h.cfg.Token != "" {
		return true
	}

	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host // without a port
	}
	return isLoopback(host)
}

// hasToken compares digests, so that the time taken tells nothing of the token or
// its length.
func (h *handler) hasToken(r *http.Request) bool {
	if h.cfg.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}

	want := sha256.Sum256([]byte(h.cfg.Token))
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// refuse answers and logs a request that was not accepted.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	why := refusal(err)
	status := why.httpStatus()
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "10")
	}

	h.refusals.Info("refused", "remote", r.RemoteAddr, "status", "rejected", "code", why.Code)
	writeJSON(w, status, map[string]any{"status": "rejected", "error": why})
}

// logCommand logs an answered command, without its prompt and what came of it.
func (h *handler) logCommand(r *http.Request, t *transcript, err error) {
	h.log.Info("command",
		"request", rand.Text()[:8],
		"remote", r.RemoteAddr,
		"status", t.Status,
		"code", cmp.Or(t.Error, &problem{}).Code,
		"duration_ms", t.DurationMS,
		"exit", t.exit,
		"warm", t.warm,
		"swept", t.Swept,
		"lines_skipped", t.skipped,
		"conversation_cost_usd", t.CostUSD,
		"answered", err == nil)
}

// tellHealth answers GET /healthz: anybody gets the status, and who may send a
// command the rest.
func (h *handler) tellHealth(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	state := map[string]any{"status": "ok"}
	why := h.queue.closed()
	if why != nil {
		status = http.StatusServiceUnavailable
		state["status"] = "unavailable"
	}

	if h.isFromHere(r) && h.hasToken(r) {
		h.describe(state)
	}
	writeJSON(w, status, state)
}

func (h *handler) describe(state map[string]any) {
	length := h.queue.length()
	state["busy"] = length > 0
	state["queued"] = max(0, length-1)
	state["version"] = version
	state["key_proxy"] = h.cfg.keyProxied
	state["warm"] = h.keeper.state()
	h.health.describe(state)

	why := h.queue.closed()
	if why != nil {
		state["reason"] = why.Error()
	}
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeLimit))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(encode(value), '\n'))
}

// encode writes JSON for programs that aren't browsers: <, > and & as they are.
func encode(value any) []byte {
	var out bytes.Buffer
	in := json.NewEncoder(&out)
	in.SetEscapeHTML(false)
	in.Encode(value)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}
