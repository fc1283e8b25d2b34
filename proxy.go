package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// allowRule is a request that is forwarded: its upstream, its method, its target as it is
// sent, before anything in it is decoded, and the type of its body, where an API may have a
// path that ends like git's.
type allowRule struct {
	upstream    string
	method      string
	target      *regexp.Regexp
	contentType string
}

const (
	apiUpstream = "the model's API"
	gitUpstream = "the git host"

	optionalQuery = `(\?.*)?`

	// repository is the path of one: nothing in it is encoded, and no part is a step up.
	repository = `(/\.{0,2}[A-Za-z0-9_~+@-][A-Za-z0-9._~+@-]*)+`

	advertisement   = `/info/refs\?service=git-(upload|receive)-pack`
	uploadPackType  = "application/x-git-upload-pack-request"  // of clone and fetch
	receivePackType = "application/x-git-receive-pack-request" // of push
)

// allowRules are what the CLI asks the API for (measured), and git's smart protocol
// (gitprotocol-http(5)). The CLI does well without HEAD /api/hello. Batches and files
// would outlive the command, and TRACE may be answered with the key.
var allowRules = []allowRule{
	{apiUpstream, "POST", anchored(`/v1/messages` + optionalQuery), ""},
	// For large files and /context.
	{apiUpstream, "POST", anchored(`/v1/messages/count_tokens` + optionalQuery), ""},
	// With CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY.
	{apiUpstream, "GET", anchored(`/v1/models` + optionalQuery), ""},

	{gitUpstream, "GET", anchored(repository + advertisement), ""},
	{gitUpstream, "POST", anchored(repository + `/git-upload-pack`), uploadPackType},
	{gitUpstream, "POST", anchored(repository + `/git-receive-pack`), receivePackType},
}

func anchored(pattern string) *regexp.Regexp { return regexp.MustCompile(`^(?:` + pattern + `)$`) }

// isAllowed judges the target as it was sent: the next server may decode it otherwise.
func isAllowed(upstream string, r *http.Request) bool {
	for _, rule := range allowRules {
		isTarget := rule.target.MatchString(r.RequestURI)
		isType := rule.contentType == "" ||
			slices.Equal(r.Header["Content-Type"], []string{rule.contentType})
		if rule.upstream == upstream && rule.method == r.Method && isTarget && isType {
			return true
		}
	}

	return false
}

// retainHeaders removes what the next server does not need, and could take for something else.
func retainHeaders(header http.Header, names []string) {
	for name := range header {
		if !slices.Contains(names, name) {
			delete(header, name)
		}
	}
}

// grant is one agent's right to use the credentials.
type grant struct {
	placeholder string
	stop        context.CancelCauseFunc // ends the agent, with the reason
	revoked     context.Context         // ends with the right; set by allow

	logAPIUnreachable sync.Once // because the CLI asks again and again
	logGitUnreachable sync.Once
	logGitRejected    sync.Once

	retryAt atomic.Pointer[time.Time] // by the API's last answer that means: not now
	outage  atomic.Pointer[outage]    // of the API, nil while it answers
}

// outage is a time in which the API cannot be reached.
type outage struct{ reason *apiError }

const (
	dialTimeout = 5 * time.Second

	// outageTimeout is how long an outage may last before it ends the command, since the
	// CLI itself would try for three minutes (measured).
	outageTimeout = 8 * time.Second
)

// recordOutage notes that the API could not be reached. A certificate that is not trusted
// will not be later.
func (g *grant) recordOutage(reason *apiError, isFinal bool) {
	o := &outage{reason}
	isFirst := g.outage.CompareAndSwap(nil, o)
	switch {
	case isFinal:
		g.stop(reason)
	case isFirst:
		time.AfterFunc(outageTimeout, func() {
			if g.outage.Load() == o {
				g.stop(reason)
			}
		})
	}
}

// unreachable returns why the API cannot be reached, nil if it can.
func (g *grant) unreachable() *apiError {
	o := g.outage.Load()
	if o == nil {
		return nil
	}
	return o.reason
}

