package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
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
		{"its status is none", raw("HTTP/1.1 000 " + prompt + "\r\n\r\n"), "sent a valid answer"},
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

// net/http reports such bytes by a logger of its own.
func TestWhatTheAPISendsUnaskedIsNotInTheLog(t *testing.T) {
	t.Parallel()
	sent := make(chan bool, 1)
	api := newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
		io.WriteString(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		for range 100 { // some of it comes when the connection is idle
			_, err := io.WriteString(out, realKey)
			if err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		select {
		case sent <- true:
		default:
		}
	})
	s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL="+api)
	if diff := cmp.Diff("404 Not Found", s.ask("asks-the-api").Result); diff != "" {
		t.Errorf("what the agent gets (-want +got):\n%s", diff)
	}
	<-sent
	s.stop()
	if strings.Contains(s.stderr.String(), realKey) {
		t.Errorf("the log quotes it:\n%s", s.stderr)
	}
}

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
