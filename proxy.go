package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The key proxy lets the agent use the model's API and the git host without their
// secrets: its requests come to a loopback port with a placeholder, its own and void
// after its command, and leave with the secret (apiproxy.go, gitproxy.go). What holds
// here is all that keeps the secrets: the placeholder is compared before anything
// else, only the routes are let through, and no answer of the proxy's own repeats what
// was sent.

// route is a request that is let through: to whom, its method, its target as it is
// sent, before anything in it is decoded, and the type of its body, where an API may
// have a path that ends like git's.
type route struct {
	to     string
	method string
	target *regexp.Regexp
	kind   string
}

const (
	toAPI = "the model's API"
	toGit = "the git host"

	query = `(\?.*)?`

	// repository is the path of one: nothing in it is encoded, and no part is a step up.
	repository = `(/\.{0,2}[A-Za-z0-9_~+@-][A-Za-z0-9._~+@-]*)+`

	fetches = "application/x-git-upload-pack-request"
	pushes  = "application/x-git-receive-pack-request"
)

// routes are what the CLI asks the API for (measured), and git's smart protocol
// (gitprotocol-http(5)). The CLI does well without HEAD /api/hello. Batches and files
// would outlive the command, and TRACE may be answered with the key.
var routes = []route{
	{toAPI, "POST", whole(`/v1/messages` + query), ""},
	{toAPI, "POST", whole(`/v1/messages/count_tokens` + query), ""}, // for large files and /context
	// By CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY.
	{toAPI, "GET", whole(`/v1/models` + query), ""},

	{toGit, "GET", whole(repository + `/info/refs\?service=git-(upload|receive)-pack`), ""},
	{toGit, "POST", whole(repository + `/git-upload-pack`), fetches},
	{toGit, "POST", whole(repository + `/git-receive-pack`), pushes},
}

func whole(pattern string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + pattern + `)$`) }

// isRoute judges the target as it was sent: the next server may decode it otherwise.
func isRoute(to string, r *http.Request) bool {
	for _, route := range routes {
		isTarget := route.target.MatchString(r.RequestURI)
		isKind := route.kind == "" || slices.Equal(r.Header["Content-Type"], []string{route.kind})
		if route.to == to && route.method == r.Method && isTarget && isKind {
			return true
		}
	}
	return false
}

// lease is one agent's right to use the secrets.
type lease struct {
	placeholder string
	stop        context.CancelCauseFunc // ends the agent, with the reason
	over        context.Context         // ends with the right; set by lend

	apiIsAway  sync.Once // logs it, as the CLI asks again and again
	gitIsAway  sync.Once // likewise
	gitRefuses sync.Once

	retryAt atomic.Pointer[time.Time] // by the API's last answer that said: not now
}

func (l *lease) isFor(placeholder string) bool {
	return subtle.ConstantTimeCompare([]byte(placeholder), []byte(l.placeholder)) == 1
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

// destination is who gets what is let through.
type destination struct {
	name    string
	isAsked func(l *lease, r *http.Request) bool // by the placeholder, where its secret belongs
	refuse  func(w http.ResponseWriter, status int, why string)
	forward *httputil.ReverseProxy // with the secret; newKeyProxy sets what both have
}

// keyProxy is an http.Handler, safe for concurrent use.
type keyProxy struct {
	cfg     *config
	api     *destination
	git     *destination
	present atomic.Pointer[lease] // nil while nobody may use the secrets
}

func newKeyProxy(cfg *config, log *slog.Logger) *keyProxy {
	p := &keyProxy{cfg: cfg, api: newAPIProxy(cfg, log), git: newGitProxy(cfg, log)}
	for _, to := range []*destination{p.api, p.git} {
		to.forward.FlushInterval = -1 // events and progress as they come
		// What net/http says of an answer that breaks off may quote it. The agent notices,
		// and says what it makes of it.
		to.forward.ErrorLog = stdlog.New(io.Discard, "", 0)
	}
	return p
}

// lend lets the holder of l use the secrets, and nobody else, until end is called. That
// breaks off what is under way: the connection may be held by who is no child of the
// agent's.
func (p *keyProxy) lend(l *lease) (end func()) {
	over, cancel := context.WithCancel(context.Background())
	l.over = over
	p.present.Store(l)
	return func() {
		p.present.Store(nil)
		cancel()
	}
}

func (p *keyProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to := p.api
	if p.cfg.isForGit(r) {
		to = p.git
	}

	l := p.present.Load()
	asksToUpgrade := len(r.Header.Values("Upgrade")) > 0
	hasNeedlessBody := r.Method == "GET" && r.ContentLength != 0
	switch {
	case l == nil || !to.isAsked(l, r):
		to.refuse(w, http.StatusForbidden, "serves the agent whose command runs, by its own placeholder")
	case !isRoute(to.name, r):
		to.refuse(w, http.StatusNotFound, "forwards what Claude Code and git need of "+to.name+" alone")
	case asksToUpgrade:
		to.refuse(w, http.StatusBadRequest, "forwards no Upgrade to another protocol")
	case hasNeedlessBody: // which another server may take for the next request
		to.refuse(w, http.StatusBadRequest, "forwards no GET with a body")
	default:
		to.pass(w, r, l)
	}
}

// pass forwards a request. An answer may begin before the request is read; unless
// told, net/http would then take the rest of the body from the transport, which
// breaks the answer off. What is left in the end is read here, where net/http would
// panic (golang.org/issue/68560).
func (d *destination) pass(w http.ResponseWriter, r *http.Request, l *lease) {
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), leased{}, l))
	defer cancel()
	control := http.NewResponseController(w)
	unwatch := context.AfterFunc(l.over, func() {
		cancel()
		control.SetWriteDeadline(time.Now()) // who reads nothing holds nothing up
	})
	defer unwatch()
	control.EnableFullDuplex()
	control.SetReadDeadline(time.Time{}) // an answer may take longer

	d.forward.ServeHTTP(&oneHeader{ResponseWriter: w}, r.WithContext(ctx))

	control.Flush()
	control.SetReadDeadline(time.Now().Add(10 * time.Second))
	io.Copy(io.Discard, r.Body)
}

// oneHeader sends one header: no informational answer before, no trailer behind.
type oneHeader struct {
	http.ResponseWriter
	isSent bool
}

func (w *oneHeader) Header() http.Header {
	if w.isSent {
		return http.Header{}
	}
	return w.ResponseWriter.Header()
}

func (w *oneHeader) WriteHeader(status int) {
	isInformational := status >= 100 && status < 200
	if isInformational {
		return
	}
	w.isSent = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *oneHeader) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// reasonOf never quotes an answer, as errors do: it may repeat the key or a prompt.
func reasonOf(err error) string {
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return "its certificate is not for it, has expired, or is by nobody who is known here"
	case errors.Is(err, errSwitches):
		return err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection"
	default:
		return "neither it nor a proxy on the way gave a valid answer"
	}
}
