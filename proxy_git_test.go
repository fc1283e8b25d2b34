package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// gitName is the git host without its port.
func (c *config) gitName() string {
	name, _, _ := strings.Cut(c.GitHost, ":")
	return name
}

// With the real git, and the real git http-backend: e2e/git_test.go.

func TestGitsOwnRequestsAreForwardedAlone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		line string
		want bool
	}{
		{"GET /a/b.git/info/refs?service=git-upload-pack", true},
		{"GET /a/b/info/refs?service=git-receive-pack", true},
		{"GET /group/sub/b.git/info/refs?service=git-upload-pack", true},
		{"GET /org/.github/info/refs?service=git-upload-pack", true},
		{"POST /a/b.git/git-upload-pack", true},
		{"POST /a/b.git/git-receive-pack", true},

		{"HEAD /a/b.git/info/refs?service=git-upload-pack", false},
		{"POST /a/b.git/info/refs?service=git-upload-pack", false},
		{"GET /a/b.git/git-upload-pack", false},
		{"DELETE /a/b.git/git-upload-pack", false},
		{"POST /a/b.git/git-upload-pack?x=1", false},
		{"POST /a/b.git/info/lfs/objects/batch", false},
		{"GET /api/v3/user", false},

		{"GET /a/b.git/info/refs", false},
		{"GET /a/b.git/info/refs?service=git-upload-archive", false},
		{"GET /a/b.git/info/refs?service=git-upload-pack&x=1", false},
		{"GET /a/b.git/info/refs?x=1&service=git-upload-pack", false},
		{"GET /a/b.git/info/refs?service=git%2dupload-pack", false},
		{"GET /a/b.git/info/refs?service=git-upload-pack#", false},
		{"GET /a/b?x=/info/refs?service=git-upload-pack", false},

		{"GET /info/refs?service=git-upload-pack", false},
		{"GET //info/refs?service=git-upload-pack", false},
		{"GET /a//b/info/refs?service=git-upload-pack", false},
		{"GET /a/../user/info/refs?service=git-upload-pack", false},
		{"GET /a/./b/info/refs?service=git-upload-pack", false},
		{"GET /a/%2e%2e/b/info/refs?service=git-upload-pack", false},
		{"GET /a;b/info/refs?service=git-upload-pack", false},
		{"GET /org/.../info/refs?service=git-upload-pack", false},
	}
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			method, target, _ := strings.Cut(test.line, " ")
			service := target[strings.LastIndex(target, "/")+1:]
			r := &http.Request{Method: method, RequestURI: target, Header: http.Header{}}
			r.Header.Set("Content-Type", "application/x-"+service+"-request")
			if diff := cmp.Diff(test.want, isAllowed(gitUpstream, r)); diff != "" {
				t.Errorf("whether it is a route to the git host (-want +got):\n%s", diff)
			}
			if isAllowed(apiUpstream, r) {
				t.Error("it is a route to the model's API")
			}
		})
	}
}

// askGit sends a line to a git proxy by an agent's placeholder.
func askGit(t *testing.T, p *credentialProxy, line, placeholder string) *httptest.ResponseRecorder {
	t.Helper()
	method, target, _ := strings.Cut(line, " ")
	r := httptest.NewRequest(method, target, nil)
	r.Host = p.cfg.gitName() + ":1" // the loopback's port
	r.SetBasicAuth("agent", placeholder)
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w
}

// newGitTestProxy is a proxy of an agent's whose command runs, and has a log.
func newGitTestProxy(t *testing.T, token string, host http.HandlerFunc) (
	p *credentialProxy, log *syncBuffer) {
	t.Helper()
	server := httptest.NewTLSServer(host)
	t.Cleanup(server.Close)
	cfg := &config{GitToken: token, GitHost: strings.TrimPrefix(server.URL, "https://")}
	log = &syncBuffer{}
	p = newCredentialProxy(cfg, slog.New(slog.NewTextHandler(log, nil)))
	p.git.proxy.Transport = server.Client().Transport
	p.allow(&grant{placeholder: presentPlaceholder, stop: func(error) {}})
	return p, log
}

const (
	refs     = "/a/b.git/info/refs?service=git-upload-pack"
	refsType = "application/x-git-upload-pack-advertisement"
)

