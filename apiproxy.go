package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strings"
)

// The model's API behind the key proxy: which secret goes into which header, and what
// its answers mean for the command.

type apiProxy struct {
	cfg *config
	log *slog.Logger
}

func newAPIProxy(cfg *config, log *slog.Logger) *destination {
	p := &apiProxy{cfg, log}
	forward := &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		ModifyResponse: p.inspect,
		ErrorHandler:   p.outOfReach,
	}
	return &destination{name: toAPI, isAsked: p.isAsked, refuse: refuseAPI, forward: forward}
}

func (p *apiProxy) isAsked(l *lease, r *http.Request) bool {
	return p.cfg.keyProxied && (p.isKey(l, r) || p.isBearer(l, r))
}

// isKey says whether a request asks by the key, isBearer whether by the token: the CLI
// sends the one, the other, or both (measured).
func (p *apiProxy) isKey(l *lease, r *http.Request) bool {
	return p.cfg.apiKey != "" && l.isFor(r.Header.Get("X-Api-Key"))
}

func (p *apiProxy) isBearer(l *lease, r *http.Request) bool {
	placeholder, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	hasBearer := p.cfg.bearer != "" || p.cfg.hasLoginOnly()
	return hasBearer && isBearer && l.isFor(placeholder)
}

// rewrite gives a request the credentials that the CLI would send without a proxy: what
// its placeholders stand for and, beside a key alone, the base URL's login (measured).
// Where that login is the only secret, it is what the agent's token stands for.
func (p *apiProxy) rewrite(r *httputil.ProxyRequest) {
	l := leaseOf(r.In)
	r.SetURL(p.cfg.api)
	r.Out.Header.Del("X-Api-Key")
	r.Out.Header.Del("Authorization")

	if p.isKey(l, r.In) {
		r.Out.Header.Set("X-Api-Key", p.cfg.apiKey)
	}
	login := p.cfg.api.User
	switch {
	case p.isBearer(l, r.In) && p.cfg.bearer != "":
		r.Out.Header.Set("Authorization", "Bearer "+p.cfg.bearer)
	case login != nil:
		password, _ := login.Password()
		r.Out.SetBasicAuth(login.Username(), password)
	}
}

var errSwitches = errors.New("it switched to another protocol")

// inspect stops the agent whose request was refused for its key, as the CLI would try
// for minutes (measured), and notes until when the API has too much to do.
func (p *apiProxy) inspect(r *http.Response) error {
	isMessage := strings.HasSuffix(r.Request.URL.Path, "/v1/messages")
	switch {
	case r.StatusCode == http.StatusSwitchingProtocols:
		return errSwitches
	case r.StatusCode < 100: // no HTTP
		return errors.New("it has no status")
	case r.StatusCode == http.StatusUnauthorized && isMessage:
		leaseOf(r.Request).stop(errKeyRefused)
	case isBusy(r.StatusCode):
		until := retryAfter(r.Header)
		leaseOf(r.Request).retryAt.Store(&until)
	}
	return nil
}

// outOfReach tells the CLI, whose result quotes it, and once a command the log.
func (p *apiProxy) outOfReach(w http.ResponseWriter, r *http.Request, err error) {
	host, why := p.cfg.api.Host, reasonOf(err)
	wentAway := r.Context().Err() != nil
	if !wentAway {
		leaseOf(r).apiIsAway.Do(func() {
			p.log.Warn("cannot reach the model's API", "host", host, "error", why)
		})
	}
	refuseAPI(w, http.StatusBadGateway,
		fmt.Sprintf("cannot reach the model's API at %s: %s", host, why))
}

// refuseAPI answers in the API's own form, which the CLI shows.
func refuseAPI(w http.ResponseWriter, status int, why string) {
	kind := map[int]string{
		http.StatusBadRequest: "invalid_request_error",
		http.StatusForbidden:  "permission_error",
		http.StatusNotFound:   "not_found_error",
		http.StatusBadGateway: "api_error",
	}[status]
	problem := map[string]string{"type": kind, "message": "vm-server " + why}
	writeJSON(w, status, map[string]any{"type": "error", "error": problem})
}
