package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// handler is the server's http.Handler: it answers each request with the response of an
// operation, or rejects it.
type handler struct {
	cfg        *config
	log        *slog.Logger
	rejectLog  *slog.Logger
	auth       *authenticator
	bodies     *bodyReader
	queue      *queue
	operations *operations
	runner     *runner
	standby    *standby
	health     *health
	files      *fileStore
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isAuthorized := h.auth.isAuthorized(r)
	switch {
	case !isAuthorized:
		w.Header().Set("Connection", "close")
	case h.auth.token != "": // or the agent could hold any number of them
		keepConnection(r)
	}

	var err error
	switch {
	case r.URL.Path == "/command" && r.Method == "POST":
		err = h.postCommand(w, r)
	case r.URL.Path == "/command" && r.Method == "DELETE":
		err = h.deleteCommand(w, r)
	case r.URL.Path == "/command":
		err = methodNotAllowed(w, "POST, DELETE")
	case r.URL.Path == "/healthz" && slices.Contains([]string{"GET", "HEAD"}, r.Method):
		h.serveHealth(w, r)
	case r.URL.Path == "/healthz":
		err = methodNotAllowed(w, "GET, HEAD")
	case strings.HasPrefix(r.URL.Path, "/files/"):
		err = h.serveFiles(w, r)
	default:
		err = errNotFound
	}

	if err != nil {
		h.reject(w, r, err)
	}
}

func methodNotAllowed(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return errorf(codeMethodNotAllowed, "method not allowed: use %s", allowed)
}

// postCommand answers with the operation of the request. An error says why the command was
// not accepted; then nothing has been written.
func (h *handler) postCommand(w http.ResponseWriter, r *http.Request) error {
	req, err := h.readRequest(w, r)
	if err != nil {
		return err
	}
	o, isNew, err := h.operations.start(req, r.RemoteAddr)
	if err != nil {
		return err
	}
	keepConnection(r)
	w.Header().Set("X-Request-Id", o.id)
	isReplay := o.isDone()
	if isReplay {
		w.Header().Set("Idempotency-Replayed", "true")
	}
	if isNew {
		go h.runner.run(o)
	}

	// Without a key the operation is its client's: it ends when the client leaves, and that
	// is the response then, which a client that closed only its own side still reads.
	gone := r.Context().Done()
	if req.key == "" {
		stop := context.AfterFunc(r.Context(), func() { o.cancel(errClientGone) })
		defer stop()
		gone = nil
	}

	send := sendJSON
	if wantsStream(r) {
		send = sendEvents
	}
	err = send(w, o, h.cfg.Heartbeat, gone)

	h.log.Info("client",
		"request", o.id,
		"remote", r.RemoteAddr,
		"replayed", isReplay,
		"answered", err == nil)
	if err != nil {
		panic(http.ErrAbortHandler) // or net/http would end the response as if it were whole
	}
	return nil
}

// readRequest authenticates a client before it reads anything of the body.
func (h *handler) readRequest(w http.ResponseWriter, r *http.Request) (*request, error) {
	err := h.auth.authorize(w, r)
	if err != nil {
		return nil, err
	}
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if contentType != "application/json" {
		return nil, errorf(codeUnsupportedMediaType, "send Content-Type: application/json")
	}
	key, err := h.auth.idempotencyKey(r)
	if err != nil {
		return nil, err
	}

	body, release, err := h.bodies.read(w, r)
	defer release()
	if err != nil {
		return nil, err
	}
	req, err := decodeRequest(body)
	if err != nil {
		return nil, err
	}
	req.key = key
	req.digest = sha256.Sum256(body)
	return req, nil
}

// deleteCommand stops the command of an Idempotency-Key.
func (h *handler) deleteCommand(w http.ResponseWriter, r *http.Request) error {
	err := h.auth.authorize(w, r)
	if err != nil {
		return err
	}
	key, err := h.auth.idempotencyKey(r)
	if err != nil {
		return err
	}
	if key == "" {
		return errors.New("send the Idempotency-Key of the command to stop")
	}

	o := h.operations.cancel(key)
	if o == nil {
		return errorf(codeNotFound, "no command with this Idempotency-Key waits or runs")
	}
	h.log.Info("stop", "request", o.id, "remote", r.RemoteAddr)
	writeJSON(w, http.StatusAccepted, map[string]any{"status": "stopping"})
	return nil
}

// reject answers and logs a request that was not accepted.
func (h *handler) reject(w http.ResponseWriter, r *http.Request, err error) {
	reason := asAPIError(err)
	if reason.Code == codeQueueFull {
		w.Header().Set("Retry-After", "10")
	}
	id := newRequestID()
	w.Header().Set("X-Request-Id", id)
	h.rejectLog.Info("rejected",
		"request", id,
		"remote", r.RemoteAddr,
		"status", "rejected",
		"code", reason.Code)
	writeJSON(w, httpStatus[reason.Code],
		map[string]any{"status": "rejected", "error": reason, "request_id": id})
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	data, err := encode(value)
	if err != nil { // which is the server's own mistake
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}

	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(data, '\n'))
}

// encode writes JSON for programs that are not browsers: with <, > and & as they are.
func encode(value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), err
}

// health is what GET /healthz reports of commands: the latest of each. It is safe for
// concurrent use.
type health struct {
	mu         sync.Mutex
	busySince  time.Time // zero while no command runs
	reapedAt   time.Time // zero before the first command
	killed     int       // after the last command
	cliVersion string
}

func (h *health) setBusy(since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busySince = since
}

func (h *health) recordKilled(count int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reapedAt = time.Now()
	h.killed = count
}

// setVersion records what the CLI claims to be. The agent could print anything, so only
// the beginning is kept.
func (h *health) setVersion(version string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cliVersion = fmt.Sprintf("%.40s", version)
}

func (h *health) describe(state map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()

	if !h.busySince.IsZero() {
		state["busy_since"] = h.busySince
	}
	if !h.reapedAt.IsZero() {
		state["last_sweep"] = map[string]any{"time": h.reapedAt, "killed": h.killed}
	}
	if h.cliVersion != "" {
		state["cli_version"] = strings.ToValidUTF8(h.cliVersion, "")
	}
}

// serveHealth tells anybody the status, and the rest to those who may send commands.
func (h *handler) serveHealth(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	state := map[string]any{"status": "ok"}
	closed := h.queue.whyClosed()
	if closed != nil {
		status = http.StatusServiceUnavailable
		state["status"] = "unavailable"
	}

	if h.auth.isAuthorized(r) {
		length := h.queue.length()
		state["busy"] = length > 0
		state["queued"] = max(0, length-1)
		state["version"] = version
		state["key_proxy"] = h.cfg.credentials.proxied
		state["git_token"] = h.cfg.GitToken != ""
		state["warm"] = h.standby.state()
		h.health.describe(state)
		if closed != nil {
			state["reason"] = closed.Error()
		}
	}

	writeJSON(w, status, state)
}