func TestTheGitHostSeesTheTokenWhereTheAgentHasAPlaceholder(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, token, want string }{
		{"a token alone", "secret", "x-access-token secret"},
		{"a token with a user", "user:secret", "user secret"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var seen []string
			p, _ := newGitTestProxy(t, test.token, func(w http.ResponseWriter, r *http.Request) {
				name, password, _ := r.BasicAuth()
				seen = append(seen, name+" "+password)
				w.Header().Set("Content-Type", refsType)
				w.Header().Set("Set-Cookie", "a=b")
				fmt.Fprint(w, "refs")
			})

			w := askGit(t, p, "GET "+refs, presentPlaceholder)
			got := fmt.Sprint(w.Code, " ", w.Body, " ", w.Header().Get("Set-Cookie"))
			if diff := cmp.Diff("200 refs ", got); diff != "" {
				t.Errorf("what the agent gets (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{test.want}, seen); diff != "" {
				t.Errorf("what the host saw (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheGitHostIsAskedForTheAgentAlone(t *testing.T) {
	t.Parallel()
	asked := 0
	p, _ := newGitTestProxy(t, "secret", func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.Header().Set("Content-Type", refsType)
	})
	tests := []struct {
		name, line, placeholder string
		want                    int
	}{
		{"by the present placeholder", "GET " + refs, presentPlaceholder, 200},
		{"by an older one", "GET " + refs, "placeholder-old", 403},
		{"by none", "GET " + refs, "", 403},
		{"by the token itself", "GET " + refs, "secret", 403},
		{"for something else", "GET /user", presentPlaceholder, 404},
		{"as a forward proxy", "GET http://" + p.cfg.GitHost + refs, presentPlaceholder, 404},
		{"as a forward proxy to another", "GET http://elsewhere" + refs, presentPlaceholder, 404},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, askGit(t, p, test.line, test.placeholder).Code); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}

	p.allow(&grant{placeholder: presentPlaceholder})() // as after a command
	if diff := cmp.Diff(403, askGit(t, p, "GET "+refs, presentPlaceholder).Code); diff != "" {
		t.Errorf("status after the command (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(1, asked); diff != "" {
		t.Errorf("how often the host was asked (-want +got):\n%s", diff)
	}
}

// Whatever else the host says stays with the server: it may hold what the token opens.
func TestAnAnswerThatIsNoneOfGitsIsToldAndNotPassedOn(t *testing.T) {
	t.Parallel()
	const refusesToken = "VM_GIT_TOKEN is wrong, or may not do this"
	tests := []struct {
		name     string
		status   int
		header   string // its value follows a space
		want     int
		told     string
		isLogged bool
	}{
		{"a page", 200, "Content-Type text/html", 502, "with status 200", false},
		{"a wrong token", 401, "Www-Authenticate Basic", 403, refusesToken, true},
		{"a token that may not", 403, "Content-Type " + refsType, 403, refusesToken, true},
		{"no such repository", 404, "Content-Type text/plain", 404, "no such repository", false},
		{"a redirect", 301, "Location https://user:secret@other.example/b.git/info/refs?service=secret", 403,
			`use the repository's new address: "https://other.example/b.git"`, false},
		{"a redirect to a login", 302, "Location https://other.example/login/secret", 403, "it leads to no repository, such as to a login", false},
		{"a failure", 500, "Content-Type text/plain", 502, "with status 500", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, log := newGitTestProxy(t, "real-token", func(w http.ResponseWriter, r *http.Request) {
				name, value, _ := strings.Cut(test.header, " ")
				w.Header().Set(name, value)
				w.WriteHeader(test.status)
				fmt.Fprint(w, "a secret")
			})

			w := askGit(t, p, "GET "+refs, presentPlaceholder)
			said := w.Body.String()
			if w.Code != test.want || !strings.Contains(said, test.told) {
				t.Errorf("the agent gets %d %q, want %d %q", w.Code, said, test.want, test.told)
			}
			if text := fmt.Sprint(said, w.Header()); strings.Contains(text, "secret") {
				t.Errorf("the agent gets what the host said: %s", text)
			}
			if strings.Contains(log.String(), "VM_GIT_TOKEN") != test.isLogged {
				t.Errorf("whether the log says so, want %v:\n%s", test.isLogged, log)
			}
			if strings.Contains(log.String(), "real-token") {
				t.Errorf("the log has the token:\n%s", log)
			}
		})
	}
}

// An API may have a path that ends like git's, and headers that mean more to it.
func TestOnlyGitsOwnCallsAndHeadersReachItsHost(t *testing.T) {
	t.Parallel()
	var seen http.Header
	p, _ := newGitTestProxy(t, "secret", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen = r.Header
		for name, values := range r.Trailer {
			seen["Trailer "+name] = values
		}
		w.Header().Set("X-Early", "secret")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
		w.Header().Set("Trailer", "X-Late-Secret")
		fmt.Fprint(w, "done")
		w.Header().Set("X-Late-Secret", "secret")
		w.Header().Set(http.TrailerPrefix+"X-Later", "secret")
	})
	web := httptest.NewServer(p)
	t.Cleanup(web.Close)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	early := ""
	trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, header textproto.MIMEHeader) error {
		early += fmt.Sprint(status, header)
		return nil
	}}
	ask := func(kinds ...string) (status int, text string) {
		ctx := httptrace.WithClientTrace(context.Background(), trace)
		const path = "/api/v1/repos/git-receive-pack"
		request, _ := http.NewRequestWithContext(ctx, "POST", web.URL+path, strings.NewReader("x"))
		request.Host = p.cfg.gitName() + ":1"
		request.SetBasicAuth("agent", presentPlaceholder)
		request.Header["Content-Type"] = kinds
		request.Header.Set("Git-Protocol", "version=2")
		request.Header.Set("X-Http-Method-Override", "DELETE")
		request.Header.Set("Cookie", "a=b")
		request.Trailer = http.Header{"X-Late": {"x"}}
		request.ContentLength = -1 // or there would be no trailer
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, fmt.Sprint(response.Header, response.Trailer, string(body))
	}

	const push = "application/x-git-receive-pack-request"
	for _, kinds := range [][]string{
		{"application/json"}, {"application/x-git-upload-pack-request"}, {""}, {}, {push, "application/json"}, {push, push},
	} {
		if status, _ := ask(kinds...); status != 404 || seen != nil {
			t.Errorf("%q is answered %d, and the host saw %v", kinds, status, seen)
		}
	}

	status, text := ask(push)
	if status != 200 || !strings.Contains(text, "done") || strings.Contains(strings.ToLower(text+early), "secret") {
		t.Errorf("the agent gets %d %s, and early %q", status, text, early)
	}
	delete(seen, "Authorization")
	want := http.Header{
		"Accept-Encoding": seen["Accept-Encoding"],
		"Content-Type":    {"application/x-git-receive-pack-request"},
		"Git-Protocol":    {"version=2"},
		"User-Agent":      {"Go-http-client/1.1"},
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("what the host saw (-want +got):\n%s", diff)
	}
}

