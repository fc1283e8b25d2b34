package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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

// Clients that say nothing may not take the descriptors that a sweep needs.
func TestIdleClientsTakeEveryDescriptor(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=1m")
	s.goesOn()
	marker := newMarker()
	outcomes := make(chan outcome, 1)
	s.background(context.Background(), "waits "+marker, outcomes)
	_, cli := s.running(marker)
	s.cmd.Process.Signal(syscall.SIGUSR2) // so that an ordinary user's test may count descriptors
	s.resources()
	defer s.limit("nofile", 64)()
	var connections []net.Conn
	for range 80 {
		connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		connections = append(connections, connection)
	}
	eventually(t, "as many are held as may be", func() bool { return s.resources().descriptors > 64/3 })
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
	if o := <-outcomes; inShort(o.answer) != "failed agent_crashed" || !strings.Contains(o.answer.Error.Message, "signal: killed") {
		t.Errorf("the command: %+v %+v", o, o.answer.Error)
	}
	if list := marked(t, marker); len(list) > 0 {
		t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
	}
	eventually(t, "who says nothing is closed in the end", func() bool { return s.resources().descriptors < 64/3 })
	s.goesOn()
}
