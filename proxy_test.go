package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// keyring is a credential proxy, and which agent may use it.
type keyring struct{ proxy *credentialProxy }

func newKeyring(key string, api *url.URL) (keyring, http.Handler) {
	cfg := &config{credentials: credentials{proxied: true, key: key, api: api}}
	k := keyring{newCredentialProxy(cfg, slog.New(slog.DiscardHandler))}
	return k, k.proxy
}

// issue lets an agent that isn't there use the key; stop is told why it must end.
func (k keyring) issue(placeholder string, stop context.CancelCauseFunc) {
	k.proxy.allow(&grant{placeholder: placeholder, stop: stop})
}

// void lets no agent use the key.
func (k keyring) void() { k.proxy.allow(&grant{})() }

// The connection may be held by who is no child of the agent's, and is not swept.
func TestARequestEndsWithTheCommandWhoseItWas(t *testing.T) {
	t.Parallel()
	ended := make(chan bool)
	p := newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first half")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	}).URL)
	end := p.allow(&grant{placeholder: presentPlaceholder})
	connection := p.dial(t)
	defer connection.Close()
	io.WriteString(connection, promptHead(0))
	in := bufio.NewReader(connection)
	_, err := in.ReadString('f')
	if err != nil {
		t.Fatal(err)
	}

	end()
	_, err = io.Copy(io.Discard, in)
	if err != nil {
		t.Errorf("the agent's side is not closed: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the API's side is not closed")
	}
}

// A subscription's or a gateway's token stands where the CLI sends its placeholder, and
// nothing else that the agent sends as its own goes on.
func TestAPlaceholderStandsForWhatItsHeaderIsFor(t *testing.T) {
	t.Parallel()
	const token, key = "Bearer sk-ant-oat01-real", realKey
	asKey := "X-Api-Key: " + presentPlaceholder
	asToken := "Authorization: Bearer " + presentPlaceholder
	tests := []struct {
		name           string
		hasKey         bool
		hasNoToken     bool
		header         []string
		status         int
		apiKey, bearer string // that the API sees
	}{
		{"the token", false, false, []string{asToken}, 200, "", token},
		{"the token, beside a key of the agent's own", false, false,
			[]string{asToken, "X-Api-Key: mine"}, 200, "", token},
		{"both", true, false, []string{asKey, asToken}, 200, key, token},
		{"the key, beside a token of the agent's own", true, false,
			[]string{asKey, "Authorization: Bearer mine"}, 200, key, ""},
		{"the token, where there is a key too", true, false, []string{asToken}, 200, "", token},
		{"as the key that there is none of", false, false, []string{asKey}, 403, "", ""},
		{"as the token that there is none of", true, true, []string{asToken}, 403, "", ""},
		{"as a password", true, false,
			[]string{"Authorization: Basic " + presentPlaceholder}, 403, "", ""},
		{"without the scheme", true, false,
			[]string{"Authorization: " + presentPlaceholder}, 403, "", ""},
		{"a token of the agent's own", true, false,
			[]string{"Authorization: Bearer mine"}, 403, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan []string, 1)
			api := newAPI(t, func(w http.ResponseWriter, r *http.Request) { seen <- credentialsOf(r)[1:] })
			p := newTestProxy(t, api.URL)
			p.cfg.credentials.bearer = strings.TrimPrefix(token, "Bearer ")
			if !test.hasKey {
				p.cfg.credentials.key = ""
			}
			if test.hasNoToken {
				p.cfg.credentials.bearer = ""
			}

			status, _ := p.sendOnly(t, "POST /v1/messages", test.header...)
			if diff := cmp.Diff(test.status, status); diff != "" {
				t.Fatalf("status (-want +got):\n%s", diff)
			}
			if status != 200 {
				return
			}
			if diff := cmp.Diff([]string{test.apiKey, test.bearer}, <-seen); diff != "" {
				t.Errorf("what the API saw (-want +got):\n%s", diff)
			}
		})
	}
}

// What the key proxy lets through. Requests are written to the connection as they
// stand, since a client would tidy them up.

const presentPlaceholder = "placeholder-present"

// testProxy is a key proxy behind the web server that main puts before it.
type testProxy struct {
	*credentialProxy
	url string
	log *syncBuffer
}

