package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// GET /healthz, and what the server knows of its own state for it: each part reports
// what happened, and health keeps the last of it.

// health is safe for concurrent use.
type health struct {
	mu        sync.Mutex
	busySince time.Time // zero while no command runs
	sweptAt   time.Time // zero before the first sweep
	killed    int       // by the last sweep
	cli       string    // its version, as it said
}

// begin says that a command runs.
func (h *health) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busySince = time.Now()
}

// end says that it runs no more.
func (h *health) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busySince = time.Time{}
}

// swept says that a sweep is over and how many it killed.
func (h *health) swept(killed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweptAt = time.Now()
	h.killed = killed
}

// runs says which version the CLI claims to be. A hostile agent chooses it, so
// little of it is kept.
func (h *health) runs(version string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cli = fmt.Sprintf("%.40s", version)
}

// describe adds what is known.
func (h *health) describe(state map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()

	if !h.busySince.IsZero() {
		state["busy_since"] = h.busySince
	}
	if !h.sweptAt.IsZero() {
		state["last_sweep"] = map[string]any{"time": h.sweptAt, "killed": h.killed}
	}
	if h.cli != "" {
		state["cli_version"] = h.cli
	}
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

	if h.doors.isFromHere(r) && h.doors.hasToken(r) {
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
	state["git_token"] = h.cfg.GitToken != ""
	state["warm"] = h.keeper.state()
	h.health.describe(state)

	why := h.queue.closed()
	if why != nil {
		state["reason"] = why.Error()
	}
}
