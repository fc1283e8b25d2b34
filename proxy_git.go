package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
)

const dnsLabel = `[a-z0-9]([a-z0-9-]*[a-z0-9])?`

var (
	gitHostRE     = anchored(dnsLabel + `(\.` + dnsLabel + `)*(:[1-9][0-9]*)?`)
	numericHostRE = anchored(`(.*\.)?(0x[0-9a-f]*|[0-9]+)`) // by its last label
	gitCountRE    = anchored(`[0-9]{0,4}`)
)

// checkGit wants a host name, perhaps with a port, because it becomes part of addresses.
func (c *config) checkGit() error {
	name, port, hasPort := strings.Cut(c.GitHost, ":")
	if port == "443" {
		c.GitHost = name
	}
	isNumber := true
	if hasPort {
		_, err := net.LookupPort("tcp", port)
		isNumber = err == nil
	}

	// Such as 10.1, which some programs take for 10.0.0.1.
	isOddAddress := numericHostRE.MatchString(name) && net.ParseIP(name) == nil
	isProxy := name == "127.0.0.1" // where the agent reaches the API
	if !gitHostRE.MatchString(c.GitHost) || !isNumber || isOddAddress || isProxy {
		// Not quoted: some give a URL that contains the token.
		return errors.New("cannot use VM_GIT_HOST: it is no host name; " +
			"give a host such as github.com, without a login or a path")
	}

	if c.GitToken == "" {
		return nil
	}

	user, token, isPair := strings.Cut(c.GitToken, ":")
	if isPair && (user == "" || token == "") {
		return errors.New("cannot use VM_GIT_TOKEN: " +
			"it lacks what belongs before or after its colon; give a token, or user:token")
	}

	count := os.Getenv("GIT_CONFIG_COUNT")
	if !gitCountRE.MatchString(count) {
		return fmt.Errorf("cannot use GIT_CONFIG_COUNT=%q: give a number such as 1", count)
	}
	return nil
}

// isGitRequest reports whether a request to the credential proxy is for the git host, by
// the name that the agent's git knows it by.
func (c *config) isGitRequest(r *http.Request) bool {
	name, _, _ := strings.Cut(r.Host, ":")
	gitName, _, _ := strings.Cut(c.GitHost, ":")
	return c.GitToken != "" && name == gitName
}

// gitEnvironment leads the agent's git to the credential proxy, after what the operator set
// in the same way. It needs no file: git replaces the host's addresses by
// http://HOST:PORT/, with the proxy's port, and is told that this name and port are on the
// loopback. So no other proxy, NO_PROXY or DNS can lead it past the server in the clear
// (measured with git 2.39).
func gitEnvironment(cfg *config, proxyURL, placeholder string) []string {
	host := cfg.GitHost
	name, _, _ := strings.Cut(host, ":")
	port := proxyURL[strings.LastIndex(proxyURL, ":")+1:]
	base := "http://" + name + ":" + port + "/"
	login := base64.StdEncoding.EncodeToString([]byte("agent:" + placeholder))
	settings := [][2]string{
		{"url." + base + ".insteadOf", "https://" + host + "/"},
		{"url." + base + ".insteadOf", "git@" + name + ":"},
		{"url." + base + ".insteadOf", "git@" + name + ":/"},
		{"url." + base + ".insteadOf", "ssh://git@" + name + "/"},
		{"http." + base + ".extraHeader", "Authorization: Basic " + login},
		{"http." + base + ".proxy", ""},
		{"http." + base + ".version", "HTTP/1.1"}, // the proxy speaks no other
		{"http.curloptResolve", name + ":" + port + ":127.0.0.1"},
	}

	// Some hosts show addresses with a user name. Git has no pattern for any name.
	users := []string{"git", "oauth2", "x-access-token"}
	user, _, isPair := strings.Cut(cfg.GitToken, ":")
	if isPair {
		users = append(users, user)
	}
	for _, user := range users {
		address := "https://" + url.PathEscape(user) + "@" + host + "/"
		settings = append(settings, [2]string{"url." + base + ".insteadOf", address})
	}

	count, _ := strconv.Atoi(os.Getenv("GIT_CONFIG_COUNT"))
	env := []string{fmt.Sprintf("GIT_CONFIG_COUNT=%d", count+len(settings))}
	for i, setting := range settings {
		env = append(env,
			fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", count+i, setting[0]),
			fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", count+i, setting[1]))
	}

	return env
}

// gitProxy is the git host behind the credential proxy. Only git's smart protocol is
// forwarded, and only its answers come back, so the token opens neither the host's API nor
// a page of it.
type gitProxy struct {
	cfg *config
	log *slog.Logger
}

func newGitUpstream(cfg *config, log *slog.Logger) *upstream {
	p := &gitProxy{cfg, log}
	return &upstream{
		name:          gitUpstream,
		authenticates: p.authenticates,
		writeError:    writeGitError,
		proxy: &httputil.ReverseProxy{
			Rewrite:        p.rewrite,
			ModifyResponse: p.modifyResponse,
			ErrorHandler:   p.handleError,
		},
	}
}

func (p *gitProxy) authenticates(g *grant, r *http.Request) bool {
	_, placeholder, _ := r.BasicAuth()
	return g.matches(placeholder)
}

// The headers that git and its host need. Others could mean something else to the host, or
// be a secret of the host's.
var (
	gitRequestHeaders = []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Encoding",
		"Content-Length", "Content-Type", "Git-Protocol", "Pragma", "User-Agent",
	}

	gitResponseHeaders = []string{
		"Cache-Control", "Content-Encoding", "Content-Length", "Content-Type", "Expires", "Pragma",
	}
)

