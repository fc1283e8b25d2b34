package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testServer is a vm-server process.
type testServer struct {
	t      testing.TB
	cmd    *exec.Cmd
	url    string
	stderr *syncBuffer
	done   chan error
}

type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// self is the test binary.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// serverCommand is a server that has not been started: its environment holds
// what a test names and nothing of the machine's.
func serverCommand(t testing.TB, env ...string) *exec.Cmd {
	t.Helper()
	needsLinux(t)
	program := builtServer(t, variantOf(env))
	cmd := exec.Command(program)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir, "IS_SANDBOX=1",
		"VM_CLAUDE=" + self(t), "VM_ADDR=127.0.0.1:0", "VM_WARM=false",
		"VM_STOP_GRACE=300ms", "VM_EXIT_GRACE=300ms", "VM_TIMEOUT=2m",
		"GORACE=atexit_sleep_ms=0", // else each agent of a race build takes a second to end
	}, env...)
	return cmd
}

// startServer starts a server and stops it when the test ends. Then it must
// exit with 0 and without a data race.
func startServer(t testing.TB, env ...string) *testServer {
	t.Helper()
	return startCommand(t, serverCommand(t, env...))
}

// startCommand starts a server that the test has made ready, as startServer does.
func startCommand(t testing.TB, cmd *exec.Cmd) *testServer {
	t.Helper()
	s := &testServer{stderr: &syncBuffer{}}
	cmd.Stderr = s.stderr
	s.launch(t, cmd)
	eventually(t, "the server listens", func() bool {
		s.url = listening(s.stderr.String())
		return s.url != ""
	})
	return s
}

// launch starts cmd as the server and stops it when the test ends. Where it
// listens is for the caller to find out.
func (s *testServer) launch(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	s.t, s.cmd, s.done = t, cmd, make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- cmd.Wait() }()
	t.Cleanup(s.stop)
}

// listening finds the server's URL in its log, "" before that says it.
func listening(log string) (url string) {
	_, rest, found := strings.Cut(log, "msg=listening addr=")
	addr, _, complete := strings.Cut(rest, " ")
	if !found || !complete {
		return ""
	}
	return "http://" + addr
}

// wait returns how the server ended. It may be called again.
func (s *testServer) wait() error {
	err := <-s.done
	s.done <- err
	return err
}

func (s *testServer) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil {
			s.t.Errorf("the server ended with %v; its log:\n%s", err, s.stderr)
		}
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		s.t.Errorf("the server did not stop; its log:\n%s", s.stderr)
	}
	if strings.Contains(s.stderr.String(), "DATA RACE") {
		s.t.Errorf("data race in the server:\n%s", s.stderr)
	}
}

// dial connects to the server, until the test ends.
func (s *testServer) dial(t testing.TB) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection
}

// send sends a request, its header as names and values, and returns the
// response and its whole body.
func (s *testServer) send(ctx context.Context, method, path, body string, header ...string) (
	*http.Response, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			request.Host = header[i+1]
		}
		request.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response, string(data), err
}

// post sends a command.
func (s *testServer) post(ctx context.Context, command string, header ...string) (
	*http.Response, string, error) {
	return s.postIn(ctx, "", command, header...)
}

// postIn sends a command that continues a session, or none where that is "".
func (s *testServer) postIn(ctx context.Context, session, command string, header ...string) (
	*http.Response, string, error) {
	fields := map[string]string{"command": command}
	if session != "" {
		fields["session_id"] = session
	}
	body, _ := json.Marshal(fields)
	header = slices.Concat(asJSON, s.authorization(), header)
	return s.send(ctx, "POST", "/command", string(body), header...)
}

// authorization is the header that the server's token asks for.
func (s *testServer) authorization() []string {
	for _, entry := range s.cmd.Env {
		if token, isThere := strings.CutPrefix(entry, "VM_TOKEN="); isThere {
			return []string{"Authorization", "Bearer " + token}
		}
	}
	return nil
}

// ask sends a command to the hostile claude and returns the answer.
func (s *testServer) ask(command string, header ...string) answer {
	s.t.Helper()
	return s.askIn("", command, header...)
}

// askIn is ask with a session.
func (s *testServer) askIn(session, command string, header ...string) (a answer) {
	s.t.Helper()
	response, body, err := s.postIn(context.Background(), session, command, header...)
	if err != nil {
		s.t.Fatalf("%.100s: %v; the server's log:\n%s", command, err, s.stderr)
	}
	err = json.Unmarshal([]byte(body), &a)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%.100s: status %s, body %q, %v", command, response.Status, body, err)
	}
	return a
}

