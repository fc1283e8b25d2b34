package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// What each request is answered: an accepted command or a refused one. Who may ask
// stands in doors.go.

// handler is the server's http.Handler.
type handler struct {
	cfg      *config
	log      *slog.Logger
	refusals *slog.Logger
	doors    *doors
	queue    *queue
	ledger   *ledger
	commands *commands
	keeper   *keeper
	health   *health
	running  context.Context // ends when every command must
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/command":
		if h.allows(w, r, "POST", "DELETE") {
			h.command(w, r)
		}
	case "/healthz":
		if h.allows(w, r, "GET", "HEAD") {
			h.tellHealth(w, r)
		}
	default:
		h.refuse(w, r, fail("not_found", "there are POST and DELETE /command, and GET /healthz"))
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

func (h *handler) command(w http.ResponseWriter, r *http.Request) {
	var err error
	if r.Method == "DELETE" {
		err = h.stop(w, r)
	} else {
		err = h.run(w, r)
	}
	if err != nil {
		h.refuse(w, r, err)
	}
}

// run answers POST /command. An error says why the command was not accepted.
func (h *handler) run(w http.ResponseWriter, r *http.Request) error {
	req, err := h.doors.admit(w, r)
	if err != nil {
		return err
	}
	if req.key != "" {
		return h.runForKey(w, r, req)
	}
	return h.runForClient(w, r, req)
}

// runForClient runs a command that belongs to its client: it ends when the client
// goes away, and waits for a slow one.
func (h *handler) runForClient(w http.ResponseWriter, r *http.Request, req *request) error {
	place, err := h.queue.enter()
	if err != nil {
		return err
	}
	defer h.queue.answered()

	ctx, cancel := context.WithCancelCause(h.running)
	defer cancel(nil)
	// net/http ends the request's context also when a write fails.
	unwatch := context.AfterFunc(r.Context(), func() { cancel(errClientGone) })
	defer unwatch()

	events := make(chan event)
	over := make(chan *transcript, 1)
	tell := func(e event) { events <- e }
	go func() { over <- h.commands.run(ctx, place, job{req, tell}) }()
	failed := reply(w, formOf(r), h.cfg.Heartbeat, events, nil)

	h.logCommand(rand.Text()[:8], r.RemoteAddr, <-over, "answered", failed == nil)
	go h.keeper.renew() // the answer ends when this function returns
	return nil
}

// runForKey answers with the key's command, which goes on whatever its clients do.
func (h *handler) runForKey(w http.ResponseWriter, r *http.Request, req *request) error {
	v, err := h.ledger.visit(req)
	if err != nil {
		return err
	}
	if v.isCounted {
		defer h.queue.answered()
	}
	if v.isReplay {
		w.Header().Set("Idempotency-Replayed", "true")
	}

	form := formOf(r)
	events := v.follow(r.Context(), isStream(form))
	if v.place != nil {
		go h.runVisited(v, req, r.RemoteAddr) // not before, or who began it would miss its begin
	}
	failed := reply(w, form, h.cfg.Heartbeat, events, r.Context().Done())

	h.log.Info("client",
		"request", v.id,
		"remote", r.RemoteAddr,
		"replayed", v.isReplay,
		"answered", failed == nil)
	return nil
}

// runVisited runs the command of a visit that began it.
func (h *handler) runVisited(v *visit, req *request, remote string) {
	defer h.queue.answered()
	t := h.commands.run(v.ctx, v.place, job{req, v.tell})
	h.ledger.end(v.keyed)

	h.logCommand(v.id, remote, t)
	go h.keeper.renew()
}

// stop answers DELETE /command. An error says why nothing was stopped.
func (h *handler) stop(w http.ResponseWriter, r *http.Request) error {
	err := h.doors.recognize(w, r)
	if err != nil {
		return err
	}

	key, err := h.doors.key(r)
	if err != nil {
		return err
	}
	if key == "" {
		return errors.New("name the command to stop by its Idempotency-Key")
	}

	k := h.ledger.stop(key)
	if k == nil {
		return fail("not_found", "no command with this Idempotency-Key waits or runs")
	}
	h.log.Info("stop", "request", k.id, "remote", r.RemoteAddr)
	writeJSON(w, http.StatusAccepted, map[string]any{"status": "stopping"})
	return nil
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

// logCommand logs a command that is over, without its prompt and what came of it.
func (h *handler) logCommand(id, remote string, t *transcript, more ...any) {
	facts := []any{
		"request", id,
		"remote", remote,
		"status", t.Status,
		"code", cmp.Or(t.Error, &problem{}).Code,
		"duration_ms", t.DurationMS,
		"exit", t.exit,
		"warm", t.warm,
		"swept", t.Swept,
		"lines_skipped", t.skipped,
		"conversation_cost_usd", t.CostUSD,
	}
	h.log.Info("command", append(facts, more...)...)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	data, err := encode(value)
	if err != nil { // which is the server's own mistake
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeLimit))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(data, '\n'))
}

// encode writes JSON for programs that aren't browsers: <, > and & as they are.
func encode(value any) ([]byte, error) {
	var out bytes.Buffer
	in := json.NewEncoder(&out)
	in.SetEscapeHTML(false)
	err := in.Encode(value)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), err
}