// newTestProxy starts a proxy to the API at base, and a command.
func newTestProxy(t *testing.T, base string) *testProxy {
	t.Helper()
	api, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	listener := listen(t)
	log := &syncBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))

	p := &testProxy{url: "http://" + listener.Addr().String(), log: log}
	p.credentialProxy = newCredentialProxy(&config{credentials: credentials{proxied: true, key: realKey, api: api}}, logger)
	p.begin(func(error) {})

	web := newHTTPServer(p.credentialProxy, logger, agentShare)
	go web.Serve(listener)
	t.Cleanup(func() { web.Close() })
	return p
}

// begin lets the next command in, by the same placeholder.
func (p *testProxy) begin(stop context.CancelCauseFunc) {
	p.allow(&grant{placeholder: presentPlaceholder, stop: stop})
}

// send is sendOnly with the key's placeholder.
func (p *testProxy) send(t *testing.T, line string, header ...string) (status int, text string) {
	t.Helper()
	return p.sendOnly(t, line, append(header, "X-Api-Key: "+presentPlaceholder)...)
}

// sendOnly sends a request whose first line holds the method and the target exactly as
// they are given, and returns the status, 0 if there is none.
func (p *testProxy) sendOnly(t *testing.T, line string, header ...string) (status int, text string) {
	t.Helper()
	connection := p.dial(t)
	defer connection.Close()
	method, _, _ := strings.Cut(line, " ")
	body := "{}"
	if method == "GET" {
		body = ""
	}
	header = append(header, "Host: x", fmt.Sprint("Content-Length: ", len(body)))
	head := line + " HTTP/1.1\r\n" + strings.Join(header, "\r\n")
	fmt.Fprint(connection, head+"\r\n\r\n"+body)

	request := &http.Request{Method: method}
	response, err := http.ReadResponse(bufio.NewReader(connection), request)
	if err != nil {
		return 0, err.Error()
	}
	if response.StatusCode == http.StatusSwitchingProtocols {
		return response.StatusCode, "" // its body has no end
	}
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(data)
}

// dial opens a connection on which nothing is waited for in vain.
func (p *testProxy) dial(t *testing.T) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	connection.SetDeadline(time.Now().Add(time.Minute))
	return connection
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func newAPI(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	api := httptest.NewServer(handle)
	t.Cleanup(api.Close)
	return api
}

func TestAHijackedConnectionCountsNoMore(t *testing.T) {
	t.Parallel()
	connection, other := net.Pipe()
	defer connection.Close()
	defer other.Close()
	for last, want := range map[http.ConnState]int{
		http.StateIdle:     1,
		http.StateClosed:   0,
		http.StateHijacked: 0,
	} {
		c := &connLimiter{share: clientShare, open: map[net.Conn]*openConn{}}
		c.track(connection, http.StateNew)
		c.track(connection, last)
		if diff := cmp.Diff(want, len(c.open)); diff != "" {
			t.Errorf("open connections when one is %s (-want +got):\n%s", last, diff)
		}
	}
}

func TestTheConnectionThatIsIdleForLongestMakesRoom(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, test := range []struct {
		name string
		open []openConn // the first one goes
	}{
		{"of idle ones the oldest", []openConn{{isIdle: true, since: now}, {isIdle: true, since: now.Add(1)}}},
		{"an idle one before one that has a request", []openConn{{isIdle: true, since: now.Add(1)}, {since: now}}},
		{"of those that have a request the oldest", []openConn{{since: now}, {since: now.Add(1)}}},
		{"none whose request is accepted", []openConn{{since: now.Add(1)}, {isAccepted: true, since: now}}},
	} {
		var connections []net.Conn
		c := &connLimiter{log: slog.New(slog.DiscardHandler), open: map[net.Conn]*openConn{}}
		for i := range test.open {
			connection, other := net.Pipe()
			defer other.Close()
			connections = append(connections, connection)
			c.open[connection] = &test.open[i]
		}
		c.closeIdle()
		if c.open[connections[0]] != nil || len(c.open) != len(test.open)-1 {
			t.Errorf("%s: another one goes", test.name)
		}
	}
}

// It isn't parallel, as the limit is everybody's: 40 connections are a sixth of it.
func TestIdleConnectionsKeepNoRequestFromTheProxy(t *testing.T) {
	limitDescriptors(t, 240)
	p := newTestProxy(t, newAPI(t, func(w http.ResponseWriter, r *http.Request) {}).URL)
	for range 100 {
		defer p.dial(t).Close()
	}
	status, text := p.send(t, "GET /v1/models", "Connection: close")
	if diff := cmp.Diff(200, status); diff != "" {
		t.Errorf("status beside 100 idle connections (-want +got):\n%s%s", diff, text)
	}
	if count := strings.Count(p.log.String(), "too many connections"); count != 1 {
		t.Errorf("the log says it %d times, which is once a minute at most:\n%s", count, p.log)
	}
}

