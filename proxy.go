package main

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"
)

// The key proxy lets the agent use the model's API without the key: its requests
// come to a loopback port with a placeholder, its own and void after its command,
// and leave with the key. What holds here is all that keeps the key: the
// placeholder is compared before anything else, and no answer repeats what was
// sent.

// keyProxy is an http.Handler, safe for concurrent use.
type keyProxy struct {
	key     string
	api     *url.URL
	forward *httputil.ReverseProxy
	user    atomic.Pointer[agent] // who may use the key now, nil for nobody
}

func newKeyProxy(key string, api *url.URL) *keyProxy {
	p := &keyProxy{key: key, api: api}
	p.forward = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		FlushInterval:  -1, // events as they come
		ModifyResponse: p.inspect,
		ErrorHandler:   p.outOfReach,
	}
	return p
}

// allow lets a use the key from now on, and nobody else; nil lets nobody.
func (p *keyProxy) allow(a *agent) { p.user.Store(a) }

func (p *keyProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !p.isAllowed(r.Header.Get("X-Api-Key")) {
		refuseAPI(w, http.StatusForbidden, "permission_error",
			"vm-server serves the agent that runs, by its own placeholder")
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/v1/") || path.Clean(r.URL.Path) != r.URL.Path {
		refuseAPI(w, http.StatusNotFound, "not_found_error", "vm-server forwards /v1/ alone")
		return
	}

	http.NewResponseController(w).SetReadDeadline(time.Time{}) // an answer may take longer
	p.forward.ServeHTTP(w, r)
}

func (p *keyProxy) isAllowed(placeholder string) bool {
	user := p.user.Load()
	if user == nil {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(placeholder), []byte(user.placeholder)) == 1
}

func (p *keyProxy) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(p.api)
	r.Out.Header.Del("Authorization")
	r.Out.Header.Set("X-Api-Key", p.key)
}

// inspect stops the agent whose key is refused: the CLI would try for minutes
// (measured).
func (p *keyProxy) inspect(r *http.Response) error {
	if r.StatusCode != http.StatusUnauthorized {
		return nil
	}
	if !strings.HasSuffix(r.Request.URL.Path, "/v1/messages") {
		return nil
	}
	if user := p.user.Load(); user != nil {
		user.stop(errKeyRefused)
	}
	return nil
}

func (p *keyProxy) outOfReach(w http.ResponseWriter, r *http.Request, err error) {
	message := fmt.Sprintf("vm-server cannot reach the model's API at %s: %v", p.api.Host, err)
	refuseAPI(w, http.StatusBadGateway, "api_error", message)
}

// refuseAPI answers in the API's own form, which the CLI shows.
func refuseAPI(w http.ResponseWriter, status int, kind, message string) {
	why := map[string]string{"type": kind, "message": message}
	writeJSON(w, status, map[string]any{"type": "error", "error": why})
}
