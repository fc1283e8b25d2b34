package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The key proxy lets the agent use the model's API without the key or the token: its
// requests come to a loopback port with a placeholder, its own and void after its
// command, and leave with the secret. What holds here is all that keeps the secrets:
// the placeholder is compared before anything else, only the routes are let through,
// and no answer of the proxy's own repeats what was sent.

// route is a request that is let through: its method, and its path as it is sent,
// before anything in it is decoded.
type route struct{ method, path string }

// routes are what the CLI asks for (measured), whatever the query. It does well
// without HEAD /api/hello. Batches and files would outlive the command, and TRACE
// may be answered with the key.
var routes = []route{
	{"POST", "/v1/messages"},
	{"POST", "/v1/messages/count_tokens"}, // for large files and /context
	{"GET", "/v1/models"},                 // by CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY
}

// lease is one agent's right to use the key.
type lease struct {
	placeholder string
	stop        context.CancelCauseFunc   // ends the agent, with the reason
	outOfReach  sync.Once                 // logs it, as the CLI asks again and again
	retryAt     atomic.Pointer[time.Time] // by the last answer that said: not now
}

// wanted is when the API wants to be asked again, zero if it said nothing.
func (l *lease) wanted() time.Time {
	until := l.retryAt.Load()
	if until == nil {
		return time.Time{}
	}
	return *until
}

// leased is where a request's context has its lease.
type leased struct{}

func leaseOf(r *http.Request) *lease { return r.Context().Value(leased{}).(*lease) }

// keyProxy is an http.Handler, safe for concurrent use.
type keyProxy struct {
	cfg     *config
	log     *slog.Logger
	forward *httputil.ReverseProxy
	present atomic.Pointer[lease] // nil while nobody may use the key
}

func newKeyProxy(cfg *config, log *slog.Logger) *keyProxy {
	p := &keyProxy{cfg: cfg, log: log}
	p.forward = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		FlushInterval:  -1, // events as they come
		ModifyResponse: p.inspect,
		ErrorHandler:   p.outOfReach,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return p
}

// allow lets the holder of l use the key from now on, and nobody else; nil lets
// nobody.
func (p *keyProxy) allow(l *lease) { p.present.Store(l) }

func (p *keyProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l := p.present.Load()
	if !p.isKey(l, r) && !p.isBearer(l, r) {
		refuseAPI(w, http.StatusForbidden, "permission_error",
			"vm-server serves the agent that runs, by its own placeholder")
		return
	}
	if !isRoute(r) {
		refuseAPI(w, http.StatusNotFound, "not_found_error",
			"vm-server forwards what Claude Code needs alone, such as POST /v1/messages")
		return
	}
	asksToUpgrade := len(r.Header.Values("Upgrade")) > 0
	if asksToUpgrade {
		refuseAPI(w, http.StatusBadRequest, "invalid_request_error",
			"vm-server forwards no Upgrade to another protocol")
		return
	}

	p.pass(w, r.WithContext(context.WithValue(r.Context(), leased{}, l)))
}

// pass forwards a request. An answer may begin before the request is read; unless
// told, net/http would then take the rest of the body from the transport, which
// breaks the answer off. What is left in the end is read here, where net/http would
// panic (golang.org/issue/68560).
func (p *keyProxy) pass(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	control.EnableFullDuplex()
	control.SetReadDeadline(time.Time{}) // an answer may take longer

	p.forward.ServeHTTP(w, r)

	control.SetReadDeadline(time.Now().Add(10 * time.Second))
	io.Copy(io.Discard, r.Body)
}

// isKey says whether a request asks by the key, isBearer whether by the token: the CLI
// sends the one, the other, or both (measured).
func (p *keyProxy) isKey(l *lease, r *http.Request) bool {
	return p.cfg.apiKey != "" && l.isFor(r.Header.Get("X-Api-Key"))
}

func (p *keyProxy) isBearer(l *lease, r *http.Request) bool {
	placeholder, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return p.cfg.bearer != "" && isBearer && l.isFor(placeholder)
}

func (l *lease) isFor(placeholder string) bool {
	if l == nil {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(placeholder), []byte(l.placeholder)) == 1
}

// isRoute judges the target as it was sent: the next server may decode it otherwise.
func isRoute(r *http.Request) bool {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return slices.Contains(routes, route{r.Method, path})
}

// rewrite gives a request the credentials that the CLI would send without a proxy: what
// its placeholders stand for and, beside a key alone, the base URL's login (measured).
func (p *keyProxy) rewrite(r *httputil.ProxyRequest) {
	l := leaseOf(r.In)
	r.SetURL(p.cfg.api)
	r.Out.Header.Del("X-Api-Key")
	r.Out.Header.Del("Authorization")

	if p.isKey(l, r.In) {
		r.Out.Header.Set("X-Api-Key", p.cfg.apiKey)
	}
	login := p.cfg.api.User
	switch {
	case p.isBearer(l, r.In):
		r.Out.Header.Set("Authorization", "Bearer "+p.cfg.bearer)
	case login != nil:
		password, _ := login.Password()
		r.Out.SetBasicAuth(login.Username(), password)
	}
}

var errSwitches = errors.New("it switched to another protocol")

// inspect stops the agent whose request was refused for its key, as the CLI would try
// for minutes (measured), and notes until when the API has too much to do.
func (p *keyProxy) inspect(r *http.Response) error {
	isMessage := strings.HasSuffix(r.Request.URL.Path, "/v1/messages")
	switch {
	case r.StatusCode == http.StatusSwitchingProtocols:
		return errSwitches
	case r.StatusCode == http.StatusUnauthorized && isMessage:
		leaseOf(r.Request).stop(errKeyRefused)
	case isBusy(r.StatusCode):
		until := retryAfter(r.Header)
		leaseOf(r.Request).retryAt.Store(&until)
	}
	return nil
}

// outOfReach tells the CLI, whose result quotes it, and once a command the log.
func (p *keyProxy) outOfReach(w http.ResponseWriter, r *http.Request, err error) {
	host, why := p.cfg.api.Host, reasonOf(err)
	wentAway := r.Context().Err() != nil
	if !wentAway {
		leaseOf(r).outOfReach.Do(func() {
			p.log.Warn("cannot reach the model's API", "host", host, "error", why)
		})
	}
	message := fmt.Sprintf("vm-server cannot reach the model's API at %s: %s", host, why)
	refuseAPI(w, http.StatusBadGateway, "api_error", message)
}

// reasonOf never quotes an answer, as errors do: it may repeat the key or a prompt.
func reasonOf(err error) string {
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return certificate.Error()
	case errors.Is(err, errSwitches):
		return err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection"
	default:
		return "neither it nor a proxy on the way gave a valid answer"
	}
}

// refuseAPI answers in the API's own form, which the CLI shows.
func refuseAPI(w http.ResponseWriter, status int, kind, message string) {
	why := map[string]string{"type": kind, "message": message}
	writeJSON(w, status, map[string]any{"type": "error", "error": why})
}
