package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What comes back through the key proxy, and what it says where nothing does. The
// API writes to the connection itself, as a server would not misbehave so.

// newRawAPI is an API that does with each connection what answer does, once it has
// read a request's head.
func newRawAPI(t *testing.T, answer func(out net.Conn, in *bufio.Reader)) (base string) {
	t.Helper()
	listener := listen(t)
	serve := func(connection net.Conn) {
		defer connection.Close()
		in := bufio.NewReader(connection)
		for line := "-"; line != "\r\n" && line != ""; {
			line, _ = in.ReadString('\n')
		}
		answer(connection, in)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(connection)
		}
	}()
	return "http://" + listener.Addr().String()
}

// newNoAPI is an address at which nobody listens: it is taken until the test ends, or
// another test's server might get it.
func newNoAPI(t *testing.T) (base string) {
	t.Helper()
	taken, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(taken)
	t.Cleanup(func() { syscall.Close(taken) })
	err = syscall.Bind(taken, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(taken)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port)
}

// promptHead is the head of a prompt of that size.
func promptHead(size int) string {
	const first = "POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
	return fmt.Sprintf(first+"X-Api-Key: %s\r\nContent-Length: %d\r\n\r\n", presentPlaceholder, size)
}

// The API answers when it has read a part of the request, and goes on when it has
// read the rest, which is sent when the answer has begun.
func TestAnAnswerThatBeginsEarlyComesWhole(t *testing.T) {
	t.Parallel()
	const part = 1000
	for _, size := range []int{2 * part, 200 * part, 2000 * part} {
		t.Run(fmt.Sprintf("to a request of %d bytes", size), func(t *testing.T) {
			t.Parallel()
			p := newTestProxy(t, newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
				io.CopyN(io.Discard, in, part)
				io.WriteString(out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst")
				_, err := io.CopyN(io.Discard, in, int64(size-part))
				if err == nil {
					io.WriteString(out, " half")
				}
			}))
			connection := p.dial(t)
			defer connection.Close()
			in := bufio.NewReader(connection)

			for range 2 { // on the same connection
				io.WriteString(connection, promptHead(size)+strings.Repeat("x", part))
				response, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("no answer while the request is still being sent: %v", err)
				}
				got := make([]byte, len("first"))
				io.ReadFull(response.Body, got)

				io.WriteString(connection, strings.Repeat("x", size-part))
				rest, err := io.ReadAll(response.Body)
				if diff := cmp.Diff("first half", string(append(got, rest...))); diff != "" {
					t.Errorf("the answer (-want +got):\n%s%v", diff, err)
				}
			}
			if diff := cmp.Diff("", p.log.String()); diff != "" {
				t.Errorf("the log (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever answers without reading the request doesn't break the connection that the
// agent goes on with.
func TestARequestThatNobodyReadsBreaksNothing(t *testing.T) {
	t.Parallel()
	early := newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
		io.WriteString(out, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
	})
	tests := []struct {
		name, api  string
		size, want int
	}{
		{"a small one, and the API is out of reach", newNoAPI(t), 2, 502},
		{"a large one, and the API is out of reach", newNoAPI(t), 2 << 20, 502},
		{"a small one, and the API answers at once", early, 2, 413},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newTestProxy(t, test.api)
			connection := p.dial(t)
			defer connection.Close()
			in := bufio.NewReader(connection)

			for range 10 {
				io.WriteString(connection, promptHead(test.size)+strings.Repeat("x", test.size))
				response, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("the connection broke: %v; the log:\n%s", err, p.log)
				}
				io.Copy(io.Discard, response.Body)
				if diff := cmp.Diff(test.want, response.StatusCode); diff != "" {
					t.Errorf("status (-want +got):\n%s", diff)
				}
			}
			if strings.Contains(p.log.String(), "panic") {
				t.Errorf("the log:\n%s", p.log)
			}
		})
	}
}

