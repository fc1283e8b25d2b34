package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fetchInNode sends a command by Node's fetch, with a timeout of its own where
// that is not "", and returns the answer's status or the error's code.
func fetchInNode(t *testing.T, heartbeat, command, timeout string) string {
	t.Helper()
	node := program(t, "node", "install Node.js")
	const script = `
const [url, command, timeout] = process.argv.slice(1);
(async () => {
  await fetch(url + "/healthz").then((r) => r.text()); // after which there is a dispatcher
  const key = Symbol.for("undici.globalDispatcher.1");
  if (timeout) {
    const Agent = globalThis[key].constructor;
    globalThis[key] = new Agent({ headersTimeout: +timeout, bodyTimeout: +timeout });
  }
  const response = await fetch(url + "/command", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ command }),
  });
  return (await response.json()).status;
})().then(console.log, (e) => console.log(e.cause?.code ?? e.message));`
	s := startServer(t, "VM_HEARTBEAT="+heartbeat, "VM_TIMEOUT=10m")
	output, err := exec.Command(node, "-e", script, s.url, command, timeout).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return strings.TrimSpace(string(output))
}

// Node's fetch gives up after a time without a head, and after the same time
// without a byte of the body: 300 s, here 3.
func TestNodesFetchWaitsForACommandThatHeartbeats(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, heartbeat, want string }{
		{"with heartbeats it gets its answer", "300ms", "success"},
		{"without, it gives up", "0", "UND_ERR_HEADERS_TIMEOUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := fetchInNode(t, test.heartbeat, "sleeps 7s", "3000")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("what fetch said (-want +got):\n%s", diff)
			}
		})
	}
}

// The same with the defaults of both.
func TestLongNodesFetchWaitsForACommandOfFiveMinutes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, heartbeat, want string }{
		{"with heartbeats it gets its answer", "15s", "success"},
		{"without, it gives up", "0", "UND_ERR_HEADERS_TIMEOUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := fetchInNode(t, test.heartbeat, "sleeps 310s", "")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("what fetch said (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNginxWaitsForACommandThatHeartbeats(t *testing.T) {
	t.Parallel()
	nginx := program(t, "nginx", "make test installs it as root; or: apt-get install nginx-light")
	for _, test := range []struct {
		name, heartbeat, accept, want string
		status                        int
	}{
		{"JSON with heartbeats", "300ms", "application/json", `"status":"success"`, 200},
		{"a stream with heartbeats", "300ms", "text/event-stream", `"status":"success"`, 200},
		{"the control without heartbeats", "0", "application/json", "504 Gateway", 504},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_HEARTBEAT="+test.heartbeat)
			dir, err := os.MkdirTemp("", "nginx") // short: it holds a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			conf := fmt.Sprintf(`
daemon off; pid %[1]s/pid; error_log %[1]s/error.log; events {}
http {
	access_log off;
	client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b;
	fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	server {
		listen unix:%[1]s/socket;
		location / {
			proxy_pass %[2]s; proxy_read_timeout 3s;
			proxy_http_version 1.1; proxy_set_header Host localhost;
		}
	}
}`, dir, s.url)
			if os.Getuid() == 0 {
				conf = "user root; " + conf
			}
			if err := os.WriteFile(dir+"/conf", []byte(conf), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(nginx, "-p", dir, "-e", dir+"/error.log", "-c", dir+"/conf")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Signal(os.Interrupt)
				cmd.Wait()
			})
			dial := func(context.Context, string, string) (net.Conn, error) {
				return net.Dial("unix", dir+"/socket")
			}
			eventually(t, "nginx listens", func() bool {
				connection, err := dial(context.Background(), "", "")
				if err == nil {
					connection.Close()
				}
				return err == nil
			})
			client := &http.Client{Transport: &http.Transport{DialContext: dial}}
			request, _ := http.NewRequest("POST", "http://localhost/command",
				strings.NewReader(`{"command":"sleeps 7s"}`))
			request.Header.Set("Content-Type", "application/json")
			request.Header.Set("Accept", test.accept)
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("status %d, body %q", response.StatusCode, body)
			}
		})
	}
}

const writeTimeout = 30 * time.Second // of the server

// The client is noticed by a write's deadline, however much its command has to say.
func TestAClientThatStopsReadingCancelsItsCommand(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	body := `{"command":"emits-and-waits 20000"}`
	fmt.Fprintf(s.dial(t), "POST /command HTTP/1.1\r\nHost: localhost\r\n"+
		"Content-Type: application/json\r\nAccept: text/event-stream\r\n"+
		"Content-Length: %d\r\n\r\n%s", len(body), body)
	within(t, 3*writeTimeout, "the command is over", func() bool {
		return strings.Contains(s.stderr.String(), "msg=command")
	})
	s.logged("code=client_gone")
	s.goesOn()
}

// A client has a time for all that is left when its command has ended. The control gives it
// that for each piece. Both have a shorter one.
func TestAClientThatReadsSlowlyIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, variant string
		pause         time.Duration // after 50 kB of 14 MB
		want          bool          // it gets the response
	}{
		{"slowly", "short write", 100 * time.Millisecond, false},
		{"fast enough", "short write", 10 * time.Millisecond, true},
		{"slowly, the control", "short write for each piece", 100 * time.Millisecond, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TIMEOUT=5m", "TEST_VARIANT="+test.variant)
			response := s.stream(t, unbuffered(), "one-large-line")
			var last []byte
			chunk := make([]byte, 50<<10)
			var err error
			for err == nil {
				var n int
				n, err = io.ReadFull(response.Body, chunk)
				last = append(last, chunk[:n]...)
				last = last[max(0, len(last)-1000):]
				time.Sleep(test.pause)
			}
			_, end, found := bytes.Cut(last, []byte("\nevent: response\n"))
			if got := found && bytes.Contains(end, []byte(`"status":"success"`)); got != test.want {
				t.Errorf("it gets the response: %v, the end is %q, %v; the server's log:\n%s", got, last, err, s.stderr)
			}
			s.goesOn()
		})
	}
}

// unbuffered is a client for which the kernel reads only a little.
func unbuffered() *http.Client {
	small := net.Dialer{Control: func(_, _ string, connection syscall.RawConn) error {
		return connection.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10)
			// Or it would tell that there is room for 64 kB at a time.
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1460)
		})
	}}
	return &http.Client{Transport: &http.Transport{DialContext: small.DialContext, DisableKeepAlives: true}}
}

// stream sends a command, whose answer streams as fast as it is read.
func (s *testServer) stream(t testing.TB, client *http.Client, command string) *http.Response {
	t.Helper()
	request, err := http.NewRequest("POST", s.url+"/command",
		strings.NewReader(`{"command":"`+command+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "text/event-stream")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}