// matches compares in constant time.
func (g *grant) matches(placeholder string) bool {
	return subtle.ConstantTimeCompare([]byte(placeholder), []byte(g.placeholder)) == 1
}

// retryTime is when the API wants to be asked again, zero if it did not say.
func (g *grant) retryTime() time.Time {
	at := g.retryAt.Load()
	if at == nil {
		return time.Time{}
	}

	return *at
}

// grantKey is the key of a request's grant in its context.
type grantKey struct{}

func grantFrom(r *http.Request) *grant { return r.Context().Value(grantKey{}).(*grant) }

// upstream gets the requests that are forwarded.
type upstream struct {
	name string

	// authenticates reports whether a request has the placeholder where the secret belongs.
	authenticates func(g *grant, r *http.Request) bool

	writeError func(w http.ResponseWriter, status int, reason string)
	proxy      *httputil.ReverseProxy // adds the secret; newCredentialProxy sets what both have
}

// credentialProxy lets the agent use the model's API and the git host without their
// credentials: its requests come to a loopback port with a placeholder, which is its own
// and void after its command, and leave with the secret (proxy_api.go, proxy_git.go). All
// that protects the secrets is here: the placeholder is compared before anything else, only
// what is in allowRules is forwarded, and no answer of the proxy's own repeats what was
// sent. It is an http.Handler, safe for concurrent use.
type credentialProxy struct {
	cfg     *config
	api     *upstream
	git     *upstream
	current atomic.Pointer[grant] // nil while nobody may use the credentials
}

func newCredentialProxy(cfg *config, log *slog.Logger) *credentialProxy {
	p := &credentialProxy{cfg: cfg, api: newAPIUpstream(cfg, log), git: newGitUpstream(cfg, log)}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	transport.TLSClientConfig = cfg.tls
	if cfg.proxy != nil { // and not that of the environment, which the agent knows
		transport.Proxy = http.ProxyURL(cfg.proxy)
	}
	for _, to := range []*upstream{p.api, p.git} {
		to.proxy.Transport = transport
		to.proxy.FlushInterval = -1 // events and progress as they come
		// What net/http says of an answer that breaks off may quote it. The agent notices,
		// and prints what it makes of it.
		to.proxy.ErrorLog = stdlog.New(io.Discard, "", 0)
	}

	return p
}

// allow lets the agent of a grant use the credentials, and nobody else, until revoke is
// called. That ends requests that are under way: their connections may be held by a process
// that is not below the agent.
func (p *credentialProxy) allow(g *grant) (revoke func()) {
	revoked, cancel := context.WithCancel(context.Background())
	g.revoked = revoked
	p.current.Store(g)
	return func() {
		p.current.Store(nil)
		cancel()
	}
}

func (p *credentialProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to := p.api
	if p.cfg.isGitRequest(r) {
		to = p.git
	}

	g := p.current.Load()
	asksToUpgrade := len(r.Header.Values("Upgrade")) > 0
	hasNeedlessBody := r.Method == "GET" && r.ContentLength != 0
	switch {
	case g == nil || !to.authenticates(g, r):
		to.writeError(w, http.StatusForbidden,
			"serves only the agent whose command runs, with its own placeholder")
	case to == p.git && isLFSRequest(r): // git-lfs prints the message
		message := "vm-server forwards no Git LFS: " +
			"say in your answer that this repository's large files are missing"
		writeJSON(w, http.StatusNotFound, map[string]any{"message": message})
	case !isAllowed(to.name, r):
		to.writeError(w, http.StatusNotFound,
			"forwards only what Claude Code and git need of "+to.name)
	case to == p.api && asksForVendorTools(r):
		to.writeError(w, http.StatusForbidden, "forwards no request for tools that run "+
			"at the vendor (MCP connector, web fetch, files)")
	case asksToUpgrade:
		to.writeError(w, http.StatusBadRequest, "forwards no Upgrade to another protocol")
	case hasNeedlessBody: // which another server may take for the next request
		to.writeError(w, http.StatusBadRequest, "forwards no GET with a body")
	default:
		keepConnection(r)
		to.forward(w, r, g)
	}
}

