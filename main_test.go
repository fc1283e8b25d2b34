package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be three things: the tests, vm-server itself
// (a process of its own for every test, as a subreaper must be), and the
// hostile claude that it runs.
func TestMain(m *testing.M) {
	switch role := os.Getenv("TEST_SERVER"); {
	case len(os.Args) > 1 && os.Args[1] == "-p":
		hostileClaude()
	case len(os.Args) > 1 && os.Args[1] == "descend":
		descend(os.Args[2:])
	case role != "":
		if err := serverRole(role); err != nil {
			fmt.Fprintln(os.Stderr, "vm-server:", err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// serverRole runs the server as main does. The role "sweep off" leaves the
// sweep out, for negative controls; with "short lives" a spare is old after a
// second. SIGUSR1 makes it print its goroutines,
// SIGUSR2 makes it dumpable.
func serverRole(role string) error {
	dumpable := make(chan os.Signal, 1)
	signal.Notify(dumpable, syscall.SIGUSR2)
	go func() {
		<-dumpable
		syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 1, 0)
	}()
	count := make(chan os.Signal, 1)
	signal.Notify(count, syscall.SIGUSR1)
	go func() {
		for range count {
			debug.FreeOSMemory() // collects, and returns to the kernel what is free
			fmt.Fprintf(os.Stderr, "goroutines=%d.\n", runtime.NumGoroutine())
		}
	}()
	if os.Getenv("TEST_MOUNT_PROC") != "" {
		// In a pid namespace of its own, as in a container: /proc must show it.
		if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return err
		}
	}
	if role == "1" {
		return run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}
	s := newServer(cfg, log)
	switch role {
	case "sweep off":
		s.keeper.sweep = func() (sweepResult, error) { return sweepResult{}, nil }
	case "short lives":
		s.keeper.maxAge = time.Second
	}
	return s.serve(context.Background())
}

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
	cmd := exec.Command(self(t))
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir, "IS_SANDBOX=1", "TEST_SERVER=1",
		"VM_CLAUDE=" + self(t), "VM_ADDR=127.0.0.1:0", "VM_STOP_GRACE=300ms", "VM_EXIT_GRACE=300ms", "VM_TIMEOUT=30s", "VM_WARM=false",
	}, env...)
	return cmd
}

// startServer starts a server and stops it when the test ends. Then it must
// exit with 0 and without a data race.
func startServer(t testing.TB, env ...string) *testServer {
	t.Helper()
	return startCommand(t, serverCommand(t, env...))
}

func startCommand(t testing.TB, cmd *exec.Cmd) *testServer {
	t.Helper()
	s := &testServer{t: t, cmd: cmd, stderr: &syncBuffer{}, done: make(chan error, 1)}
	cmd.Stderr = s.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- cmd.Wait() }()
	t.Cleanup(s.stop)
	eventually(t, "the server listens", func() bool {
		_, rest, found := strings.Cut(s.stderr.String(), "msg=listening addr=")
		addr, _, _ := strings.Cut(rest, " ")
		s.url = "http://" + addr
		return found
	})
	return s
}

func (s *testServer) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil {
			s.t.Errorf("the server ended with %v; its log:\n%s", err, s.stderr)
		}
	case <-time.After(30 * time.Second):
		s.cmd.Process.Kill()
		s.t.Errorf("the server did not stop; its log:\n%s", s.stderr)
	}
	if strings.Contains(s.stderr.String(), "DATA RACE") {
		s.t.Errorf("data race in the server:\n%s", s.stderr)
	}
}

// post sends a command and returns the status code, the header and the body.
func (s *testServer) post(ctx context.Context, command string, header ...string) (*http.Response, string, error) {
	body, _ := json.Marshal(map[string]string{"command": command})
	return s.send(ctx, "POST", "/command", string(body), append([]string{"Content-Type", "application/json"}, header...)...)
}

func (s *testServer) send(ctx context.Context, method, path, body string, header ...string) (*http.Response, string, error) {
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

// ask sends a command to the hostile claude and returns the answer.
func (s *testServer) ask(command string) answer {
	s.t.Helper()
	response, body, err := s.post(context.Background(), command)
	if err != nil {
		s.t.Fatalf("%s: %v; the server's log:\n%s", command, err, s.stderr)
	}
	var a answer
	if err := json.Unmarshal([]byte(body), &a); err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: status %s, body %q, %v", command, response.Status, body, err)
	}
	return a
}

// state asks GET /healthz.
func (s *testServer) state() (status int, state map[string]any) {
	response, body, err := s.send(context.Background(), "GET", "/healthz", "")
	if err != nil {
		return 0, nil
	}
	json.Unmarshal([]byte(body), &state)
	return response.StatusCode, state
}

// eventually polls, and fails the test when nothing comes of it in time.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

// marked lists the processes with the marker among their arguments, by the
// test's own look at the process table.
func marked(t testing.TB, marker string) (list []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatal("cannot list processes", err)
	}
	for _, path := range paths {
		if data, _ := os.ReadFile(path); bytes.Contains(data, []byte(marker)) {
			list = append(list, filepath.Base(filepath.Dir(path))+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return list
}

// killMarked ends what a negative control left, and only that.
func killMarked(t testing.TB, marker string) {
	t.Helper()
	eventually(t, "the control's processes are gone", func() bool {
		list := marked(t, marker)
		for _, line := range list {
			pid, _, _ := strings.Cut(line, " ")
			if number, err := strconv.Atoi(pid); err == nil {
				syscall.Kill(number, syscall.SIGKILL)
			}
		}
		return len(list) == 0
	})
}

// childPIDs lists the processes, zombies too, whose parent is pid.
func childPIDs(pid int) (list []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		if parentOf(path) == pid {
			child, _ := strconv.Atoi(filepath.Base(path))
			list = append(list, child)
		}
	}
	return list
}

// parentOf reads the parent's pid of a process from its folder in /proc.
func parentOf(path string) (pid int) {
	data, _ := os.ReadFile(path + "/stat")
	if fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]); len(fields) > 1 {
		pid, _ = strconv.Atoi(string(fields[1]))
	}
	return pid
}

// newMarker returns what no other process has among its arguments.
func newMarker() string { return "marker-" + strconv.FormatInt(time.Now().UnixNano(), 36) }
