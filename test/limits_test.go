package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// By a raw socket: what a slow or odd client sees.
func TestOddClientsAreAnsweredOrRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	const (
		head   = "POST /command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
		length = "Content-Length: 19\r\n\r\n"
	)
	in10 := strings.Replace(head, "1.1", "1.0", 1)
	elsewhere := strings.Replace(head, "/command", "/other", 1)
	chunked := "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n" +
		"13\r\n" + hello + "\r\n0\r\nX: y\r\n\r\n"
	tests := []struct {
		name, text string
		want       []int
	}{
		{"HTTP/1.0", in10 + length + hello, []int{200}},
		{"a chunked body with a trailer", head + chunked, []int{200}},
		{"two requests at once", strings.Repeat(head+length+hello, 2), []int{200, 200}},
		{"a refusal keeps the connection", elsewhere + length + hello + head + length + hello,
			[]int{404, 200}},
		{"two lengths", head + "Content-Length: 19\r\nContent-Length: 20\r\n\r\n" + hello, []int{400}},
		{"an unknown encoding", head + "Transfer-Encoding: chunked, gzip\r\n\r\n", []int{501}},
		{"a head without end", "GET /healthz HTTP/1.1\r\nX: " + strings.Repeat("x", 32<<10) + "\r\n\r\n",
			[]int{431}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { // one after another: without a token none waits
			connection := s.dial(t)
			connection.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(connection, test.text); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(connection)
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

// halfARequest names a body that is longer than it.
const halfARequest = "POST /command HTTP/1.1\r\nHost: localhost\r\n" +
	"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"command\":\"hel"

// The control is that the server goes on: each of these holds what a client may.
func TestIdleConnectionsStarveNobody(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_QUEUE=1")
	for i := range 300 {
		connection := s.dial(t)
		switch i % 3 { // nothing, half a head, half a body without the token
		case 1:
			io.WriteString(connection, "POST /command HTTP/1.1\r\nHost: a")
		case 2:
			io.WriteString(connection, halfARequest)
		}
	}
	if got := s.ask("hello", "Authorization", "Bearer correct"); got.Status != "success" {
		t.Errorf("beside 300 idle connections: %+v %+v", got, got.Error)
	}
}

// What is asked without the token gets an answer, and no hold on the connection.
func TestAConnectionIsKeptOnlyForWhoMaySendCommands(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct")
	for _, test := range []struct {
		name, path, authorization string
		closes                    bool
	}{
		{"health without the token", "/healthz", "", true},
		{"health with a wrong one", "/healthz", "Bearer wrong", true},
		{"another path without it", "/other", "", true},
		{"health with the token", "/healthz", "Bearer correct", false},
	} {
		connection := s.dial(t)
		connection.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(connection, "GET %s HTTP/1.1\r\nHost: vm.example\r\nAuthorization: %s\r\n\r\n",
			test.path, test.authorization)
		response, err := http.ReadResponse(bufio.NewReader(connection), nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.closes, response.Close); diff != "" {
			t.Errorf("%s: the connection closes (-want +got):\n%s", test.name, diff)
		}
	}
}

// As many as there may be ask for the health again and again on connections that are kept,
// as the agent can while there is no token. The control serves first who came first.
func TestConnectionsThatAreKeptInUseStarveNobody(t *testing.T) {
	t.Parallel()
	for _, variant := range []string{"", "first come"} {
		s := startServer(t, "TEST_VARIANT="+variant)
		s.goesOn()
		const limit = 30
		lift := s.limit("nofile", 3*limit)
		ctx, cancel := context.WithCancel(context.Background())
		var asking sync.WaitGroup
		var answers atomic.Int32
		for range limit {
			asking.Go(func() {
				client := &http.Client{Transport: &http.Transport{}}
				for ctx.Err() == nil {
					response, err := client.Get(s.url + "/healthz")
					if err == nil {
						io.Copy(io.Discard, response.Body)
						response.Body.Close()
						answers.Add(1)
					}
					time.Sleep(20 * time.Millisecond)
				}
				client.CloseIdleConnections()
			})
		}
		eventually(t, "they ask", func() bool { return answers.Load() > 10*limit })

		failed := 0
		for range 20 {
			_, body, err := s.post(context.Background(), "hello")
			if err != nil || !strings.Contains(body, `"success"`) {
				failed++
			}
		}
		cancel()
		asking.Wait()
		lift()
		switch {
		case variant == "" && failed > 0:
			t.Errorf("%d of 20 commands got no answer; the server's log:\n%s", failed, s.stderr)
		case variant != "" && failed == 0:
			t.Error("the control answers too, so this proves nothing")
		case variant == "":
			s.logged("too many connections are open")
		}
	}
}

// Without a token the agent may send files, as slowly as it likes. The control keeps each
// such connection.
func TestFilesThatAreSentSlowlyStarveNobody(t *testing.T) {
	t.Parallel()
	for _, variant := range []string{"", "keeps all"} {
		s := startServer(t, "TEST_VARIANT="+variant)
		s.goesOn()
		const limit = 30
		defer s.limit("nofile", 3*limit)()
		sendSlowly := func() {
			fmt.Fprint(s.dial(t), "PUT /files/inbox/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nhalf")
		}
		isAnswered := func() bool {
			_, body, err := s.post(context.Background(), "hello")
			return err == nil && strings.Contains(body, `"success"`)
		}
		for range limit {
			sendSlowly()
		}
		if variant == "" {
			for range 10 {
				sendSlowly()
				if !isAnswered() {
					t.Errorf("a command beside them is not answered; the server's log:\n%s", s.stderr)
				}
			}
			continue
		}
		eventually(t, "the control answers no command", func() bool {
			sendSlowly() // in place of one that made room before its request was read
			return !isAnswered()
		})
	}
}

// Each request to the key proxy takes a second connection, to the API. What holds them is
// what has to be swept.
func TestTheAgentsRequestsTakeNoDescriptorThatASweepNeeds(t *testing.T) {
	t.Parallel()
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	s := startServer(t, "VM_TIMEOUT=1m", "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL="+api.URL)
	s.goesOn()
	marker := newMarker()
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "waits "+marker, outcomes)
	_, cli := s.running(marker)
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", cli))
	if err != nil {
		t.Fatal(err)
	}
	value := map[string]string{}
	for entry := range strings.SplitSeq(string(environ), "\x00") {
		name, rest, _ := strings.Cut(entry, "=")
		value[name] = rest
	}

	s.countable()
	s.resources()
	lift := s.limit("nofile", 90)
	var connections []net.Conn
	for range 60 {
		connection, err := net.Dial("tcp", strings.TrimPrefix(value["ANTHROPIC_BASE_URL"], "http://"))
		if err != nil {
			t.Fatal(err)
		}
		connections = append(connections, connection)
		fmt.Fprintf(connection, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n"+
			"Content-Length: 1000000\r\n\r\nhalf", value["ANTHROPIC_API_KEY"])
	}
	for range 60 {
		connection := s.dial(t)
		connections = append(connections, connection)
		io.WriteString(connection, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	}
	eventually(t, "as many are held as may be", func() bool {
		return s.resources().descriptors > 90/3+90/6+90/6
	})

	syscall.Kill(cli, syscall.SIGKILL) // and what it started is left to the sweep
	o := <-outcomes
	if inShort(o.answer) != "failed agent_crashed" ||
		!strings.Contains(o.answer.Error.Message, "signal: killed") {
		t.Errorf("the command: %+v %+v", o, o.answer.Error)
	}
	nothingLeft(t, marker)
	if strings.Contains(s.stderr.String(), "too many open files") {
		t.Errorf("no descriptor was left:\n%s", s.stderr)
	}
	lift()
	for _, connection := range connections {
		connection.Close()
	}
	s.goesOn()
}

// Clients that say nothing may not take the descriptors that a sweep needs.
func TestIdleClientsTakeNoDescriptorThatASweepNeeds(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=1m")
	s.goesOn()
	marker := newMarker()
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "waits "+marker, outcomes)
	_, cli := s.running(marker)
	s.countable()
	s.resources()
	defer s.limit("nofile", 64)()
	var connections []net.Conn
	for range 80 {
		connections = append(connections, s.dial(t))
	}
	eventually(t, "as many are held as may be", func() bool {
		return s.resources().descriptors > 64/3
	})
	held := 0
	for _, connection := range connections {
		connection.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := connection.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			held++
		}
	}
	if held > 64/3 {
		t.Errorf("%d idle connections are held", held)
	}
	syscall.Kill(cli, syscall.SIGKILL) // and what it started is left to the sweep
	o := <-outcomes
	if inShort(o.answer) != "failed agent_crashed" ||
		!strings.Contains(o.answer.Error.Message, "signal: killed") {
		t.Errorf("the command: %+v %+v", o, o.answer.Error)
	}
	nothingLeft(t, marker)
	eventually(t, "who says nothing is closed in the end", func() bool {
		return s.resources().descriptors < 64/3
	})
	s.goesOn()
}