func TestWhatIsOutOfReachIsToldAndLoggedOnceACommand(t *testing.T) {
	t.Parallel()
	const prompt = "what the prompt said"
	raw := func(answer string) string {
		return newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
			io.CopyN(io.Discard, in, 2)
			io.WriteString(out, answer)
		})
	}
	headEcho := raw("HTTP/1.1 200 OK\r\n" + realKey + prompt + "\r\n\r\n")
	switches := raw("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	noTLS := strings.Replace(newAPI(t, http.NotFound).URL, "http:", "https:", 1)
	tests := []struct{ name, api, why string }{
		{"nobody listens", newNoAPI(t), "connection refused"},
		{"it closes the connection", raw(""), "it closed the connection"},
		{"its answer breaks off in the head", raw("HTTP/1.1 200"), "it closed the connection"},
		{"its first line is an echo", raw(realKey + prompt + "\r\n\r\n"), "sent a valid answer"},
		{"its header is an echo", headEcho, "sent a valid answer"},
		{"its status is none", raw("HTTP/1.1 000 " + prompt + "\r\n\r\n"), "its answer has no valid status"},
		{"it switches protocols", switches, "it switched to another protocol"},
		{"it speaks no TLS", noTLS, "sent a valid answer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newTestProxy(t, strings.Replace(test.api, "://", "://user:sesame@", 1))
			told := ""
			for range 2 { // commands
				p.begin(func(error) {})
				for range 3 {
					_, text := p.send(t, "POST /v1/messages", "Connection: close")
					isTold := strings.Contains(text, "cannot reach the model's API at 127.0.0.1:") &&
						strings.Contains(text, test.why)
					if !isTold {
						t.Errorf("the CLI is told %s", text)
					}
					told += text
				}
			}

			log := p.log.String()
			if diff := cmp.Diff(2, strings.Count(log, "\n")); diff != "" {
				t.Errorf("lines in the log, of two commands (-want +got):\n%s%s", diff, log)
			}
			for line := range strings.Lines(log) {
				_, message, _ := strings.Cut(line, " level=WARN msg=")
				hasForm := strings.HasPrefix(line, "time=") &&
					strings.HasPrefix(message, `"cannot reach the model's API" host=127.0.0.1:`) &&
					strings.Contains(message, test.why)
				if !hasForm {
					t.Errorf("a line of the log: %s", line)
				}
			}
			for _, secret := range []string{realKey, prompt, "sesame", presentPlaceholder} {
				if strings.Contains(log+told, secret) {
					t.Errorf("%q is in the log or in an answer:\n%s%s", secret, log, told)
				}
			}
		})
	}
}

// An outage ends the command: at once where a certificate is not trusted, after a time where
// nobody answers, and not at all where somebody answers meanwhile.
func TestAnAPIThatStaysOutOfReachEndsTheCommand(t *testing.T) {
	t.Parallel()
	tlsAPI := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tlsAPI.Close)
	tlsAPI.Config.ErrorLog = log.New(io.Discard, "", 0)
	tests := []struct {
		name, api   string
		isMended    bool
		isAtOnce    bool
		want        errorCode
		wantMessage string
	}{
		{"a certificate that nobody trusts", tlsAPI.URL, false, true, codeAPIUnreachable, "has an unknown issuer (NODE_EXTRA_CA_CERTS"},
		{"nobody listens", newNoAPI(t), false, false, codeAPIUnreachable, "connection refused; check the server's network"},
		{"nobody listens, and then somebody answers", newNoAPI(t), true, false, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newTestProxy(t, test.api)
			stopped := make(chan error, 10)
			p.begin(func(reason error) { stopped <- reason })
			p.send(t, "POST /v1/messages", "Connection: close")
			if test.isAtOnce != (len(stopped) > 0) {
				t.Errorf("%d stops at once", len(stopped))
			}
			if test.isMended {
				p.cfg.credentials.api, _ = url.Parse(newAPI(t, http.NotFound).URL)
				p.send(t, "POST /v1/messages", "Connection: close")
			}

			var got apiError
			select {
			case reason := <-stopped:
				got = *asAPIError(reason)
			case <-time.After(outageTimeout + 2*time.Second):
			}
			if got.Code != test.want || !strings.Contains(got.Message, test.wantMessage) {
				t.Errorf("the command ends with %+v, want %q", got, test.want)
			}
		})
	}
}

