package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// startKeyed starts a server that takes keys, with a file that notes each prompt.
func startKeyed(t testing.TB, env ...string) *testServer {
	t.Helper()
	s := startServer(t, append([]string{"VM_TOKEN=correct"}, env...)...)
	s.put("prompts")
	return s
}

// withKey is the header of a request with a key.
func withKey(key string, more ...string) []string {
	return and([]string{"Idempotency-Key", key}, more...)
}

var asStream = []string{"Accept", "text/event-stream"}

// prompts are what the CLI was asked so far, which the model would have been.
func (s *testServer) prompts() []string {
	s.t.Helper()
	data, err := os.ReadFile(s.cmd.Dir + "/prompts")
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// askWithKey sends a command with a key and returns its answer, without heartbeats.
func (s *testServer) askWithKey(key, command string, header ...string) (*http.Response, string) {
	s.t.Helper()
	response, body, err := s.post(context.Background(), command, withKey(key, header...)...)
	if err != nil {
		s.t.Fatalf("%s: %v; the server's log:\n%s", key, err, s.stderr)
	}
	return response, strings.TrimSpace(body)
}

// stopKey asks for the end of a key's command, and returns the status code.
func (s *testServer) stopKey(key string) int {
	s.t.Helper()
	header := and(s.authorization(), "Idempotency-Key", key)
	response, body, err := s.send(context.Background(), "DELETE", "/command", "", header...)
	if err != nil {
		s.t.Fatal(err)
	}
	if response.StatusCode == http.StatusAccepted && body != `{"status":"stopping"}`+"\n" {
		s.t.Errorf("the stop is answered %q", body)
	}
	return response.StatusCode
}

func TestAKeyIsHeldAgainstTheDoors(t *testing.T) {
	t.Parallel()
	s := startKeyed(t, "VM_MAX_BODY=100")
	open := startServer(t)
	with := func(keys ...string) []string {
		header := and(asJSON, "Authorization", "Bearer correct")
		for _, key := range keys {
			header = append(header, "Idempotency-Key", key)
		}
		return header
	}
	invalid := func(name, key string) door {
		return door{name: name, server: s, body: hello, header: with(key), status: 400,
			code: "invalid_request", message: "1 to 200 visible ASCII characters"}
	}
	stop := func(name string, server *testServer, status int, code string, header []string) door {
		return door{name: name, server: server, method: "DELETE", path: "/command",
			header: header, status: status, code: code}
	}
	tests := []door{
		{name: "a key of one character", server: s, body: hello, header: with("!"), status: 200},
		{name: "a key of 200 characters", server: s, body: hello,
			header: with(strings.Repeat("~", 200)), status: 200},
		invalid("an empty key", ""),
		invalid("a key of 201 characters", strings.Repeat("~", 201)),
		invalid("a key with a space", "a b"),
		invalid("a key with a tab", "a\tb"),
		invalid("a key that is not ASCII", "schlüssel"),
		{name: "a key where the server has no token", server: open, body: hello,
			header: and(asJSON, "Idempotency-Key", "a"), status: 400, code: "invalid_request",
			message: "VM_TOKEN"},
		{name: "a key without the token", server: s, body: hello,
			header: and(asJSON, "Idempotency-Key", "!"), status: 401, code: "unauthorized"},
		{name: "a key from a web page", server: s, body: hello,
			header: and(with("!"), "Sec-Fetch-Site", "cross-site"), status: 403,
			code: "forbidden_origin"},
		{name: "a known key with another body", server: s, body: `{"command":"other"}`,
			header: with("!"), status: 422, code: "key_reused"},
		{name: "a known key with a body that is too large", server: s,
			body: strings.Repeat(" ", 101), header: with("!"), status: 413, code: "body_too_large"},

		stop("a stop without a key", s, 400, "invalid_request", with()),
		stop("a stop where the server has no token", open, 400, "invalid_request", with("a")),
		stop("a stop without the token", s, 401, "unauthorized", []string{"Idempotency-Key", "!"}),
		stop("a web page's stop", s, 403, "forbidden_origin",
			and(with("!"), "Origin", "https://evil.example")),
		stop("a stop of an unknown key", s, 404, "not_found", with("unknown")),
		stop("a stop of what is over", s, 404, "not_found", with("!")),
	}
	for _, test := range tests {
		t.Run(test.name, test.knock)
	}
	t.Run("two keys", func(t *testing.T) {
		request, err := http.NewRequest("POST", s.url+"/command", strings.NewReader(hello))
		if err != nil {
			t.Fatal(err)
		}
		request.Header = http.Header{"Authorization": {"Bearer correct"},
			"Content-Type": {"application/json"}, "Idempotency-Key": {"a", "a"}}
		response, err := http.DefaultClient.Do(request)
		if err != nil || response.StatusCode != 400 {
			t.Errorf("%v %v", response, err)
		}
	})
	if diff := cmp.Diff([]string{"hello", "hello"}, s.prompts()); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

func TestTenClientsWithOneKeyAreOneCommandWithOneAnswer(t *testing.T) {
	t.Parallel()
	s := startKeyed(t)
	bodies := make(chan string, 10)
	for i := range cap(bodies) {
		var accept []string
		if i%2 == 1 {
			accept = asStream
		}
		go func() {
			_, body, err := s.post(context.Background(), "waits-to-go", withKey("a", accept...)...)
			_, answer, _ := strings.Cut(body, `{"status"`)
			bodies <- strings.TrimSpace(answer) + fmt.Sprint(" ", err)
		}()
	}
	eventually(t, "all are there", func() bool { return len(s.connections()) == 10 })
	s.put("go")
	want := <-bodies
	if !strings.HasPrefix(want, `:"success"`) {
		t.Errorf("the answer is %q", want)
	}
	for range cap(bodies) - 1 {
		if diff := cmp.Diff(want, <-bodies); diff != "" {
			t.Errorf("another answer (-one +other):\n%s", diff)
		}
	}
	for _, accept := range [][]string{nil, asStream} {
		response, body := s.askWithKey("a", "waits-to-go", accept...)
		if got := response.Header.Get("Idempotency-Replayed"); got != "true" {
			t.Errorf("Idempotency-Replayed is %q", got)
		}
		body, isStream := strings.CutPrefix(body, "event: response\ndata: ")
		if isStream != (accept != nil) {
			t.Errorf("%v is answered %q", accept, body)
		}
		if diff := cmp.Diff(`{"status"`+want, body+" <nil>"); diff != "" {
			t.Errorf("the kept answer (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff([]string{"waits-to-go"}, s.prompts()); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

func TestAFailureIsKeptAsWell(t *testing.T) {
	t.Parallel()
	s := startKeyed(t)
	_, first := s.askWithKey("a", "exits")
	response, second := s.askWithKey("a", "exits")
	if diff := cmp.Diff(first, second); diff != "" || !strings.Contains(first, "agent_crashed") {
		t.Errorf("the same failure (-first +second):\n%s\n%s", diff, first)
	}
	if response.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("the header is %v", response.Header)
	}
}

func TestARefusedRequestUsesNoKeyUp(t *testing.T) {
	t.Parallel()
	s := startKeyed(t, "VM_QUEUE=0")
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "waits-to-go", outcomes, withKey("first")...)
	s.queued(0)
	if response, _ := s.askWithKey("a", "hello"); response.StatusCode != 429 {
		t.Errorf("a full queue is answered %d", response.StatusCode)
	}
	s.put("go")
	<-outcomes
	header := slices.Concat(s.authorization(), asJSON, withKey("a"))
	response, body, err := s.send(context.Background(), "POST", "/command", "{}", header...)
	if err != nil || response.StatusCode != 400 {
		t.Errorf("a wrong body is answered %d %s", response.StatusCode, body)
	}
	if _, body := s.askWithKey("a", "hello"); !strings.Contains(body, "success") {
		t.Errorf("then the key's answer is %s", body)
	}
}

// What is kept is bounded in number, in age and in size.
const maxAnswers = 64 // that the server keeps

func TestTheOldestAnswersAreForgotten(t *testing.T) {
	t.Parallel()
	isKept := func(s *testServer, key, command string) bool {
		response, _ := s.askWithKey(key, command)
		return response.Header.Get("Idempotency-Replayed") == "true"
	}
	t.Run("64 are kept", func(t *testing.T) {
		t.Parallel()
		s := startKeyed(t)
		for i := range maxAnswers + 1 {
			s.askWithKey(fmt.Sprint(i), "hello")
		}
		if !isKept(s, "1", "hello") || !isKept(s, fmt.Sprint(maxAnswers), "hello") {
			t.Error("the last 64 are not kept")
		}
		if isKept(s, "0", "hello") { // which runs it again
			t.Error("one more is kept")
		}
	})
	t.Run("for a time", func(t *testing.T) {
		t.Parallel()
		s := startKeyed(t, "TEST_VARIANT=short lives")
		s.askWithKey("a", "hello")
		eventually(t, "it is forgotten", func() bool { return !isKept(s, "a", "hello") })
	})
	t.Run("so many bytes of them", func(t *testing.T) {
		t.Parallel()
		s := startKeyed(t)
		const large = "answers-with 2000000" // of which 1 MiB is the result
		for i := range 16 {
			s.askWithKey(fmt.Sprint(i), large)
		}
		if isKept(s, "0", large) || !isKept(s, "1", large) || !isKept(s, "15", large) {
			t.Error("of 16 of 1 MiB not just the last 15 are kept, since each is a little larger")
		}
	})
}

func TestACommandWithAKeyOutlivesItsClients(t *testing.T) {
	t.Parallel()
	for _, accept := range [][]string{nil, asStream} {
		s := startKeyed(t)
		ctx, cancel := context.WithCancel(context.Background())
		outcomes := make(chan reply, 1)
		s.background(ctx, "waits-to-go", outcomes, withKey("a", accept...)...)
		s.queued(0)
		cancel()
		<-outcomes
		s.logged("msg=client")
		if _, state := s.state(); state["busy"] != true {
			t.Errorf("the command went with its client: %v", state)
		}
		s.put("go")
		s.logged("msg=command")
		response, body := s.askWithKey("a", "waits-to-go")
		if !strings.Contains(body, "success") || response.Header.Get("Idempotency-Replayed") == "" {
			t.Errorf("the answer is %s", body)
		}
		if diff := cmp.Diff([]string{"waits-to-go"}, s.prompts()); diff != "" {
			t.Errorf("what ran (-want +got):\n%s", diff)
		}
	}
}

func TestAShutdownTellsEveryoneWhoJoined(t *testing.T) {
	t.Parallel()
	const success, canceled = "success", "canceled shutting_down"
	for _, test := range []struct{ name, command, grace, want string }{
		{"a command that may end", "waits-to-go", "20s", success},
		{"a command that is stopped", "waits", "3s", canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startKeyed(t, "VM_SHUTDOWN_GRACE="+test.grace)
			outcomes := make(chan reply, 4)
			s.background(context.Background(), test.command, outcomes, withKey("a")...)
			s.queued(0)
			s.background(context.Background(), test.command, outcomes, withKey("a")...)
			s.background(context.Background(), "queued", outcomes, withKey("b")...)
			s.queued(1)
			s.cmd.Process.Signal(syscall.SIGTERM)
			s.logged("msg=stopping")
			eventually(t, "a new key is refused", func() bool {
				response, _ := s.askWithKey("c", "hello")
				return response.StatusCode == 503
			})
			s.background(context.Background(), test.command, outcomes, withKey("a")...)
			eventually(t, "it has joined", func() bool { return len(s.connections()) == 3 })
			s.put("go")
			got := map[string]int{}
			for range cap(outcomes) {
				o := <-outcomes
				got[o.name+": "+inShort(o.answer)]++
			}
			want := map[string]int{test.command + ": " + test.want: 3, "queued: " + canceled: 1}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if err := s.wait(); err != nil {
				t.Errorf("exit: %v", err)
			}
		})
	}
}

// connections lists the established TCP connections to the server, by how many bytes
// it has not read yet: proc_net(5).
func (s *testServer) connections() (unread []int) {
	s.t.Helper()
	_, port, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), ":")
	var number int
	fmt.Sscan(port, &number)
	data, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		isServers := strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", number))
		if isServers && fields[3] == "01" { // established
			var sending, reading int
			fmt.Sscanf(fields[4], "%x:%x", &sending, &reading)
			unread = append(unread, reading)
		}
	}
	return unread
}

