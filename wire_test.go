package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// program finds a program that a test needs. In CI it must be there.
func program(t testing.TB, name, remedy string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%v: %s", err, remedy)
	}
	if err != nil {
		t.Skipf("%v: %s", err, remedy)
	}
	return path
}

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

// openapi.yaml says what the server answers: every status with its error codes,
// and every field of an answer.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Properties map[string]struct {
			Enum []string `yaml:"enum"`
		} `yaml:"properties"`
		Required []string `yaml:"required"`
	}
	var api struct {
		Paths map[string]map[string]struct {
			Responses map[int]struct {
				Codes []string `yaml:"x-error-codes"`
			} `yaml:"responses"`
		} `yaml:"paths"`
		Components struct {
			Schemas map[string]schema `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(data, &api); err != nil {
		t.Fatal(err)
	}
	documented := map[int]map[string]bool{}
	for status, response := range api.Paths["/command"]["post"].Responses {
		documented[status] = map[string]bool{}
		for _, code := range response.Codes {
			documented[status][code] = true
		}
	}

	s := startServer(t, "VM_QUEUE=0", "VM_TIMEOUT=5s", "VM_TOKEN=correct", "VM_MAX_BODY=200", "VM_SHUTDOWN_GRACE=1h")
	withToken := []string{"Authorization", "Bearer correct", "Content-Type", "application/json"}
	got := map[int]map[string]bool{}
	answers := api.Components.Schemas["Answer"]
	note := func(response *http.Response, body string) {
		t.Helper()
		var fields map[string]any
		if err := json.Unmarshal([]byte(body), &fields); err != nil {
			t.Fatalf("%v: %q", err, body)
		}
		var code string
		if problem, isThere := fields["error"].(map[string]any); isThere {
			code = problem["code"].(string)
		}
		status := response.StatusCode
		if got[status] == nil {
			got[status] = map[string]bool{}
		}
		if code != "" {
			got[status][code] = true
		}
		if status != 200 {
			return
		}
		for name := range fields {
			if _, isThere := answers.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of an answer", name)
			}
		}
		for _, name := range answers.Required {
			if _, isThere := fields[name]; !isThere {
				t.Errorf("the required field %q is not in %s", name, body)
			}
		}
	}
	try := func(method, body string, header ...string) {
		t.Helper()
		response, text, err := s.send(context.Background(), method, "/command", body, header...)
		if err != nil {
			t.Fatal(err)
		}
		note(response, text)
	}
	for _, command := range []string{"hello", "reports-an-error", "not-logged-in", "unknown-session", "exits", "waits"} {
		try("POST", `{"command":"`+command+`"}`, withToken...)
	}
	try("GET", "", withToken...)
	try("POST", "{}", withToken...)
	try("POST", strings.Repeat("x", 300), withToken...)
	try("POST", "{}", "Authorization", "Bearer correct")
	try("POST", "{}", "Content-Type", "application/json")
	try("POST", "{}", append([]string{"Sec-Fetch-Site", "cross-site"}, withToken...)...)
	var response *http.Response
	var text string
	outcome := make(chan error, 1)
	go func() {
		var err error
		response, text, err = s.post(context.Background(), "sleeps 4900ms", withToken...)
		outcome <- err
	}()
	s.queued(0)
	try("POST", `{"command":"one too many"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	eventually(t, "it is stopping", func() bool { status, _ := s.state(); return status == 503 })
	try("POST", `{"command":"late"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	note(response, text)

	health := api.Components.Schemas["Health"]
	for _, server := range []*testServer{s, startServer(t)} {
		status, state := server.state()
		if _, isDocumented := api.Paths["/healthz"]["get"].Responses[status]; status != 0 && !isDocumented {
			t.Errorf("openapi.yaml doesn't know the status %d of /healthz", status)
		}
		for name := range state {
			if _, isThere := health.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of /healthz", name)
			}
		}
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("openapi.yaml and the server (-documented +answered):\n%s", diff)
	}
}

// BenchmarkForms takes turns between the two forms of the same command, as the
// speed of a shared machine drifts, and compares their medians.
func BenchmarkForms(b *testing.B) {
	s := startServer(b)
	took := map[string][]time.Duration{}
	for b.Loop() {
		for _, form := range []string{"application/json", "text/event-stream"} {
			begin := time.Now()
			if _, body, err := s.post(context.Background(), "hello", "Accept", form); err != nil || !strings.Contains(body, `"success"`) {
				b.Fatal(body, err)
			}
			took[form] = append(took[form], time.Since(begin))
		}
	}
	median := func(form string) float64 {
		slices.Sort(took[form])
		return float64(took[form][len(took[form])/2])
	}
	b.ReportMetric(median("text/event-stream")/median("application/json"), "stream/json")
}

// BenchmarkStream is one command with 100,000 lines of 1 kB.
func BenchmarkStream(b *testing.B) {
	s := startServer(b, "VM_TIMEOUT=5m")
	var bytes atomic.Int64
	for b.Loop() {
		request, _ := http.NewRequest("POST", s.url+"/command", strings.NewReader(`{"command":"emits 100000"}`))
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Accept", "text/event-stream")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			b.Fatal(err)
		}
		in := bufio.NewReaderSize(response.Body, 1<<20)
		n, err := in.WriteTo(io.Discard)
		response.Body.Close()
		bytes.Add(n)
		if err != nil || n < 100_000_000 {
			b.Fatal(n, err)
		}
	}
	b.SetBytes(bytes.Load() / int64(b.N))
	b.ReportMetric(float64(peakMemory(b, s.cmd.Process.Pid))/(1<<20), "peak-MB")
}