// forward forwards a request. An answer may begin before the request is read; unless told,
// net/http would then take the rest of the body from the transport, which breaks the
// answer off. What is left in the end is read here, where net/http would panic
// (golang.org/issue/68560).
func (u *upstream) forward(w http.ResponseWriter, r *http.Request, g *grant) {
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), grantKey{}, g))
	defer cancel()
	control := http.NewResponseController(w)
	stop := context.AfterFunc(g.revoked, func() {
		cancel()
		control.SetWriteDeadline(time.Now()) // a client that reads nothing holds up nothing
	})
	defer stop()
	control.EnableFullDuplex()
	control.SetReadDeadline(time.Time{}) // an answer may take longer

	u.proxy.ServeHTTP(&finalHeaderWriter{ResponseWriter: w}, r.WithContext(ctx))

	control.Flush()
	control.SetReadDeadline(time.Now().Add(10 * time.Second))
	io.Copy(io.Discard, r.Body)
}

// finalHeaderWriter sends one header: no informational response before it, and no trailer.
type finalHeaderWriter struct {
	http.ResponseWriter
	isSent bool
}

func (w *finalHeaderWriter) Header() http.Header {
	if w.isSent {
		return http.Header{}
	}

	return w.ResponseWriter.Header()
}

func (w *finalHeaderWriter) WriteHeader(status int) {
	isInformational := status >= 100 && status < 200
	if isInformational {
		return
	}

	w.isSent = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *finalHeaderWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// safeReason describes an error without quoting an answer, which may repeat the key or a
// prompt.
func safeReason(err error) string {
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return "its certificate is not valid for it, has expired, or has an unknown issuer " +
			"(NODE_EXTRA_CA_CERTS names those of your own)"
	case errors.Is(err, errUpgrade), errors.Is(err, errNoStatus):
		return err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection"
	default:
		return "neither it nor a proxy on the way sent a valid answer"
	}
}

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

// vendorTools begin the anthropic-beta values by which the vendor's own servers would call
// any URL, or keep files, with the real key: an MCP connector, web fetch and files. The CLI
// sends none of them (measured).
var vendorTools = []string{"mcp-client-", "web-fetch-", "files-api-"}

func asksForVendorTools(r *http.Request) bool {
	betas := strings.Join(r.Header.Values("Anthropic-Beta"), ",")
	for beta := range strings.SplitSeq(betas, ",") {
		beta = strings.ToLower(strings.TrimSpace(beta))
		isOne := func(prefix string) bool { return strings.HasPrefix(beta, prefix) }
		if slices.ContainsFunc(vendorTools, isOne) {
			return true
		}
	}
	return false
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
	g := grantFrom(r.Request)
	isMessage := strings.HasSuffix(r.Request.URL.Path, "/v1/messages")
	switch {
	case r.StatusCode == http.StatusSwitchingProtocols:
		return errUpgrade
	case r.StatusCode < 100: // which net/http accepts, and cannot send
		return errNoStatus
	case r.StatusCode == http.StatusUnauthorized && isMessage:
		g.stop(errKeyRefused)
	case isOverloaded(r.StatusCode):
		retryAt := retryAfter(r.Header)
		g.retryAt.Store(&retryAt)
	}

	g.outage.Store(nil)
	return nil
}

// handleError answers the CLI, whose result quotes it, and logs it once a command.
func (p *apiProxy) handleError(w http.ResponseWriter, r *http.Request, err error) {
	host, reason := p.credentials.api.Host, safeReason(err)
	isCanceled := r.Context().Err() != nil
	if !isCanceled {
		g := grantFrom(r)
		g.logAPIUnreachable.Do(func() {
			p.log.Warn("cannot reach the model's API", "host", host, "error", reason)
		})
		var certificate *tls.CertificateVerificationError
		g.recordOutage(errorf(codeAPIUnreachable, "cannot reach the model's API at %s: %s; "+
			"check the server's network, and then %s", host, reason, sendAgain),
			errors.As(err, &certificate))
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
