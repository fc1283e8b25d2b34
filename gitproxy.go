package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The git host behind the key proxy. git's smart protocol alone is let through, and its
// answers alone come back, so that neither the host's API nor a page of it can be had
// by the token.

type gitProxy struct {
	cfg *config
	log *slog.Logger
}

func newGitProxy(cfg *config, log *slog.Logger) *destination {
	g := &gitProxy{cfg, log}
	forward := &httputil.ReverseProxy{
		Rewrite:        g.rewrite,
		ModifyResponse: g.inspect,
		ErrorHandler:   g.tell,
	}
	return &destination{name: toGit, isAsked: g.isAsked, refuse: refuseGit, forward: forward}
}

func (g *gitProxy) isAsked(l *lease, r *http.Request) bool {
	_, placeholder, _ := r.BasicAuth()
	return l.isFor(placeholder)
}

// What git and its host tell each other in headers; the rest stays here, as it could
// mean something else to the host, or be a secret of the host's.
var (
	gitAsks = []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Encoding",
		"Content-Length", "Content-Type", "Git-Protocol", "Pragma", "User-Agent",
	}
	gitIsTold = []string{
		"Cache-Control", "Content-Encoding", "Content-Length", "Content-Type", "Expires", "Pragma",
	}
)

// keep takes all headers away but those named.
func keep(header http.Header, names []string) {
	for name := range header {
		if !slices.Contains(names, name) {
			delete(header, name)
		}
	}
}

func (g *gitProxy) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(&url.URL{Scheme: "https", Host: g.cfg.GitHost})
	keep(r.Out.Header, gitAsks)
	r.Out.Trailer = nil

	name, password, isPair := strings.Cut(g.cfg.GitToken, ":")
	if !isPair {
		name, password = "x-access-token", g.cfg.GitToken
	}
	r.Out.SetBasicAuth(name, password)
}

// inspect lets answers of git's protocol through, and nothing else that the host says.
func (g *gitProxy) inspect(r *http.Response) error {
	isGits := strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-git-")
	if r.StatusCode != http.StatusOK || !isGits {
		return &gitRefusal{r.StatusCode, r.Header.Get("Location")}
	}
	keep(r.Header, gitIsTold)
	r.Trailer = nil
	return nil
}

// gitRefusal is an answer that is none of git's.
type gitRefusal struct {
	status   int
	location string
}

func (e *gitRefusal) Error() string { return strconv.Itoa(e.status) }

// movedTo is a redirect's address of the repository, "" where it leads elsewhere, such as
// to a login: that address may hold a secret.
func (e *gitRefusal) movedTo() string {
	address, err := url.Parse(e.location)
	if err != nil {
		return ""
	}
	path, isRepository := strings.CutSuffix(address.Path, "/info/refs")
	if !isRepository || !whole(repository).MatchString(path) {
		return ""
	}
	plain := url.URL{Scheme: address.Scheme, Host: address.Host, Path: path}
	return plain.String()
}

// tell says in words, which git shows, why there is no answer of the host's.
func (g *gitProxy) tell(w http.ResponseWriter, r *http.Request, err error) {
	host := g.cfg.GitHost
	refusal, isRefusal := err.(*gitRefusal)
	if !isRefusal {
		why := reasonOf(err)
		wentAway := r.Context().Err() != nil
		if !wentAway {
			leaseOf(r).gitIsAway.Do(func() {
				g.log.Warn("cannot reach the git host", "host", host, "error", why)
			})
		}
		refuseGit(w, http.StatusBadGateway, fmt.Sprintf("cannot reach %s: %s", host, why))
		return
	}

	switch status := refusal.status; status {
	case http.StatusUnauthorized, http.StatusForbidden:
		leaseOf(r).gitRefuses.Do(func() {
			g.log.Warn("the git host refuses VM_GIT_TOKEN", "host", host, "status", status)
		})
		refuseGit(w, http.StatusForbidden,
			"is told by "+host+" that VM_GIT_TOKEN is wrong, or may not do this with the repository")
	case http.StatusNotFound:
		refuseGit(w, http.StatusNotFound,
			"is told by "+host+" that there is no such repository, or none that VM_GIT_TOKEN may see")
	case http.StatusMovedPermanently, http.StatusFound,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		refuseGit(w, http.StatusForbidden, fmt.Sprintf(
			"follows no redirect: %s leads to another address, use that: %q", host, refusal.movedTo()))
	default:
		refuseGit(w, http.StatusBadGateway,
			fmt.Sprintf("is answered by %s with status %d, and not as git does", host, status))
	}
}

// refuseGit answers in plain text, which git prints behind "remote:".
func refuseGit(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, "vm-server "+why)
}
