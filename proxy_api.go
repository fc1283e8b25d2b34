package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httputil"
	"strings"
)

// apiProxy is the model's API behind the credential proxy: which secret goes into which
// header, and what its answers mean for the command.
type apiProxy struct {
	credentials *credentials
	log         *slog.Logger
}

func newAPIUpstream(cfg *config, log *slog.Logger) *upstream {
	p := &apiProxy{&cfg.credentials, log}
	return &upstream{
		name:          apiUpstream,
		authenticates: p.authenticates,
		writeError:    writeAPIError,
		proxy: &httputil.ReverseProxy{
			Rewrite:        p.rewrite,
			ModifyResponse: p.modifyResponse,
			ErrorHandler:   p.handleError,
		},
	}
}

func (p *apiProxy) authenticates(g *grant, r *http.Request) bool {
	return p.credentials.proxied && (p.hasKey(g, r) || p.hasBearer(g, r))
}

// hasKey reports whether a request has the placeholder of the key, and hasBearer whether it
// has that of the token: the CLI sends one, the other, or both (measured).
func (p *apiProxy) hasKey(g *grant, r *http.Request) bool {
	return p.credentials.key != "" && g.matches(r.Header.Get("X-Api-Key"))
}

func (p *apiProxy) hasBearer(g *grant, r *http.Request) bool {
	placeholder, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	isExpected := p.credentials.bearer != "" || p.credentials.hasLoginOnly()
	return isExpected && isBearer && g.matches(placeholder)
}

// apiRequestHeaders are what the CLI sends (measured), without its credentials. Another one
// could mean something to the API, or to a gateway before it, that no rule here knows.
var apiRequestHeaders = []string{
	"Accept", "Accept-Encoding", "Content-Length", "Content-Type", "User-Agent",
	"Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access", "Anthropic-Version",
	"X-App", "X-Claude-Code-Session-Id",
	"X-Stainless-Arch", "X-Stainless-Lang", "X-Stainless-Os", "X-Stainless-Package-Version",
	"X-Stainless-Retry-Count", "X-Stainless-Runtime", "X-Stainless-Runtime-Version",
	"X-Stainless-Timeout",
}

// rewrite gives a request the credentials that the CLI would send without a proxy: what
// its placeholders stand for and, beside a key only, the base URL's login (measured).
// Where that login is the only secret, it is what the agent's token stands for.
func (p *apiProxy) rewrite(r *httputil.ProxyRequest) {
	g := grantFrom(r.In)
	r.SetURL(p.credentials.api)
	retainHeaders(r.Out.Header, apiRequestHeaders)
	r.Out.Trailer = nil

	if p.hasKey(g, r.In) {
		r.Out.Header.Set("X-Api-Key", p.credentials.key)
	}
	login := p.credentials.api.User
	switch {
	case p.hasBearer(g, r.In) && p.credentials.bearer != "":
		r.Out.Header.Set("Authorization", "Bearer "+p.credentials.bearer)
	case login != nil:
		password, _ := login.Password()
		r.Out.SetBasicAuth(login.Username(), password)
	}

	maps.Copy(r.Out.Header, p.credentials.custom) // in the CLI these count too
}

var (
	errUpgrade  = errors.New("it switched to another protocol")
	errNoStatus = errors.New("its answer has no valid status")
)

// modifyResponse stops the agent whose request was rejected for its key, since the CLI
// would try for minutes (measured), and notes until when the API is overloaded.
func (p *apiProxy) modifyResponse(r *http.Response) error {
	isMessage := strings.HasSuffix(r.Request.URL.Path, "/v1/messages")
	switch {
	case r.StatusCode == http.StatusSwitchingProtocols:
		return errUpgrade
	case r.StatusCode < 100: // which net/http accepts, and cannot send
		return errNoStatus
	case r.StatusCode == http.StatusUnauthorized && isMessage:
		grantFrom(r.Request).stop(errKeyRefused)
	case isOverloaded(r.StatusCode):
		retryAt := retryAfter(r.Header)
		grantFrom(r.Request).retryAt.Store(&retryAt)
	}

	return nil
}

// handleError answers the CLI, whose result quotes it, and logs it once a command.
func (p *apiProxy) handleError(w http.ResponseWriter, r *http.Request, err error) {
	host, reason := p.credentials.api.Host, safeReason(err)
	isCanceled := r.Context().Err() != nil
	if !isCanceled {
		grantFrom(r).logAPIUnreachable.Do(func() {
			p.log.Warn("cannot reach the model's API", "host", host, "error", reason)
		})
	}

	writeAPIError(w, http.StatusBadGateway,
		fmt.Sprintf("cannot reach the model's API at %s: %s", host, reason))
}

// writeAPIError answers in the API's own form, which the CLI shows.
func writeAPIError(w http.ResponseWriter, status int, reason string) {
	kind := map[int]string{
		http.StatusBadRequest: "invalid_request_error",
		http.StatusForbidden:  "permission_error",
		http.StatusNotFound:   "not_found_error",
		http.StatusBadGateway: "api_error",
	}[status]
	problem := map[string]string{"type": kind, "message": "vm-server " + reason}
	writeJSON(w, status, map[string]any{"type": "error", "error": problem})
}