const realKey = "sk-the-real-key"

// startProxy starts a key proxy in front of api, for a server without agents.
func startProxy(t *testing.T, api http.HandlerFunc) (
	k keyring, base string, upstream *httptest.Server) {
	t.Helper()
	upstream = httptest.NewServer(api)
	t.Cleanup(upstream.Close)
	address, err := url.Parse(upstream.URL + "/base")
	if err != nil {
		t.Fatal(err)
	}
	k, handler := newKeyring(realKey, address)
	proxy := httptest.NewServer(handler)
	t.Cleanup(proxy.Close)
	return k, proxy.URL, upstream
}

func askProxy(t *testing.T, url, key string, header ...string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequest("POST", url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Api-Key", key)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, fmt.Sprint(string(data), response.Header)
}

func TestTheKeyProxyAcceptsThePresentPlaceholderAlone(t *testing.T) {
	t.Parallel()
	var seen atomic.Pointer[http.Request]
	keys, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		io.WriteString(w, "answered")
	})
	const old, present = "placeholder-old", "placeholder-present"
	keys.issue(old, nil)
	keys.issue(present, nil)
	tests := []struct {
		name, path, key string
		status          int
	}{
		{"the placeholder", "/v1/messages?beta=true", present, 200},
		{"the placeholder of the agent before", "/v1/messages", old, 403},
		{"no placeholder", "/v1/messages", "", 403},
		{"the real key", "/v1/messages", realKey, 403},
		{"another path", "/admin", present, 404},
		{"a path that climbs out", "/v1/../admin", present, 404},
		{"a path that climbs out, encoded", "/v1/%2e%2e/admin", present, 404},
		{"a path that climbs out, half encoded", "/v1/..%2fadmin", present, 404},
		{"a whole URL, as for a forward proxy", "/http://evil.example/v1/", present, 404},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seen.Store(nil)
			status, text := askProxy(t, base+test.path, test.key, "Authorization", "Bearer from-the-agent")
			if diff := cmp.Diff(test.status, status); diff != "" {
				t.Errorf("status (-want +got):\n%s%s", diff, text)
			}
			if strings.Contains(text, realKey) {
				t.Errorf("the answer holds the key: %s", text)
			}
			r := seen.Load()
			if (r != nil) != (test.status == 200) {
				t.Fatalf("the API was asked: %v", r != nil)
			}
			if r == nil {
				return
			}
			got := []string{r.URL.String(), r.Header.Get("X-Api-Key"), r.Header.Get("Authorization")}
			if diff := cmp.Diff([]string{"/base/v1/messages?beta=true", realKey, ""}, got); diff != "" {
				t.Errorf("what the API saw (-want +got):\n%s", diff)
			}
		})
	}
	keys.void()
	if status, _ := askProxy(t, base+"/v1/messages", present); status != 403 {
		t.Errorf("the placeholder still counts after its command: %d", status)
	}
}

func TestTheKeyProxyStreamsAndCancels(t *testing.T) {
	t.Parallel()
	canceled := make(chan struct{})
	keys, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: first\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(canceled)
	})
	const placeholder = "placeholder-present"
	keys.issue(placeholder, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, "POST", base+"/v1/messages", strings.NewReader("{}"))
	request.Header.Set("X-Api-Key", placeholder)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	first := make([]byte, len("event: first\n\n"))
	if _, err := io.ReadFull(response.Body, first); err != nil {
		t.Fatal(err) // while the API's answer has not ended
	}
	cancel()
	select {
	case <-canceled:
	case <-time.After(time.Minute):
		t.Error("the API was not told that the request is canceled")
	}
}

func TestTheKeyProxyTellsOfARefusedKeyAndAnAPIOutOfReach(t *testing.T) {
	t.Parallel()
	keys, base, upstream := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(401)
	})
	refused := false
	const placeholder = "placeholder-present"
	keys.issue(placeholder, func(why error) { refused = why == errKeyRefused })
	if status, _ := askProxy(t, base+"/v1/messages", placeholder); status != 401 || !refused {
		t.Errorf("status %d, refused %v", status, refused)
	}
	upstream.Close()
	status, text := askProxy(t, base+"/v1/messages", placeholder)
	if status != 502 || !strings.Contains(text, "cannot reach the model's API") ||
		strings.Contains(text, realKey) {
		t.Errorf("status %d, %s", status, text)
	}
}