func TestAnAnswerThatBreaksOffIsNotQuotedInTheLog(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t, newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
		io.WriteString(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"+
			"1; "+realKey+"\r\nx\r\nX"+realKey+"\r\n")
	}))
	p.send(t, "POST /v1/messages", "Connection: close")
	if strings.Contains(p.log.String(), realKey) {
		t.Errorf("the log quotes it:\n%s", p.log)
	}
}

func TestARefusedKeyStopsTheCommandWhoseRequestItWas(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, line string
		status     int
		want       []string
	}{
		{"a prompt is refused", "POST /v1/messages?beta=true", 401, []string{"first"}},
		{"a prompt is forbidden", "POST /v1/messages", 403, nil},
		{"a count of tokens is refused", "POST /v1/messages/count_tokens", 401, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var stopped []string
			var p *testProxy
			p = newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) {
				p.begin(func(error) { stopped = append(stopped, "second") })
				w.WriteHeader(test.status)
			}).URL)
			p.begin(func(error) { stopped = append(stopped, "first") })

			p.send(t, test.line, "Connection: close")
			if diff := cmp.Diff(test.want, stopped); diff != "" {
				t.Errorf("commands that are stopped (-want +got):\n%s", diff)
			}
		})
	}
}

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

func TestAGatewayGetsItsCredentials(t *testing.T) {
	t.Parallel()
	for _, test := range gateways {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan []string, 1)
			api := newAPI(t, func(w http.ResponseWriter, r *http.Request) { seen <- credentialsOf(r) })
			p := newTestProxy(t, at(api, test.base))
			p.cfg.credentials.bearer = test.token

			p.send(t, "POST /v1/messages?beta=true", "Authorization: Bearer "+presentPlaceholder)
			want := []string{test.path, realKey, test.auth}
			if diff := cmp.Diff(want, <-seen); diff != "" {
				t.Errorf("what the gateway saw (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheKeyProxyForwardsWhatTheCLINeedsAlone(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Method + " " + r.RequestURI
	})
	p := newTestProxy(t, api.URL+"/base")
	tests := []struct {
		name, line string
		passes     bool
	}{
		{"a prompt", "POST /v1/messages", true},
		{"a prompt with a query", "POST /v1/messages?beta=true", true},
		{"a count of tokens", "POST /v1/messages/count_tokens?beta=true", true},
		{"the list of models", "GET /v1/models?limit=1000", true},

		{"a batch, which outlives the command", "POST /v1/messages/batches", false},
		{"a file, which outlives the command", "POST /v1/files", false},
		{"the list of files", "GET /v1/files", false},
		{"one model", "GET /v1/models/x", false},
		{"TRACE, which may be answered with the key", "TRACE /v1/messages", false},
		{"CONNECT", "CONNECT /v1/messages", false},
		{"another method", "DELETE /v1/models", false},
		{"the CLI's look at the network", "HEAD /api/hello", false},

		{"an encoded slash", "POST /v1%2fx", false},
		{"an encoded slash in a route", "POST /v1%2fmessages", false},
		{"an encoded backslash that climbs", "POST /v1/..%5cx", false},
		{"dots that are encoded twice", "POST /v1/%252e%252e/x", false},
		{"dots that lead back to a route", "POST /v1/x/../messages", false},
		{"an encoded letter", "POST /v1/m%65ssages", false},
		{"an encoded question mark", "POST /v1/messages%3fbeta=true", false},
		{"a slash too many in the beginning", "POST //v1/messages", false},
		{"a slash too many in the end", "POST /v1/messages/", false},
		{"a parameter", "POST /v1/messages;x", false},
		{"a fragment", "POST /v1/messages#x", false},
		{"a whole URL, as for a forward proxy", "POST http://127.0.0.1:1/v1/messages", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := "404 not asked"
			if test.passes {
				want = "200 " + strings.Replace(test.line, " ", " /base", 1)
			}

			status, text := p.send(t, test.line, "Connection: close")
			got := fmt.Sprint(status, " not asked")
			select {
			case asked := <-seen:
				got = fmt.Sprint(status, " ", asked)
			default:
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("status, and what the API was asked (-want +got):\n%s%s", diff, text)
			}
		})
	}
}

