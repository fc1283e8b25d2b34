package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Node's fetch gives up after 300 s without a head, and after 300 s without a
// byte of the body. This takes longer, with its defaults.
func TestNodesFetchWaitsForALongCommand(t *testing.T) {
	t.Parallel()
	node := program(t, "node", "install Node.js")
	script := `fetch(process.argv[1], {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({command: "sleeps 310s"})})` +
		`.then(r => r.json()).then(a => console.log(a.status), e => console.log(e.cause?.code ?? e.message))`
	for _, test := range []struct{ name, heartbeat, want string }{
		{"with heartbeats it gets its answer", "15s", "success"},
		{"without, it gives up", "0", "UND_ERR_HEADERS_TIMEOUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_HEARTBEAT="+test.heartbeat, "VM_TIMEOUT=10m")
			output, err := exec.Command(node, "-e", script, s.url+"/command").CombinedOutput()
			if diff := cmp.Diff(test.want, strings.TrimSpace(string(output))); diff != "" {
				t.Errorf("what fetch said (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

func TestNginxWithAShortTimeout(t *testing.T) {
	t.Parallel()
	nginx := program(t, "nginx", "make test installs it as root; or: apt-get install nginx-light")
	for _, test := range []struct {
		name, heartbeat, accept, want string
		status                        int
	}{
		{"JSON with heartbeats", "1s", "application/json", `"status":"success"`, 200},
		{"a stream with heartbeats", "1s", "text/event-stream", `"status":"success"`, 200},
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
			conf := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log %[1]s/error.log; events {}
http { access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
server { listen unix:%[1]s/socket; location / { proxy_pass %[2]s; proxy_read_timeout 5s; proxy_http_version 1.1; proxy_set_header Host localhost; } } }`, dir, s.url)
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
			eventually(t, "nginx listens", func() bool { _, err := os.Stat(dir + "/socket"); return err == nil })
			client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", dir+"/socket") }}}
			request, _ := http.NewRequest("POST", "http://localhost/command", strings.NewReader(`{"command":"sleeps 11s"}`))
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

// A client that stops reading is noticed by a write's deadline, however much
// its command has to say, and its command is canceled.
func TestAClientThatStopsReading(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	body := `{"command":"emits 100000"}`
	fmt.Fprintf(connection, "POST /command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for begin := time.Now(); !strings.Contains(s.stderr.String(), "msg=command"); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 3*writeLimit {
			t.Fatalf("the command still runs:\n%s", s.stderr)
		}
	}
	if !strings.Contains(s.stderr.String(), "code=client_gone") {
		t.Errorf("log:\n%s", s.stderr)
	}
	if got := s.ask("hello"); got.Status != "success" {
		t.Errorf("the next command: %+v", got)
	}
}

// A client that reads slowly but reads keeps its answer, although one line
// takes it longer than a write may stand still.
func TestAClientThatReadsSlowly(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	request, _ := http.NewRequest("POST", s.url+"/command", strings.NewReader(`{"command":"one-large-line"}`))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "text/event-stream")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var last []byte
	chunk := make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(response.Body, chunk)
		if last = append(last, chunk[:n]...); len(last) > 4096 {
			last = append([]byte(nil), last[len(last)-4096:]...)
		}
		if err != nil {
			break
		}
		time.Sleep(150 * time.Millisecond) // what a slow network does: 14 MB take 33 s
	}
	if !strings.Contains(string(last), "event: response") || !strings.Contains(string(last), `"status":"success"`) {
		t.Errorf("the stream ends with %.300q; the server's log:\n%s", last, s.stderr)
	}
}