func (p *gitProxy) rewrite(r *httputil.ProxyRequest) {
	r.SetURL(&url.URL{Scheme: "https", Host: p.cfg.GitHost})
	retainHeaders(r.Out.Header, gitRequestHeaders)
	r.Out.Trailer = nil

	name, password, isPair := strings.Cut(p.cfg.GitToken, ":")
	if !isPair {
		name, password = "x-access-token", p.cfg.GitToken
	}
	r.Out.SetBasicAuth(name, password)
}

func (p *gitProxy) modifyResponse(r *http.Response) error {
	isGits := strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-git-")
	if r.StatusCode != http.StatusOK || !isGits {
		return &upstreamError{r.StatusCode, r.Header.Get("Location")}
	}
	retainHeaders(r.Header, gitResponseHeaders)
	r.Trailer = nil
	return nil
}

// isLFSRequest reports whether a request is one of Git LFS, which is not forwarded: its
// answers may contain the token.
func isLFSRequest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/info/lfs/") }

// upstreamError is an answer that is not of git's protocol.
type upstreamError struct {
	status   int
	location string
}

func (e *upstreamError) Error() string { return strconv.Itoa(e.status) }

// redirectTarget is where a redirect says that the repository is, "" where it leads
// elsewhere, such as to a login: that address may contain a secret.
func (e *upstreamError) redirectTarget() string {
	address, err := url.Parse(e.location)
	if err != nil {
		return ""
	}
	path, isRepository := strings.CutSuffix(address.Path, "/info/refs")
	if !isRepository || !anchored(repository).MatchString(path) {
		return ""
	}
	plain := url.URL{Scheme: address.Scheme, Host: address.Host, Path: path}
	return plain.String()
}

// handleError tells git's user why there is no answer of the host's.
func (p *gitProxy) handleError(w http.ResponseWriter, r *http.Request, err error) {
	host := p.cfg.GitHost
	answer, isAnswer := err.(*upstreamError)
	if !isAnswer {
		reason := safeReason(err)
		isCanceled := r.Context().Err() != nil
		if !isCanceled {
			grantFrom(r).logGitUnreachable.Do(func() {
				p.log.Warn("cannot reach the git host", "host", host, "error", reason)
			})
		}

		writeGitError(w, http.StatusBadGateway, fmt.Sprintf("cannot reach %s: %s", host, reason))
		return
	}

	switch status := answer.status; status {
	case http.StatusUnauthorized, http.StatusForbidden:
		grantFrom(r).logGitRejected.Do(func() {
			p.log.Warn("the git host refuses VM_GIT_TOKEN", "host", host, "status", status)
		})
		writeGitError(w, http.StatusForbidden,
			"is told by "+host+" that VM_GIT_TOKEN is wrong, "+
				"or may not do this with the repository")
	case http.StatusNotFound:
		writeGitError(w, http.StatusNotFound,
			"is told by "+host+" that there is no such repository, "+
				"or none that VM_GIT_TOKEN may see")
	case http.StatusMovedPermanently, http.StatusFound,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		remedy := "it leads to no repository, such as to a login"
		if target := answer.redirectTarget(); target != "" {
			remedy = fmt.Sprintf("use the repository's new address: %q", target)
		}
		writeGitError(w, http.StatusForbidden,
			fmt.Sprintf("follows no redirect of %s: %s", host, remedy))
	default:
		writeGitError(w, http.StatusBadGateway,
			fmt.Sprintf("is answered by %s with status %d, and not as git does", host, status))
	}
}

// writeGitError answers in plain text, which git prints after "remote:".
func writeGitError(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, "vm-server "+reason)
}