// A push that the host refuses before it has read it is told at once: git would go on
// sending it for as long as nobody answers.
func TestARefusedPushIsToldBeforeItIsSent(t *testing.T) {
	t.Parallel()
	p, _ := newGitTestProxy(t, "secret", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	})
	web := httptest.NewServer(p)
	t.Cleanup(web.Close)
	connection, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })

	login := base64.StdEncoding.EncodeToString([]byte("agent:" + presentPlaceholder))
	fmt.Fprintf(connection, "POST /a/b/git-receive-pack HTTP/1.1\r\nHost: %s:1\r\nAuthorization: Basic %s\r\n"+
		"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 1000000\r\n\r\nhalf",
		p.cfg.gitName(), login)

	connection.SetDeadline(time.Now().Add(8 * time.Second)) // what is left of it is awaited for 10 s
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil || line != "HTTP/1.1 403 Forbidden\r\n" {
		t.Errorf("the agent is told %q, %v", line, err)
	}
}

// The proxy is there for git, and not for the key that VM_KEY_PROXY=false or a cloud
// takes out of use.
func TestAGitTokenOpensNoDoorForTheKey(t *testing.T) {
	t.Parallel()
	for isProxied, want := range map[bool]int{false: 403, true: 200} { // the control
		api := newAPI(t, func(http.ResponseWriter, *http.Request) {})
		p := newTestProxy(t, api.URL)
		p.cfg.GitToken = "secret"
		p.cfg.credentials.proxied = isProxied
		got, _ := p.send(t, "POST /v1/messages")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("status of the key's placeholder, keyProxied %v (-want +got):\n%s", isProxied, diff)
		}
	}
}
