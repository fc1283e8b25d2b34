package test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cutter is a proxy before a server that breaks a connection off once it has passed
// a text on to the client, or when it is told to.
type cutter struct {
	url   string
	after string // "" passes all on, silence passes nothing on

	mu   sync.Mutex
	open []net.Conn
}

const silence = "silence"

func startCutter(t *testing.T, s *testServer, after string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{url: "http://" + listener.Addr().String(), after: after}
	t.Cleanup(func() {
		listener.Close()
		c.cut()
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				client.Close()
				continue
			}
			c.mu.Lock()
			c.open = append(c.open, client, server)
			c.mu.Unlock()
			go io.Copy(server, client)
			go c.pass(client, server)
		}
	}()
	return c
}

// pass passes on what the server says.
func (c *cutter) pass(client, server net.Conn) {
	defer c.cut()
	var passed []byte
	chunk := make([]byte, 1)
	for {
		_, err := server.Read(chunk)
		if err != nil {
			return
		}
		if c.after == silence {
			continue
		}
		client.Write(chunk)
		passed = append(passed, chunk...)
		if c.after != "" && bytes.HasSuffix(passed, []byte(c.after)) {
			return
		}
	}
}

// cut breaks every connection off.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, connection := range c.open {
		connection.Close()
	}
	c.open = nil
}

// Wherever the connection breaks, the same request again gets the answer of the one
// run. The control: without the key the same cut cancels the command.
func TestALostConnectionLosesNothing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, after string
		accept      []string
		isOver      bool // the command, by then
		isWhole     bool // the answer
	}{
		{name: "before the head", after: silence},
		{name: "in the heartbeats", after: "\r\n\r\n"}, // the first comes with the head
		{name: "in the answer", after: `"status":"succ`, isOver: true},
		{name: "after the last byte", after: "\r\n0\r\n\r\n", isOver: true, isWhole: true},
		{name: "before the head of a stream", after: silence, accept: asStream},
		{name: "in the events of a stream", after: `"init"`, accept: asStream},
		{name: "in the response of a stream", after: `"status":"succ`, accept: asStream, isOver: true},
		{name: "after the last byte of a stream", after: "\r\n0\r\n\r\n", accept: asStream,
			isOver: true, isWhole: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const command = "waits-to-go"
			s := startKeyed(t, "VM_HEARTBEAT=50ms")
			c := startCutter(t, s, test.after)
			through := *s
			through.url = c.url
			send := func(header []string) reply {
				outcomes := make(chan reply, 1)
				through.background(context.Background(), command, outcomes, header...)
				s.queued(0)
				if test.isOver {
					s.put("go")
				}
				if test.after == silence {
					c.cut()
				}
				return <-outcomes
			}

			o := send(withKey("a", test.accept...))
			if (o.err == nil) != test.isWhole {
				t.Fatalf("the first request: %+v", o)
			}
			s.logged("msg=client")
			outcomes := make(chan reply, 1)
			s.background(context.Background(), command, outcomes, withKey("a", test.accept...)...)
			if !test.isOver {
				eventually(t, "the same request has joined", func() bool { return len(s.connections()) == 1 })
				s.put("go")
			}
			o = <-outcomes
			if !strings.Contains(o.body, `"status":"success"`) {
				t.Errorf("the same request again: %+v", o)
			}
			if diff := cmp.Diff([]string{command}, s.prompts()); diff != "" {
				t.Errorf("what ran (-want +got):\n%s", diff)
			}
			if test.isOver {
				return // nothing to cancel
			}

			s = startKeyed(t, "VM_HEARTBEAT=50ms")
			c = startCutter(t, s, test.after)
			through.url = c.url
			send(test.accept)
			s.logged("code=client_gone")
		})
	}
}

// Keys live in memory: after a restart the same request begins anew, in whichever
// way the server went.
func TestAfterARestartTheSameRequestBeginsAnew(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		signal syscall.Signal
		want   string // of the first request
	}{
		{"it was stopped", syscall.SIGTERM, "canceled shutting_down"},
		{"it was killed", syscall.SIGKILL, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			start := func() *testServer {
				cmd := serverCommand(t, "VM_TOKEN=correct", "VM_SHUTDOWN_GRACE=0s")
				cmd.Dir = dir
				s := &testServer{stderr: &syncBuffer{}}
				cmd.Stderr = s.stderr
				s.t, s.cmd, s.done = t, cmd, make(chan error, 1)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				go func() { s.done <- cmd.Wait() }()
				t.Cleanup(func() { cmd.Process.Kill() })
				eventually(t, "the server listens", func() bool {
					s.url = listening(s.stderr.String())
					return s.url != ""
				})
				return s
			}
			marker := newMarker()
			defer killMarked(t, marker) // a killed server leaves what it ran
			s := start()
			s.put("prompts")
			outcomes := make(chan reply, 1)
			s.background(context.Background(), "waits "+marker, outcomes, withKey("a")...)
			_, cli := s.running(marker)
			s.cmd.Process.Signal(test.signal)
			if diff := cmp.Diff(test.want, inShort((<-outcomes).answer)); diff != "" {
				t.Errorf("the first request (-want +got):\n%s", diff)
			}
			s.wait()
			if test.signal == syscall.SIGKILL { // which leaves what it ran
				syscall.Kill(cli, syscall.SIGKILL)
			}
			killMarked(t, marker)

			s = start()
			s.background(context.Background(), "waits "+marker, outcomes, withKey("a")...)
			s.running(marker)
			if got := s.stopKey("a"); got != 202 {
				t.Errorf("the stop is answered %d", got)
			}
			if diff := cmp.Diff("canceled stopped", inShort((<-outcomes).answer)); diff != "" {
				t.Errorf("the same request (-want +got):\n%s", diff)
			}
			if got := len(s.prompts()); got != 4 { // two of two words
				t.Errorf("read were %q", s.prompts())
			}
		})
	}
}