// A client that closes its sending side may still read. It gets the answer, or a response
// that is broken off: none that looks complete and has no answer.
func TestAClientThatClosesItsSendingSideIsNotAnsweredWithNothing(t *testing.T) {
	t.Parallel()
	for variant, want := range map[string]bool{"": false, "no abort": true} {
		s := startKeyed(t, "VM_QUEUE=100", "TEST_VARIANT="+variant)
		var empty []string
		for i := range 40 {
			accept := []string{"application/json", "text/event-stream"}[i%2]
			connection := s.dial(t)
			connection.SetDeadline(time.Now().Add(time.Minute))
			fmt.Fprintf(connection, "POST /command HTTP/1.1\r\nHost: localhost\r\nAccept: %s\r\n"+
				"Content-Type: application/json\r\nAuthorization: Bearer correct\r\n"+
				"Idempotency-Key: %d\r\nContent-Length: %d\r\n\r\n%s",
				accept, i/4, len(hello), hello) // so half of them are replays
			connection.(*net.TCPConn).CloseWrite()
			response, err := http.ReadResponse(bufio.NewReader(connection), nil)
			if err != nil {
				continue // broken off before its head
			}
			body, err := io.ReadAll(response.Body)
			if err == nil && !strings.Contains(string(body), `"status":"success"`) {
				empty = append(empty, response.Status+string(body))
			}
		}
		if got := len(empty) > 0; got != want {
			t.Errorf("%q: responses that look complete and have no answer: %q", variant, empty)
		}
	}
}

// The key stands for its failure: the same request would get that again.
func TestAFailureThatMayEndNamesTheKeyInItsRemedy(t *testing.T) {
	t.Parallel()
	s := startKeyed(t)
	const remedy = "send the command again with a new Idempotency-Key later"
	_, withKey := s.askWithKey("a", "is-overloaded 529")
	if !strings.Contains(withKey, remedy) {
		t.Errorf("with a key: %s", withKey)
	}
	if without := s.ask("is-overloaded 529").Error.Message; strings.Contains(without, "Idempotency-Key") {
		t.Errorf("without a key: %s", without)
	}
}
