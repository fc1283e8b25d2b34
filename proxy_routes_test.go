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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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

func TestAHijackedConnectionCountsNoMore(t *testing.T) {
	t.Parallel()
	connection, other := net.Pipe()
	defer connection.Close()
	defer other.Close()
	for last, want := range map[http.ConnState]uint64{
		http.StateIdle:     1,
		http.StateClosed:   0,
		http.StateHijacked: 0,
	} {
		c := &connLimiter{share: clientShare}
		c.track(connection, http.StateNew)
		c.track(connection, last)
		if diff := cmp.Diff(want, c.open.Load()); diff != "" {
			t.Errorf("open connections when one is %s (-want +got):\n%s", last, diff)
		}
	}
}