// selfDescription is what the hostile claude says of itself.
type selfDescription struct {
	Args, Env []string
	Dir       string
	Leads     bool // a process group
	UID, GID  int
	PID       int
	Started   string
}

// describe has an agent describe itself.
func (s *testServer) describe(session string, header ...string) (d selfDescription) {
	s.t.Helper()
	a := s.askIn(session, "describes-itself", header...)
	if err := json.Unmarshal([]byte(a.Result), &d); err != nil {
		s.t.Fatalf("%v: %+v %+v", err, a, a.Error)
	}
	return d
}

// state asks GET /healthz, with the server's token if it has one.
func (s *testServer) state() (status int, state map[string]any) {
	response, body, err := s.send(context.Background(), "GET", "/healthz", "", s.authorization()...)
	if err != nil {
		return 0, nil
	}
	json.Unmarshal([]byte(body), &state)
	return response.StatusCode, state
}

// queued waits until a command runs and so many others wait.
func (s *testServer) queued(want int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d wait", want), func() bool {
		_, state := s.state()
		return state["busy"] == true && state["queued"] == float64(want)
	})
}

// logged waits until the server's log holds a text.
func (s *testServer) logged(text string) {
	s.t.Helper()
	eventually(s.t, "the log holds "+text, func() bool {
		return strings.Contains(s.stderr.String(), text)
	})
}

// put makes a file in the workspace, which tells the hostile claude how to be.
func (s *testServer) put(name string) (path string) {
	s.t.Helper()
	path = s.cmd.Dir + "/" + name
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// reply is what became of a request that a test sent in the background.
type reply struct {
	name   string
	status int
	answer answer
	body   string
	err    error
}

// background sends a command, and its reply to the channel.
func (s *testServer) background(
	ctx context.Context, command string, outcomes chan<- reply, header ...string) {
	go func() {
		o := reply{name: command}
		var response *http.Response
		if response, o.body, o.err = s.post(ctx, command, header...); o.err == nil {
			o.status = response.StatusCode
			json.Unmarshal([]byte(o.body), &o.answer)
		}
		outcomes <- o
	}()
}

// inShort is an answer's status and error code.
func inShort(a answer) string {
	if a.Error != nil {
		return a.Status + " " + string(a.Error.Code)
	}
	return a.Status
}

// goesOn wants a healthy server that answers the next command.
func (s *testServer) goesOn() {
	s.t.Helper()
	if status, state := s.state(); status != 200 {
		s.t.Errorf("health: %d %v; the server's log:\n%s", status, state, s.stderr)
	}
	if got := s.ask("hello"); got.Status != "success" {
		s.t.Errorf("the next command: %+v %+v", got, got.Error)
	}
}

// tells asks until a command is answered by anything but success: one CLI may
// have been started before the fault.
func (s *testServer) tells() (got answer) {
	s.t.Helper()
	eventually(s.t, "a command tells the fault", func() bool {
		got = s.ask("hello")
		return got.Status != "success"
	})
	return got
}

// overtime has an attempt made with ever longer values of VM_TIMEOUT, until it
// says that its agent had come far maxElements when the time was over: how long a
// start takes is the machine's affair.
func overtime(attempt func(timeout string) (farEnough bool)) {
	for limit := 2 * time.Second; limit < 2*time.Minute; limit *= 2 {
		if attempt("VM_TIMEOUT=" + limit.String()) {
			return
		}
	}
}

// eventually polls, and fails the test when nothing comes of it in time.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	within(t, time.Minute, what, condition)
}

// within is eventually with a time of its own.
func within(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	pause := 2 * time.Millisecond
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
		time.Sleep(pause)
		pause = min(pause*3/2, 50*time.Millisecond) // a look at all of /proc is work too
	}
}

// newMarker returns what no other process has among its arguments.
func newMarker() string { return "marker-" + strconv.FormatInt(time.Now().UnixNano(), 36) }

// answer is what a client reads.
type answer struct {
	Status     string       `json:"status"`
	Result     string       `json:"result"`
	Truncated  bool         `json:"truncated"`
	SessionID  string       `json:"session_id"`
	DurationMS int64        `json:"duration_ms"`
	NumTurns   int          `json:"num_turns"`
	CostUSD    float64      `json:"cost_usd"`
	MCPServers []mcpServer  `json:"mcp_servers"`
	Killed     int          `json:"swept"`
	Background bool         `json:"background_stopped"`
	Warnings   []string     `json:"warnings"`
	Files      []outboxFile `json:"files"`
	Error      *apiError    `json:"error"`
}

type outboxFile struct {
	Name     string
	Size     int64
	Modified time.Time
}

type mcpServer struct{ Name, Status string }

type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	RetryAt string `json:"retry_at"`
}
