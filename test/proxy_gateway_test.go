package test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the API sees of the CLI, with the key proxy and without it, told by the real
// CLI where it is there.

// gateways are ways to name one, and what it gets from the CLI (measured). API-HOST
// stands for its host and port.
var gateways = []struct {
	name, base, token string
	path, auth        string
}{
	{"a path", "http://API-HOST/base/", "", "/base/v1/messages?beta=true", ""},
	{"a token", "http://API-HOST", "to-ken", "/v1/messages?beta=true", "Bearer to-ken"},
	{"a login", "http://user:p%40ss@API-HOST", "", "/v1/messages?beta=true", "Basic dXNlcjpwQHNz"},
	{"both", "http://user:p%40ss@API-HOST", "to-ken", "/v1/messages?beta=true", "Bearer to-ken"},
}

// at puts the API's host and port into text.
func at(api *httptest.Server, text string) string {
	return strings.Replace(text, "API-HOST", strings.TrimPrefix(api.URL, "http://"), 1)
}

// credentials are what the API sees of who asks.
func credentialsOf(r *http.Request) []string {
	return []string{r.RequestURI, r.Header.Get("X-Api-Key"), r.Header.Get("Authorization")}
}

// With the real CLI: a token goes to the API, and its agent has a placeholder.
func TestTheRealCLIWorksByATokenThatItsAgentDoesNotHave(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	const secret = "sk-ant-oat01-real"
	for _, name := range []string{"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"} {
		for proxied, holds := range map[string]string{"true": "placeholder-", "false": secret} {
			t.Run(name+", VM_KEY_PROXY="+proxied, func(t *testing.T) {
				t.Parallel()
				seen := make(chan []string, 20)
				note := func(w http.ResponseWriter, r *http.Request) {
					seen <- credentialsOf(r)[1:]
					cli.model.ServeHTTP(w, r)
				}
				s := cli.start(t, note, "ANTHROPIC_API_KEY=", name+"="+secret, "VM_KEY_PROXY="+proxied)
				// The CLI keeps some from its Bash itself (measured); its own environment has them.
				got := s.ask(`real bash: tr '\0' '\n' </proc/$PPID/environ | grep ` + name)
				if !strings.HasPrefix(got.Result, name+"="+holds) {
					t.Errorf("the agent has %+v %+v", got, got.Error)
				}
				if diff := cmp.Diff([]string{"", "Bearer " + secret}, <-seen); diff != "" {
					t.Errorf("what the API saw (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// A gateway's login in its URL may be the only secret, and the CLI may have a login of
// its own or use a cloud: the agent sees it in none of these. The control of each is
// VM_KEY_PROXY=false.
func TestTheAgentIsNotShownALoginThatIsTheOnlySecret(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		env   []string
		warns string // with VM_KEY_PROXY=false
	}{
		{"nothing else", nil, "variable=ANTHROPIC_BASE_URL"},
		{"a login in the home", []string{"CLAUDE_CONFIG_DIR=" + homeWithLogin(t)}, "variable=ANTHROPIC_BASE_URL"},
		{"Bedrock", []string{"CLAUDE_CODE_USE_BEDROCK=1"}, "variable=CLAUDE_CODE_USE_BEDROCK"},
		{"Vertex", []string{"CLAUDE_CODE_USE_VERTEX=1"}, "variable=CLAUDE_CODE_USE_VERTEX"},
	}
	for _, test := range tests {
		for proxied, want := range map[string]bool{"true": false, "false": true} {
			t.Run(test.name+", VM_KEY_PROXY="+proxied, func(t *testing.T) {
				t.Parallel()
				env := append(test.env, "ANTHROPIC_BASE_URL=http://user:sesame@127.0.0.1:1", "VM_KEY_PROXY="+proxied)
				s := startServer(t, env...)
				got := strings.Join(s.describe("").Env, "\n")
				if diff := cmp.Diff(want, strings.Contains(got, "sesame")); diff != "" {
					t.Errorf("the agent has the password (-want +got):\n%s%s", diff, got)
				}
				if log := s.stderr.String(); strings.Contains(log, "sesame") || want && !strings.Contains(log, test.warns) {
					t.Errorf("the log has no %s, or the password:\n%s", test.warns, log)
				}
			})
		}
	}
}

func homeWithLogin(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(dir+"/.credentials.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The control is the CLI without the proxy, which sends no such login by itself.
func TestTheRealCLIWorksByALoginThatIsTheOnlySecret(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	for proxied, want := range map[string]string{"true": "success", "false": "failed no_credentials"} {
		t.Run("VM_KEY_PROXY="+proxied, func(t *testing.T) {
			t.Parallel()
			seen := make(chan []string, 20)
			note := func(w http.ResponseWriter, r *http.Request) {
				seen <- credentialsOf(r)[1:]
				cli.model.ServeHTTP(w, r)
			}
			s := cli.start(t, note, "ANTHROPIC_API_KEY=", "ANTHROPIC_BASE_URL=http://user:sesame@API-HOST",
				"VM_KEY_PROXY="+proxied)
			got := s.ask("real hello")
			if diff := cmp.Diff(want, inShort(got)); diff != "" {
				t.Fatalf("answer (-want +got):\n%s", diff)
			}
			if want != "success" {
				return
			}
			if diff := cmp.Diff([]string{"", "Basic dXNlcjpzZXNhbWU="}, <-seen); diff != "" {
				t.Errorf("what the gateway saw (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheAgentIsNotShownTheGatewaysLogin(t *testing.T) {
	t.Parallel()
	const login = "ANTHROPIC_BASE_URL=http://user:sesame@127.0.0.1:1"
	for proxied, want := range map[string]bool{"true": false, "false": true} { // the control
		t.Run("VM_KEY_PROXY="+proxied, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "ANTHROPIC_API_KEY="+realKey, login, "VM_KEY_PROXY="+proxied)
			env := strings.Join(s.describe("").Env, "\n")
			if diff := cmp.Diff(want, strings.Contains(env, "sesame")); diff != "" {
				t.Errorf("the agent has the password (-want +got):\n%s%s", diff, env)
			}
			if strings.Contains(s.stderr.String(), "sesame") {
				t.Errorf("the log holds the password:\n%s", s.stderr)
			}
		})
	}
}

// realCLI is the environment of a server with the real CLI, and the scripted model.
type realCLI struct {
	env   []string
	model http.Handler
}

func newRealCLI(t *testing.T) *realCLI {
	t.Helper()
	env, _ := withRealClaude(t)
	env = append(env, "VM_MCP_CONFIG=", "ANTHROPIC_API_KEY="+realKey)

	isModel := func(entry string) bool { return strings.HasPrefix(entry, "ANTHROPIC_BASE_URL=") }
	_, base, _ := strings.Cut(env[slices.IndexFunc(env, isModel)], "=")
	model, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return &realCLI{env, httputil.NewSingleHostReverseProxy(model)}
}

// start starts a server whose API is handle, at API-HOST.
func (c *realCLI) start(t *testing.T, handle http.HandlerFunc, env ...string) *testServer {
	t.Helper()
	api := newAPI(t, handle)
	all := slices.Concat(c.env, []string{"ANTHROPIC_BASE_URL=http://API-HOST"}, env)
	for i := range all {
		all[i] = at(api, all[i])
	}
	return startServer(t, all...)
}

func TestTheCLIAsksForTheRoutesAlone(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	large := t.TempDir() + "/large" // has its tokens counted
	err := os.WriteFile(large, []byte(strings.Repeat("some words\n", 8000)), 0o644)
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	asked := map[string]bool{}
	note := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.Method+" "+r.URL.EscapedPath()] = true
		mu.Unlock()
		cli.model.ServeHTTP(w, r)
	}
	s := cli.start(t, note, "VM_KEY_PROXY=false", "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY=1")
	s.ask("real hello")
	s.ask("real bash: echo a tool")
	s.ask(`real tool: Read {"file_path":"` + large + `"}`)

	want := map[string]bool{ // what the proxy allows
		"POST /v1/messages":              true,
		"POST /v1/messages/count_tokens": true,
		"GET /v1/models":                 true,
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("what the CLI asks for (-want +got):\n%s", diff)
	}
}

func TestAGatewaySeesTheCLIAsWithoutTheKeyProxy(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	for _, test := range gateways {
		for _, proxied := range []string{"true", "false"} {
			t.Run(test.name+", VM_KEY_PROXY="+proxied, func(t *testing.T) {
				t.Parallel()
				seen := make(chan []string, 20)
				note := func(w http.ResponseWriter, r *http.Request) {
					seen <- credentialsOf(r)
					http.StripPrefix("/base", cli.model).ServeHTTP(w, r)
				}
				s := cli.start(t, note, "VM_KEY_PROXY="+proxied,
					"ANTHROPIC_BASE_URL="+test.base, "ANTHROPIC_AUTH_TOKEN="+test.token)
				s.ask("real hello")

				want := []string{test.path, realKey, test.auth}
				if diff := cmp.Diff(want, <-seen); diff != "" {
					t.Errorf("what the gateway saw (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestHowOftenARefusedKeyIsTried(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	for proxied, want := range map[string]int{"true": 1, "false": 3} {
		t.Run("VM_KEY_PROXY="+proxied, func(t *testing.T) {
			t.Parallel()
			tries := make(chan bool, 20)
			refuse := func(w http.ResponseWriter, r *http.Request) {
				tries <- true
				w.WriteHeader(http.StatusUnauthorized)
			}
			s := cli.start(t, refuse, "VM_KEY_PROXY="+proxied)
			got := fmt.Sprint(inShort(s.ask("real hello")), ", tries: ", len(tries))
			wanted := fmt.Sprint("failed authentication_failed, tries: ", want)
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheClientIsToldWhatIsOutOfReach(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	base := strings.Replace(newNoAPI(t), "://", "://user:sesame@", 1)
	s := cli.start(t, http.NotFound, "ANTHROPIC_BASE_URL="+base, "CLAUDE_CODE_MAX_RETRIES=2")
	a := s.ask("real hello")

	if diff := cmp.Diff("failed api_unreachable", inShort(a)); diff != "" {
		t.Fatalf("answer (-want +got):\n%s", diff)
	}
	if !strings.Contains(a.Error.Message, "cannot reach the model's API at 127.0.0.1:") {
		t.Errorf("the client is told %q", a.Error.Message)
	}
	if diff := cmp.Diff(1, strings.Count(s.stderr.String(), "cannot reach")); diff != "" {
		t.Errorf("lines in the log, of three tries (-want +got):\n%s%s", diff, s.stderr)
	}
	if strings.Contains(s.stderr.String()+a.Error.Message, "sesame") {
		t.Errorf("the password is told: %s\n%s", a.Error.Message, s.stderr)
	}
}

// The proxy forwards what the CLI sends, so a new version must send nothing else.
func TestCanaryTheCLISendsNoHeaderThatTheProxyDrops(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	large := t.TempDir() + "/large" // has its tokens counted
	if err := os.WriteFile(large, []byte(strings.Repeat("some words\n", 8000)), 0o644); err != nil {
		t.Fatal(err)
	}
	header := map[string]http.Header{}
	for _, proxied := range []string{"true", "false"} {
		var mu sync.Mutex
		all := http.Header{}
		note := func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			maps.Copy(all, r.Header)
			mu.Unlock()
			cli.model.ServeHTTP(w, r)
		}
		s := cli.start(t, note, "VM_KEY_PROXY="+proxied, "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY=1")
		s.ask("real hello")
		s.ask(`real tool: Read {"file_path":"` + large + `"}`)
		all.Del("Connection") // is the client's own
		header[proxied] = all
	}
	names := func(h http.Header) []string { return slices.Sorted(maps.Keys(h)) }
	if diff := cmp.Diff(names(header["false"]), names(header["true"])); diff != "" {
		t.Errorf("what the CLI sends (-without the proxy +with it):\n%s", diff)
	}
	for _, beta := range strings.Split(header["false"].Get("Anthropic-Beta"), ",") {
		for _, prefix := range []string{"mcp-client-", "web-fetch-", "files-api-"} { // which the proxy rejects
			if strings.HasPrefix(beta, prefix) {
				t.Errorf("the CLI sends the beta %q", beta)
			}
		}
	}
	if len(header["false"]) < 10 {
		t.Errorf("it sends %v, so this proves nothing", header["false"])
	}
}

// By itself the CLI tries for three minutes. With VM_TIMEOUT below that it would be a timeout.
func TestAnAPIThatStaysOutOfReachIsToldSoon(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	s := cli.start(t, http.NotFound, "ANTHROPIC_BASE_URL="+newNoAPI(t), "VM_TIMEOUT=2m")
	got := s.ask("real hello")
	if diff := cmp.Diff("failed api_unreachable", inShort(got)); diff != "" {
		t.Errorf("answer (-want +got):\n%s%+v", diff, got.Error)
	}
}

// The server connects as Claude Code would: it trusts a CA of one's own, and has a client's
// certificate. The controls lack one or the other.
func TestTheServerConnectsWithTheCertificatesOfClaudeCode(t *testing.T) {
	t.Parallel()
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	api.Config.ErrorLog = log.New(io.Discard, "", 0)
	api.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	api.StartTLS()
	t.Cleanup(api.Close)
	key, err := x509.MarshalPKCS8PrivateKey(api.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := write(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})))
	keyFile := write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	trust := "NODE_EXTRA_CA_CERTS=" + ca
	client := []string{"CLAUDE_CODE_CLIENT_CERT=" + ca, "CLAUDE_CODE_CLIENT_KEY=" + keyFile} // any certificate will do

	for _, test := range []struct {
		name string
		env  []string
		want string
	}{
		{"both", append([]string{trust}, client...), "200 OK"},
		{"no certificate of the client's", []string{trust}, "502 Bad Gateway"},
		{"no trust in the server", client, "failed api_unreachable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := append([]string{"ANTHROPIC_API_KEY=" + realKey, "ANTHROPIC_BASE_URL=" + api.URL}, test.env...)
			got := startServer(t, env...).ask("asks-the-api")
			if got.Result != test.want && inShort(got) != test.want {
				t.Errorf("the agent gets %q, %s, want %q", got.Result, inShort(got), test.want)
			}
		})
	}
	got := refusedStart(t, "ANTHROPIC_API_KEY=x", "NODE_EXTRA_CA_CERTS="+write(t, "none.pem", "none"))
	if !strings.Contains(got, "NODE_EXTRA_CA_CERTS: there is no certificate in it") {
		t.Errorf("it says %q", got)
	}
}

// The server's own way out has a login that the agent does not have. The control has none.
func TestTheServersOwnProxyIsNotTheAgents(t *testing.T) {
	t.Parallel()
	seen := make(chan []string, 10)
	gateway := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- []string{r.Method + " " + r.RequestURI, r.Header.Get("Proxy-Authorization"), r.Header.Get("X-Api-Key")}
	})
	proxy := strings.Replace(gateway.URL, "://", "://server:sesame@", 1)
	for variable, login := range map[string]string{
		"VM_UPSTREAM_PROXY=" + proxy:                   "Basic c2VydmVyOnNlc2FtZQ==",
		"HTTP_PROXY=" + strings.TrimSuffix(proxy, "/"): "Basic c2VydmVyOnNlc2FtZQ==",
	} {
		s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://api.example", variable)
		env := strings.Join(s.describe("").Env, "\n")
		isHidden := strings.HasPrefix(variable, "VM_")
		if got := strings.Contains(env, "sesame"); got == isHidden {
			t.Errorf("%s: the agent has the login: %v", variable, got)
		}
		if got := s.ask("asks-the-api"); got.Result != "200 OK" {
			t.Errorf("%s: the agent gets %+v %+v", variable, got, got.Error)
		}
		want := []string{"GET http://api.example/v1/models", login, realKey}
		if diff := cmp.Diff(want, <-seen); diff != "" {
			t.Errorf("%s: what the proxy sees (-want +got):\n%s", variable, diff)
		}
		if strings.Contains(s.stderr.String(), "sesame") {
			t.Errorf("%s: the log has the login:\n%s", variable, s.stderr)
		}
	}
	if got := refusedStart(t, "VM_UPSTREAM_PROXY=gateway:3128"); !strings.Contains(got, "give a URL such as http://user:password@gateway:3128") {
		t.Errorf("it says %q", got)
	}
}