// Some of these mean another method or target to some servers, others are the agent's own
// secrets. The control is what the CLI sends.
func TestTheAPIGetsNoHeaderThatTheCLIDoesNotSend(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	p := newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }).URL)
	p.cfg.credentials.custom = http.Header{"X-Tenant": {"the operator's"}}

	p.send(t, "POST /v1/messages", "Anthropic-Beta: a", "X-App: cli", "X-Tenant: the agent's",
		"X-HTTP-Method-Override: DELETE", "X-Original-URL: /v1/files", "X-Rewrite-Url: /v1/files",
		"Cookie: a=b", "Forwarded: for=x", "X-Forwarded-For: x", "Proxy-Authorization: Basic x", "Trailer: X")
	got := <-seen
	want := http.Header{
		"Accept-Encoding": {"gzip"}, // of Go's client
		"Anthropic-Beta":  {"a"},
		"Content-Length":  {"2"},
		"X-Api-Key":       {realKey},
		"X-App":           {"cli"},
		"X-Tenant":        {"the operator's"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the API sees (-want +got):\n%s", diff)
	}
}

// By these the vendor's servers would call any URL for the agent. The control is a beta that
// the CLI sends.
func TestTheAPIIsAskedForNoToolsOfTheVendors(t *testing.T) {
	t.Parallel()
	p := newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) {}).URL)
	for header, want := range map[string]int{
		"Anthropic-Beta: claude-code-20250219":                                200,
		"Anthropic-Beta: claude-code-20250219,mcp-client-2025-11-20":          403,
		"Anthropic-Beta: MCP-Client-2025-04-04":                               403,
		"Anthropic-Beta: a , web-fetch-2025-09-10 ,b":                         403,
		"Anthropic-Beta: a\r\nAnthropic-Beta: files-api-2025-04-14":           403,
		"Anthropic-Beta: not-mcp-client-2025-11-20,interleaved-thinking-2025": 200,
	} {
		if status, text := p.send(t, "POST /v1/messages", "Connection: close", header); status != want {
			t.Errorf("%q is answered %d, want %d: %s", header, status, want, text)
		}
	}
}

// Another server may take it for the next request on the same connection, which the
// agent would have written.
func TestTheKeyProxyForwardsNoBodyThatNobodyExpects(t *testing.T) {
	t.Parallel()
	asked := false
	p := newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) { asked = true }).URL)
	connection := p.dial(t)
	defer connection.Close()
	fmt.Fprintf(connection, "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n"+
		"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", presentPlaceholder)

	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(400, response.StatusCode); diff != "" || asked {
		t.Errorf("status (-want +got):\n%sthe API was asked: %v", diff, asked)
	}
}

// It isn't parallel, as the limit is everybody's: 40 connections are a sixth of it.
func TestAnUpgradeTakesNoConnection(t *testing.T) {
	limitDescriptors(t, 240)
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			return
		}
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer connection.Close()
		connection.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(connection,
			"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		io.Copy(io.Discard, connection) // until the proxy closes it
	})
	tests := []struct {
		name   string
		header []string
		want   int
	}{
		{"that the agent asks for", []string{"Connection: Upgrade", "Upgrade: x"}, 400},
		{"that is asked for twice", []string{"Connection: upgrade", "Upgrade:", "Upgrade: x"}, 400},
		{"that nobody asked for", []string{"Connection: close"}, 502},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newTestProxy(t, api.URL)
			got := map[int]int{}
			for range 300 {
				status, _ := p.send(t, "POST /v1/messages", test.header...)
				got[status]++
			}
			if diff := cmp.Diff(map[int]int{test.want: 300}, got); diff != "" {
				t.Errorf("how often each status came (-want +got):\n%s", diff)
			}

			status, text := p.send(t, "GET /v1/models", "Connection: close")
			if diff := cmp.Diff(200, status); diff != "" {
				t.Errorf("status of a plain request after them (-want +got):\n%s%s", diff, text)
			}
		})
	}
}

// limitDescriptors sets the soft limit of the test itself, for a test that runs alone.
func limitDescriptors(t *testing.T, soft uint64) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := syscall.Rlimit{Cur: soft, Max: old.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) })
}
