package main

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"
)

// keyProxy holds the API key, so that the agent never does: the agent's requests
// come to a loopback port with a placeholder, and leave from here with the key.
type keyProxy struct {
	listener net.Listener
	forward  httputil.ReverseProxy
	current  atomic.Pointer[grant] // nil while no agent may use the key
}

// grant is one agent's leave to use the key.
type grant struct {
	placeholder string
	refused     func() // called when the API answers 401
}

// newKeyProxy listens on a loopback port. base is where the API is.
func newKeyProxy(key, base string) (*keyProxy, error) {
	upstream, err := url.Parse(base)
	if err != nil || upstream.Host == "" {
		return nil, errors.New("cannot use ANTHROPIC_BASE_URL: give a URL such as https://api.anthropic.com")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot listen for the agent (VM_KEY_PROXY): %w", err)
	}
	p := &keyProxy{listener: listener}
	p.forward = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Header.Del("Authorization")
			r.Out.Header.Set("X-Api-Key", key)
		},
		FlushInterval: -1,                         // events as they come
		ErrorLog:      log.New(io.Discard, "", 0), // a canceled request is no news
		ModifyResponse: func(r *http.Response) error {
			if g := p.current.Load(); g != nil && r.StatusCode == http.StatusUnauthorized {
				g.refused()
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.refuse(w, http.StatusBadGateway, "api_error", fmt.Sprintf("vm-server cannot reach the model's API at %s: %v", upstream.Host, err))
		},
	}
	return p, nil
}

// issue lets one agent use the key until revoke, and returns its environment.
func (p *keyProxy) issue(refused func()) (env []string) {
	g := &grant{"placeholder-" + rand.Text(), refused}
	p.current.Store(g)
	return []string{"ANTHROPIC_API_KEY=" + g.placeholder, "ANTHROPIC_BASE_URL=http://" + p.listener.Addr().String()}
}

// serve is an actor of the run group; closing the listener ends it.
func (p *keyProxy) serve() error {
	return (&http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second}).Serve(p.listener)
}

func (p *keyProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := p.current.Load()
	switch {
	case g == nil || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Api-Key")), []byte(g.placeholder)) == 0:
		p.refuse(w, http.StatusForbidden, "permission_error", "vm-server serves the agent that runs, by its own placeholder")
	case !strings.HasPrefix(r.URL.Path, "/v1/") || path.Clean(r.URL.Path) != r.URL.Path:
		p.refuse(w, http.StatusNotFound, "not_found_error", "vm-server forwards /v1/ alone")
	default:
		p.forward.ServeHTTP(w, r)
	}
}

// refuse answers in the API's own form, which the CLI shows.
func (p *keyProxy) refuse(w http.ResponseWriter, status int, kind, message string) {
	writeJSON(w, status, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": message}})
}
