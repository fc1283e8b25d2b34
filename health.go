package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

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
