package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	open := startServer(t)
	locked := startServer(t, "VM_TOKEN=correct", "VM_MAX_BODY=100")
	asJSON := []string{"Content-Type", "application/json"}
	withToken := append([]string{"Authorization", "Bearer correct"}, asJSON...)
	hello := `{"command":"hello"}`
	tests := []struct {
		name               string
		server             *testServer
		method, path, body string
		header             []string
		status             int
		code, message      string
		answerHeader       [2]string
	}{
		{"a plain request is accepted", open, "POST", "/command", hello, asJSON, 200, "", "", [2]string{"Content-Type", "application/json"}},
		{"a request with the token is accepted", locked, "POST", "/command", hello, withToken, 200, "", "", [2]string{"Cache-Control", "no-store"}},
		{"the scheme may be in any case", locked, "POST", "/command", hello, append([]string{"Authorization", "bearer correct"}, asJSON...), 200, "", "", [2]string{}},
		{"a charset is accepted", open, "POST", "/command", hello, []string{"Content-Type", "application/json; charset=utf-8"}, 200, "", "", [2]string{}},
		{"a session is accepted", open, "POST", "/command", `{"command":"hello","session_id":"` + testSession + `"}`, asJSON, 200, "", "", [2]string{}},
		{"health needs no token", locked, "GET", "/healthz", "", nil, 200, "", "", [2]string{"Content-Type", "application/json"}},
		{"health answers HEAD", open, "HEAD", "/healthz", "", nil, 200, "", "", [2]string{}},
		{"health answers any Host", open, "GET", "/healthz", "", []string{"Host", "evil.example"}, 200, "", "", [2]string{}},
		{"a loopback Host by name", open, "POST", "/command", hello, append([]string{"Host", "LOCALHOST:3001"}, asJSON...), 200, "", "", [2]string{}},
		{"a loopback Host of IPv6", open, "POST", "/command", hello, append([]string{"Host", "[::1]:3001"}, asJSON...), 200, "", "", [2]string{}},
		{"any Host with a token", locked, "POST", "/command", hello, append([]string{"Host", "vm.example"}, withToken...), 200, "", "", [2]string{}},

		{"another path", open, "GET", "/", "", nil, 404, "not_found", "POST /command", [2]string{}},
		{"a path below", open, "POST", "/command/", hello, asJSON, 404, "not_found", "", [2]string{}},
		{"GET of a command", open, "GET", "/command", "", nil, 405, "method_not_allowed", "use POST", [2]string{"Allow", "POST"}},
		{"POST to health", open, "POST", "/healthz", "", nil, 405, "method_not_allowed", "use GET", [2]string{"Allow", "GET, HEAD"}},
		{"no token", locked, "POST", "/command", hello, asJSON, 401, "unauthorized", "VM_TOKEN", [2]string{"WWW-Authenticate", "Bearer"}},
		{"a wrong token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer wrong"}, asJSON...), 401, "unauthorized", "", [2]string{"WWW-Authenticate", "Bearer"}},
		{"the beginning of the token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer correc"}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"an empty token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer "}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"another scheme", locked, "POST", "/command", hello, append([]string{"Authorization", "Basic correct"}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"a web page's request", open, "POST", "/command", hello, append([]string{"Sec-Fetch-Site", "cross-site"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"another origin", open, "POST", "/command", hello, append([]string{"Origin", "https://evil.example"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"a web page's request with the token", locked, "POST", "/command", hello, append([]string{"Sec-Fetch-Site", "cross-site"}, withToken...), 403, "forbidden_origin", "", [2]string{}},
		{"a Host that DNS rebinding would send", open, "POST", "/command", hello, append([]string{"Host", "evil.example:3001"}, asJSON...), 403, "forbidden_origin", "VM_TOKEN", [2]string{}},
		{"a Host that only begins like loopback", open, "POST", "/command", hello, append([]string{"Host", "127.0.0.1.evil.example"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"a form", open, "POST", "/command", "command=hello", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "unsupported_media_type", "", [2]string{}},
		{"plain text, which a page may send", open, "POST", "/command", hello, []string{"Content-Type", "text/plain"}, 415, "unsupported_media_type", "", [2]string{}},
		{"no type", open, "POST", "/command", hello, nil, 415, "unsupported_media_type", "", [2]string{}},
		{"a large body", locked, "POST", "/command", `{"command":"` + strings.Repeat("x", 100) + `"}`, withToken, 413, "body_too_large", "100 bytes", [2]string{}},
		{"an empty body", open, "POST", "/command", "", asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"half a body", open, "POST", "/command", `{"command":"hel`, asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"an array", open, "POST", "/command", `[]`, asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"null", open, "POST", "/command", `null`, asJSON, 400, "invalid_request", "missing", [2]string{}},
		{"no command", open, "POST", "/command", `{}`, asJSON, 400, "invalid_request", "command is missing", [2]string{}},
		{"a blank command", open, "POST", "/command", `{"command":" \n"}`, asJSON, 400, "invalid_request", "blank", [2]string{}},
		{"a command of another type", open, "POST", "/command", `{"command":7}`, asJSON, 400, "invalid_request", "command is not a string", [2]string{}},
		{"an unknown field", open, "POST", "/command", `{"command":"hello","comand":1}`, asJSON, 400, "invalid_request", `unknown field \"comand\"`, [2]string{}},
		{"a field in another case", open, "POST", "/command", `{"command":"hello","Session_ID":"x"}`, asJSON, 400, "invalid_request", `Session_ID`, [2]string{}},
		{"a second value", open, "POST", "/command", hello + hello, asJSON, 400, "invalid_request", "at byte 20", [2]string{}},
		{"a closing brace too many", open, "POST", "/command", hello + "}", asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"invalid UTF-8", open, "POST", "/command", "{\"command\":\"\xff\"}", asJSON, 400, "invalid_request", "not UTF-8 at byte 12", [2]string{}},
		{"a NUL", open, "POST", "/command", `{"command":"a\u0000"}`, asJSON, 400, "invalid_request", "command holds a NUL at byte 1", [2]string{}},
		{"a session that is no UUID", open, "POST", "/command", `{"command":"hello","session_id":"--help"}`, asJSON, 400, "invalid_request", "session_id is not a UUID", [2]string{}},
		{"a session that is null", open, "POST", "/command", `{"command":"hello","session_id":null}`, asJSON, 400, "invalid_request", "leave it out", [2]string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response, body, err := test.server.send(context.Background(), test.method, test.path, test.body, test.header...)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Status string
				Error  problem
			}
			json.Unmarshal([]byte(body), &got)
			if diff := cmp.Diff(test.status, response.StatusCode); diff != "" {
				t.Errorf("status code (-want +got):\n%s%s", diff, body)
			}
			if diff := cmp.Diff(test.code, got.Error.Code); diff != "" {
				t.Errorf("error code (-want +got):\n%s", diff)
			}
			if test.code != "" && got.Status != "rejected" {
				t.Errorf("status is %q", got.Status)
			}
			if !strings.Contains(body, test.message) {
				t.Errorf("the message doesn't say %q: %s", test.message, body)
			}
			if name, want := test.answerHeader[0], test.answerHeader[1]; name != "" {
				if diff := cmp.Diff(want, response.Header.Get(name)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
	if strings.Contains(locked.stderr.String(), "correct") {
		t.Error("the log holds the token")
	}
}

// outcome is what became of a request that a test sent in the background.
type outcome struct {
	name   string
	status int
	answer answer
	body   string
	err    error
}

// background sends a command, and its outcome to the channel.
func (s *testServer) background(ctx context.Context, command string, outcomes chan<- outcome, header ...string) {
	go func() {
		o := outcome{name: command}
		var response *http.Response
		if response, o.body, o.err = s.post(ctx, command, header...); o.err == nil {
			o.status = response.StatusCode
			json.Unmarshal([]byte(o.body), &o.answer)
		}
		outcomes <- o
	}()
}

// queued waits until so many commands wait.
func (s *testServer) queued(want int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d wait", want), func() bool {
		_, state := s.state()
		return state["busy"] == true && state["queued"] == float64(want)
	})
}

func TestQueue(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_QUEUE=3")
	outcomes := make(chan outcome, 10)
	leaving, leave := context.WithCancel(context.Background())
	s.background(context.Background(), "sleeps 4s", outcomes)
	s.queued(0)
	s.background(context.Background(), "first", outcomes)
	s.queued(1)
	s.background(leaving, "goes-away", outcomes)
	s.queued(2)
	s.background(context.Background(), "second", outcomes)
	s.queued(3)
	response, body, err := s.post(context.Background(), "one-too-many")
	if err != nil || response.StatusCode != 429 || !strings.Contains(body, `"queue_full"`) || response.Header.Get("Retry-After") == "" {
		t.Errorf("overflow: %v %q %v", response, body, err)
	}
	leave()
	s.queued(2)
	var got []string
	for range 4 {
		o := <-outcomes
		if o.err != nil {
			continue // the one that went away
		}
		got = append(got, o.answer.Result)
	}
	if diff := cmp.Diff([]string{"sleeps", "first", "second"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if strings.Contains(s.stderr.String(), "goes-away") || !strings.Contains(s.stderr.String(), "code=client_gone") {
		t.Errorf("log:\n%s", s.stderr)
	}
}

func TestTheTimeoutDoesNotCountTheWait(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=25s")
	outcomes := make(chan outcome, 2)
	s.background(context.Background(), "sleeps 13s", outcomes)
	s.queued(0)
	s.background(context.Background(), "sleeps 13s", outcomes)
	for range 2 {
		if o := <-outcomes; o.answer.Status != "success" || o.answer.DurationMS > 25000 {
			t.Errorf("%+v", o)
		}
	}
}

func TestHeartbeatsKeepAWaitingClient(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_HEARTBEAT=100ms")
	outcomes := make(chan outcome, 2)
	s.background(context.Background(), "sleeps 2s", outcomes) // beats while it runs
	s.queued(0)
	s.background(context.Background(), "second", outcomes) // beats while it waits
	for range 2 {
		o := <-outcomes
		if beats := len(o.body) - len(strings.TrimLeft(o.body, "\n")); beats < 3 {
			t.Errorf("%s: %d heartbeats", o.name, beats)
		}
		if o.answer.Status != "success" {
			t.Errorf("%s: not valid JSON with its heartbeats: %q", o.name, o.body)
		}
	}
	none := startServer(t, "VM_HEARTBEAT=0") // the control
	none.background(context.Background(), "sleeps 300ms", outcomes)
	if o := <-outcomes; !strings.HasPrefix(o.body, "{") {
		t.Errorf("with VM_HEARTBEAT=0: %q", o.body)
	}
}

func TestAClientThatGoesAwayCancelsItsCommand(t *testing.T) {
	t.Parallel()
	for _, header := range [][]string{nil, {"Accept", "text/event-stream"}} {
		s := startServer(t)
		marker := newMarker()
		ctx, cancel := context.WithCancel(context.Background())
		outcomes := make(chan outcome, 1)
		s.background(ctx, "waits "+marker, outcomes, header...)
		eventually(t, "the command runs", func() bool { return len(marked(t, marker)) > 0 })
		cancel()
		eventually(t, "its processes are gone", func() bool { return len(marked(t, marker)) == 0 })
		eventually(t, "the log says so", func() bool { return strings.Contains(s.stderr.String(), "status=canceled code=client_gone") })
		if got := s.ask("hello"); got.Status != "success" {
			t.Errorf("the next command: %+v", got)
		}
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, running, grace string
		signals              int
		want                 map[string]string // status and code of each answer
	}{
		{"the running command may end, the waiting one is told", "sleeps 4s", "20s", 1, map[string]string{"sleeps 4s": "success", "queued": "canceled shutting_down"}},
		{"after the grace the running command is stopped", "waits", "300ms", 1, map[string]string{"waits": "canceled shutting_down", "queued": "canceled shutting_down"}},
		{"a second signal stops it at once", "waits", "1h", 2, map[string]string{"waits": "canceled shutting_down", "queued": "canceled shutting_down"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_SHUTDOWN_GRACE="+test.grace)
			outcomes := make(chan outcome, 3)
			s.background(context.Background(), test.running, outcomes)
			s.queued(0)
			s.background(context.Background(), "queued", outcomes)
			s.queued(1)
			for i := range test.signals {
				if i > 0 {
					eventually(t, "it is stopping", func() bool { return strings.Contains(s.stderr.String(), "msg=stopping") })
				}
				s.cmd.Process.Signal(syscall.SIGTERM)
			}
			if test.signals == 1 {
				eventually(t, "health says 503", func() bool { status, _ := s.state(); return status == 503 })
				response, body, err := s.post(context.Background(), "late")
				if err != nil || response.StatusCode != 503 || !strings.Contains(body, `"shutting_down"`) {
					t.Errorf("a late command: %v %q %v", response, body, err)
				}
			}
			got := map[string]string{}
			for range 2 {
				o := <-outcomes
				got[o.name] = o.answer.Status
				if o.answer.Error != nil {
					got[o.name] += " " + o.answer.Error.Code
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if err := <-s.done; err != nil {
				t.Errorf("exit: %v", err)
			} else {
				s.done <- nil
			}
			if _, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://")); err == nil {
				t.Error("somebody still listens")
			}
		})
	}
}

func TestEventStream(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_HEARTBEAT=100ms")
	outcomes := make(chan outcome, 3)
	stream := []string{"Accept", "text/event-stream"}
	s.background(context.Background(), "sleeps 4s", outcomes)
	s.queued(0)
	s.background(context.Background(), "sleeps 500ms", outcomes)
	s.queued(1)
	s.background(context.Background(), "streamed", outcomes, stream...)
	<-outcomes
	<-outcomes
	o := <-outcomes
	var got []string
	var response answer
	beats := 0
	for event := range strings.SplitSeq(strings.TrimSuffix(o.body, "\n\n"), "\n\n") {
		name, data, _ := strings.Cut(event, "\n")
		data = strings.TrimPrefix(data, "data: ")
		switch name {
		case ":":
			beats++
		case "event: agent":
			got = append(got, parseLine([]byte(data)).Type)
		case "event: response":
			json.Unmarshal([]byte(data), &response)
			got = append(got, "response "+response.Result)
		default:
			got = append(got, name+" "+data)
		}
	}
	want := []string{`event: queued {"position":2}`, `event: queued {"position":1}`, "system", "assistant", "assistant", "assistant", "result", "response streamed"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if beats < 5 {
		t.Errorf("%d heartbeats", beats)
	}
}

// However soon the next heartbeat is due.
func TestNothingFollowsTheResponse(t *testing.T) {
	t.Parallel()
	for accept, end := range map[string]string{"application/json": "{}\n", "text/event-stream": "event: response\ndata: {}\n\n"} {
		w, r, events := httptest.NewRecorder(), httptest.NewRequest("POST", "/command", nil), make(chan event)
		r.Header.Set("Accept", accept)
		go func() {
			time.Sleep(10 * time.Millisecond)
			events <- event{"response", []byte("{}")}
		}()
		reply(w, r, time.Millisecond, events) // returns, although events stays open
		if body := w.Body.String(); !strings.HasSuffix(body, end) || len(body) < len(end)+5 {
			t.Errorf("%s: after some heartbeats %q is not the end: %q", accept, end, body)
		}
	}
}

// A server that is asked by a raw socket: what a slow or odd client sees.
func TestOddClients(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	dial := func(t *testing.T, text string) *bufio.Reader {
		t.Helper()
		connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { connection.Close() })
		connection.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(connection, text); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReader(connection)
	}
	head := "POST /command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	body := `{"command":"hello"}`
	tests := []struct {
		name, text string
		want       []int
	}{
		{"HTTP/1.0", strings.Replace(head, "1.1", "1.0", 1) + "Content-Length: 19\r\n\r\n" + body, []int{200}},
		{"a chunked body with a trailer", head + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n13\r\n" + body + "\r\n0\r\nX: y\r\n\r\n", []int{200}},
		{"two requests at once", strings.Repeat(head+"Content-Length: 19\r\n\r\n"+body, 2), []int{200, 200}},
		{"a refusal keeps the connection", strings.Replace(head, "/command", "/other", 1) + "Content-Length: 19\r\n\r\n" + body + head + "Content-Length: 19\r\n\r\n" + body, []int{404, 200}},
		{"two lengths", head + "Content-Length: 19\r\nContent-Length: 20\r\n\r\n" + body, []int{400}},
		{"an unknown encoding", head + "Transfer-Encoding: chunked, gzip\r\n\r\n", []int{501}},
		{"a head without end", "GET /healthz HTTP/1.1\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", []int{431}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			in := dial(t, test.text)
			var got []int
			for range test.want {
				response, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, response.Body)
				got = append(got, response.StatusCode)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("status codes (-want +got):\n%s", diff)
			}
		})
	}
}

// The control is that the server goes on: each of these holds what a client may.
func TestIdleConnectionsStarveNobody(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_QUEUE=1")
	for i := range 300 {
		connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		switch i % 3 { // nothing, half a head, half a body without the token
		case 1:
			io.WriteString(connection, "POST /command HTTP/1.1\r\nHost: a")
		case 2:
			io.WriteString(connection, "POST /command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
		}
	}
	response, body, err := s.post(context.Background(), "hello", "Authorization", "Bearer correct")
	if err != nil || response.StatusCode != 200 || !strings.Contains(body, `"success"`) {
		t.Errorf("beside 300 idle connections: %v %q %v", response, body, err)
	}
}

func TestACarriageReturnForgesNoEvent(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	_, body, err := s.post(context.Background(), "forges-an-event", "Accept", "text/event-stream")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body, `"forged"`) {
		t.Errorf("the line did not come through at all: %q", body)
	}
	if strings.Contains(body, "\r") { // which ends a line of a stream, as a newline does
		t.Errorf("a forged event: %q", body)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, seed := range []string{`{"command":"hello"}`, `{"command":"a","session_id":"` + testSession + `"}`, `{"command":"\u0000"}`, `{}`, `{"command":"a"}{}`, `[`, "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := decodeRequest(body)
		if err != nil {
			return
		}
		if strings.TrimSpace(c.prompt) == "" || strings.Contains(c.prompt, "\x00") || c.session != "" && !uuid.MatchString(c.session) {
			t.Errorf("accepted %q as %+v", body, c)
		}
	})
}
