package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// escapes are the ways in which a process tries to outlive its command.
var escapes = []struct{ name, behaviour, status string }{
	{"a child that holds stdout after the CLI's exit", "holds-stdout", "success"},
	{"a daemon that forked twice into a session of its own", "daemon", "success"},
	{"a process with an empty environment", "no-environment", "success"},
	{"a tree 100 deep with changing sessions", "deep", "success"},
	{"100 sessions side by side", "wide", "success"},
	{"a fork chain that is always gone when looked at", "fork-chain", "success"},
	{"a stopped process", "stopped-child", "success"},
	{"a tree that ignores SIGINT and SIGTERM until the time is up", "ignores-signals", "timeout"},
	{"a CLI that stopped itself", "stops-itself", "timeout"},
	{"a CLI that closed its output and lives on", "closes-stdout", "timeout"},
	{"a CLI that stays after its result", "answers-and-stays", "success"},
}

func TestNoProcessOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	testEscapes(t, startServer(t, "VM_TIMEOUT=2m"), startServer(t, "VM_TIMEOUT=3s"), false)
}

// testEscapes tries each escape, with the impatient server where that must end
// it. The server then has no child but a spare, if it keeps one.
func testEscapes(t *testing.T, patient, impatient *testServer, warm bool) {
	for _, escape := range escapes {
		t.Run(escape.name, func(t *testing.T) {
			s := patient
			if escape.status == "timeout" {
				s = impatient
			}
			marker := newMarker()
			got := s.ask(escape.behaviour + " " + marker)
			if list := marked(t, marker); len(list) > 0 {
				t.Errorf("%d processes outlived the command:\n%s", len(list), strings.Join(list, "\n"))
			}
			if warm {
				s.sparePID()
			} else if list := childPIDs(s.cmd.Process.Pid); len(list) > 0 {
				t.Errorf("the server has the children %v", list)
			}
			if diff := cmp.Diff(escape.status, got.Status); diff != "" {
				t.Errorf("status (-want +got):\n%s\n%+v", diff, got.Error)
			}
		})
	}
}

// The control: without the sweep the same look sees survivors.
func TestWithoutTheSweepProcessesOutliveTheirCommand(t *testing.T) {
	t.Parallel()
	for _, escape := range escapes {
		t.Run(escape.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "TEST_SERVER=sweep off", "VM_TIMEOUT=2s")
			marker := newMarker()
			defer killMarked(t, marker)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			go s.post(ctx, escape.behaviour+" "+marker)
			eventually(t, "the command is over", func() bool { return strings.Contains(s.stderr.String(), "msg=command") || ctx.Err() != nil })
			if escape.behaviour == "fork-chain" { // a look sees it only by chance, until it rests
				if err := os.WriteFile(s.cmd.Dir+"/rest", nil, 0o644); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the chain's last process stays", func() bool {
					first := marked(t, marker)
					time.Sleep(50 * time.Millisecond)
					return len(first) > 0 && slices.Equal(first, marked(t, marker))
				})
			} else if len(marked(t, marker)) == 0 {
				t.Error("no process outlived the command, so the test beside this one proves nothing")
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5s")
	playwright := []mcpServer{{"playwright", "connected"}}
	crashed := func(message string) *problem { return &problem{"agent_crashed", message} }
	tests := []struct {
		name, command string
		want          answer
	}{
		{"a plain answer", "hello", answer{Status: "success", Result: "hello", NumTurns: 2, CostUSD: 0.25}},
		{"the last of two results counts", "answers-twice", answer{Status: "success", Result: "second", NumTurns: 2, CostUSD: 0.25}},
		{"a turn after the result may be silent for longer than the exit grace", "takes-another-turn", answer{Status: "success", Result: "second", NumTurns: 2, CostUSD: 0.25}},
		{"a result stands although the CLI exits with 1", "answers-and-fails", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result stands although the CLI dies", "answers-and-dies", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result and then silence", "answers-and-stays", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result and then a closed stdout", "answers-and-closes-stdout", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"garbage is skipped", "writes-garbage", answer{Status: "success", Result: "writes-garbage", NumTurns: 2, CostUSD: 0.25}},
		{"is_error decides, not subtype", "reports-an-error", answer{Status: "failed", Error: &problem{"agent_error", "API Error: 529 overloaded"}}},
		{"an unknown session", "unknown-session", answer{Status: "failed", Error: &problem{"session_not_found", "No conversation found with session ID: x; leave session_id out to begin a new conversation"}}},
		{"the third refusal of the key ends the command", "key-refused", answer{Status: "failed", Error: errKeyRefused}},
		{"no credentials at all", "not-logged-in", answer{Status: "failed", Result: "Not logged in", Error: errKeyRefused}},
		{"an exit without a result", "exits", answer{Status: "failed", Error: crashed("Claude Code ended without a result: exit status 3; the end of its stderr: the reason")}},
		{"a signal without a result", "dies", answer{Status: "failed", Result: "last words", Error: crashed("Claude Code ended without a result: signal: killed; the end of its stderr: ")}},
		{"the end of a long stderr", "fills-stderr", answer{Status: "failed", Error: crashed("Claude Code ended without a result: exit status 1; the end of its stderr: " + strings.Repeat("e", maxStderr-7) + "the end")}},
		{"an empty stream", "says-nothing", answer{Status: "failed", SessionID: "-", MCPServers: []mcpServer{}, Error: crashed("Claude Code ended without a result: exit status 0; the end of its stderr: ")}},
		{"a CLI that reports when it is interrupted", "tells-when-interrupted", answer{Status: "timeout", Result: "half of it", NumTurns: 7, CostUSD: 0.5, Error: errTimeout}},
		{"a CLI that doesn't care", "ignores-signals", answer{Status: "timeout", Result: "still here", Error: errTimeout}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := s.ask(test.command + " " + newMarker())
			if got.DurationMS < 0 || got.DurationMS > 20000 {
				t.Errorf("duration_ms is %d", got.DurationMS)
			}
			got.DurationMS = 0
			switch test.want.SessionID {
			case "":
				test.want.SessionID, test.want.MCPServers = testSession, playwright
			case "-":
				test.want.SessionID = ""
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestALineOf1GiBIsSkippedAndCounted(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	if got := s.ask("floods"); got.Status != "success" || got.Result != "floods" {
		t.Errorf("answer: %+v %+v", got, got.Error)
	}
	eventually(t, "the log counts it", func() bool { return strings.Contains(s.stderr.String(), "lines_skipped=1 ") })
}

func TestWhatTheAgentRunsAs(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir()
	mcp := workspace + "/mcp.json"
	if err := os.WriteFile(mcp, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	token := "secret-" + newMarker()
	s := startServer(t, "VM_WORKSPACE="+workspace, "VM_MCP_CONFIG="+mcp, "VM_CLAUDE_ARGS=--model  opus", "VM_TOKEN="+token, "KEPT=yes")
	body := fmt.Sprintf(`{"command": "describes-itself", "session_id": %q}`, testSession)
	_, text, err := s.send(context.Background(), "POST", "/command", body, "Content-Type", "application/json", "Authorization", "Bearer "+token)
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	var got struct {
		Args, Env []string
		Dir       string
		Leads     bool
	}
	json.Unmarshal([]byte(text), &a)
	if err := json.Unmarshal([]byte(a.Result), &got); err != nil {
		t.Fatal(err, text)
	}
	want := []string{"-p", "--dangerously-skip-permissions", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
		"--resume", testSession, "--mcp-config", mcp, "--strict-mcp-config", "--model", "opus"}
	if diff := cmp.Diff(want, got.Args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(workspace, got.Dir); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	if !got.Leads {
		t.Error("the agent does not lead a process group of its own")
	}
	if !slices.Contains(got.Env, "KEPT=yes") {
		t.Error("the server's environment is not the agent's")
	}
	for _, entry := range got.Env {
		if strings.HasPrefix(entry, "VM_") || strings.Contains(entry, token) {
			t.Errorf("the agent's environment holds %q", entry)
		}
	}
	if strings.Contains(s.stderr.String(), token) {
		t.Error("the log holds the token")
	}
}

// /healthz, which anybody may ask, tells no more of the agent's own words.
func TestTheVersionThatTheAgentClaims(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.ask("boasts")
	_, state := s.state()
	if diff := cmp.Diff(strings.Repeat("9", 40), state["cli_version"]); diff != "" {
		t.Errorf("cli_version (-want +got):\n%s", diff)
	}
}

// A server that was started on a terminal shares that with no agent, which
// could type there. The control does without the server.
func TestTheAgentHasNoTerminal(t *testing.T) {
	t.Parallel()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	var number, unlock int32 // ioctl_tty(2)
	syscall.Syscall(syscall.SYS_IOCTL, ptmx.Fd(), syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock)))
	syscall.Syscall(syscall.SYS_IOCTL, ptmx.Fd(), syscall.TIOCGPTN, uintptr(unsafe.Pointer(&number)))
	onTerminal := func(cmd *exec.Cmd) *exec.Cmd {
		terminal, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { terminal.Close() })
		cmd.ExtraFiles = []*os.File{terminal}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
		return cmd
	}
	control := onTerminal(exec.Command(self(t), "-p"))
	control.Stdin = strings.NewReader(`{"message":{"content":"opens-its-terminal"}}`)
	if output, err := control.Output(); err != nil || !strings.Contains(string(output), `"result":"opens-its-terminal"`) {
		t.Errorf("the control doesn't reach the terminal: %s %v", output, err)
	}
	s := startCommand(t, onTerminal(serverCommand(t)))
	if diff := cmp.Diff("open /dev/tty: no such device or address", s.ask("opens-its-terminal").Result); diff != "" {
		t.Errorf("opening the terminal (-want +got):\n%s", diff)
	}
}

// As root with VM_USER, as an ordinary user, and as PID 1 with a /proc of its
// own: nothing outlives a command there either.
func TestWhereverItRuns(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become other users and PID 1")
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	tests := []struct {
		name string
		env  []string
		attr syscall.SysProcAttr
		uid  int
	}{
		{"as root with VM_USER", []string{"VM_USER=nobody"}, syscall.SysProcAttr{}, 65534},
		{"as an ordinary user", nil, syscall.SysProcAttr{Credential: nobody}, 65534},
		{"as an ordinary user who is VM_USER", []string{"VM_USER=nobody"}, syscall.SysProcAttr{Credential: nobody}, 65534},
		{"as PID 1", []string{"TEST_MOUNT_PROC=1"}, syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}, 0},
		{"as PID 1 with VM_USER", []string{"TEST_MOUNT_PROC=1", "VM_USER=nobody"}, syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}, 65534},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t, append(test.env, "VM_CLAUDE="+publicSelf(t), "VM_TIMEOUT=10s")...)
			cmd.Path, cmd.Args[0] = publicSelf(t), "vm-server"
			cmd.SysProcAttr, cmd.Dir = &test.attr, "/"
			s := startCommand(t, cmd)
			var got struct{ UID, GID int }
			if err := json.Unmarshal([]byte(s.ask("describes-itself").Result), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.uid, got.UID); diff != "" {
				t.Errorf("uid of the agent (-want +got):\n%s", diff)
			}
			for _, behaviour := range []string{"daemon", "wide", "fork-chain", "ignores-signals"} {
				marker := newMarker()
				s.ask(behaviour + " " + marker)
				if list := marked(t, marker); len(list) > 0 {
					t.Errorf("%s: %d processes outlived the command:\n%s", behaviour, len(list), strings.Join(list, "\n"))
				}
			}
		})
	}
}

// publicSelf is the test binary where every user may execute it.
func publicSelf(t testing.TB) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "vm-server-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	data, err := os.ReadFile(self(t))
	if err == nil {
		err = os.WriteFile(directory+"/claude", data, 0o755)
	}
	if err == nil {
		err = os.Chmod(directory, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return directory + "/claude"
}

// As PID 1 the server gets orphans that it never started, for example those of
// `docker exec`. Idle, it must reap them, and leave a command's child alone.
func TestOrphansAreReapedWhileIdle(t *testing.T) {
	t.Parallel()
	testOrphans(t, "VM_WARM=false")
}

func testOrphans(t *testing.T, env string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become PID 1")
	}
	cmd := serverCommand(t, "TEST_MOUNT_PROC=1", env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	s := startCommand(t, cmd)
	pid := s.cmd.Process.Pid
	for range 20 {
		// Enter the namespace, and leave an orphan that ends a little later.
		if output, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "--mount", "sh", "-c", "sleep 0.1 & exit").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		if got := s.ask("hello"); got.Status != "success" {
			t.Errorf("a command beside an orphan: %+v", got)
		}
	}
	spares := strings.Count(env, "true")
	eventually(t, "the orphans are reaped", func() bool { return len(childPIDs(pid)) == spares })
}

// A server without CAP_KILL can't signal another user's processes. It must
// say so instead of going on.
func TestAnUnkillableProcessEndsTheService(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to give up a capability")
	}
	cmd := serverCommand(t, "VM_USER=nobody", "VM_CLAUDE="+publicSelf(t), "VM_HEARTBEAT=100ms", "VM_SHUTDOWN_GRACE=1s")
	cmd.Path = lookPath(t, "setpriv")
	cmd.Args = append([]string{"setpriv", "--bounding-set=-kill", "--inh-caps=-kill", "--"}, publicSelf(t))
	cmd.Dir = "/"
	s := startCommand(t, cmd)
	marker := newMarker()
	defer killMarked(t, marker)
	outcomes := make(chan outcome, 2)
	s.background(context.Background(), "daemon "+marker, outcomes)
	s.queued(0)
	s.background(context.Background(), "describes-itself", outcomes)
	answers := map[string]answer{}
	for range 2 {
		o := <-outcomes
		answers[o.name] = o.answer
	}
	if next := answers["describes-itself"]; next.Status != "canceled" {
		t.Errorf("a command ran beside what an earlier one left: %+v", next)
	}
	got := answers["daemon "+marker]
	if got.Error == nil || got.Error.Code != "agent_crashed" || !strings.Contains(got.Error.Message, "cannot kill") {
		t.Errorf("answer: %+v, %+v", got, got.Error)
	}
	if status, state := s.state(); status != 503 || !strings.Contains(fmt.Sprint(state["reason"]), "cannot kill") {
		t.Errorf("health: %d %v", status, state)
	}
	_, state := s.state()
	if sweep, _ := state["last_sweep"].(map[string]any); sweep["killed"] != 0.0 {
		t.Errorf("what could not be killed counts as killed: %v", state)
	}
	response, body, err := s.post(context.Background(), "hello")
	if err != nil || response.StatusCode != 503 || !strings.Contains(body, "cannot kill") {
		t.Errorf("next command: %v %s %v", response, body, err)
	}
	if !strings.Contains(s.stderr.String(), "level=ERROR") {
		t.Error("the log doesn't say it loudly")
	}
}

// A process that is not below the server may hold the agent's stdout or stderr,
// for example one that it was passed to. It must not delay the answer for ever.
func TestAPipeThatIsHeldFromOutside(t *testing.T) {
	t.Parallel()
	for _, descriptor := range []string{"0", "1", "2"} {
		s := startServer(t, "VM_TIMEOUT=8s")
		outcomes := make(chan outcome, 1)
		s.background(context.Background(), "sleeps 2s", outcomes)
		s.queued(0)
		var held *os.File
		eventually(t, "the pipe is held", func() bool {
			paths, _ := filepath.Glob("/proc/[0-9]*")
			for _, path := range paths {
				if parentOf(path) == s.cmd.Process.Pid {
					held, _ = os.OpenFile(path+"/fd/"+descriptor, os.O_WRONLY, 0)
				}
			}
			return held != nil
		})
		defer held.Close()
		select {
		case o := <-outcomes:
			if o.answer.Status != "success" {
				t.Errorf("descriptor %s: %+v", descriptor, o)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("descriptor %s: no answer while it is held", descriptor)
		}
	}
}

func lookPath(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNothingIsLeftAfter300HostileCommands(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_STOP_GRACE=50ms", "VM_EXIT_GRACE=50ms", "VM_TIMEOUT=500ms", "VM_HEARTBEAT=20ms")
	marker := newMarker()
	mix := []string{"hello", "daemon", "holds-stdout", "no-environment", "dies", "exits", "answers-and-stays", "answers-twice", "writes-garbage",
		"ignores-signals", "closes-stdout", "says-nothing", "stopped-child", "fills-stderr", "waits"}
	before := s.resources()
	for i := range 300 {
		s.ask(mix[i%len(mix)] + " " + marker)
	}
	if list := marked(t, marker); len(list) > 0 {
		t.Errorf("processes are left:\n%s", strings.Join(list, "\n"))
	}
	eventually(t, "descriptors and goroutines are back", func() bool {
		after := s.resources()
		return after.descriptors <= before.descriptors && after.goroutines <= before.goroutines
	})
}

type resources struct{ descriptors, goroutines int }

var goroutinesLine = regexp.MustCompile(`goroutines=(\d+)\.`)

// resources counts what the server holds, when it is idle.
func (s *testServer) resources() (r resources) {
	s.t.Helper()
	before := len(goroutinesLine.FindAllString(s.stderr.String(), -1))
	s.cmd.Process.Signal(syscall.SIGUSR1)
	eventually(s.t, "the server counts its goroutines", func() bool {
		found := goroutinesLine.FindAllStringSubmatch(s.stderr.String(), -1)
		if len(found) > before {
			r.goroutines, _ = strconv.Atoi(found[len(found)-1][1])
		}
		return len(found) > before
	})
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	r.descriptors = len(entries)
	return r
}

func TestSplitter(t *testing.T) {
	t.Parallel()
	atLimit := strings.Repeat("a", maxLine)
	tests := []struct {
		name, in string
		want     []string
	}{
		{"an empty stream has no line", "", nil},
		{"empty lines are left out", "\n\na\n\n", []string{"a"}},
		{"a line of just the limit is kept", atLimit + "\n", []string{atLimit}},
		{"a longer one is told as nothing, and the next is kept", atLimit + "a\nb\n", []string{"", "b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, chunk := range []int{1 << 15, 1 << 30} {
				var got []string
				out := &splitter{line: func(line []byte) { got = append(got, string(line)) }}
				for part := range slices.Chunk([]byte(test.in), chunk) {
					out.Write(part)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("{\"type\":\"result\"}\n"), 3)
	f.Add([]byte("\x00\n"+strings.Repeat("x", 200)), 100)
	f.Add([]byte(`{"type":"assistant","message":{"content":[{"type":"text","text":"hi"}]}}`), 1)
	f.Add([]byte(`{"type":"result","is_error":"of another type","result":7}`), 10)
	f.Add([]byte(`{"type":"system","subtype":"init","mcp_servers":[{"name":"a","status":"b"}]}`), 64)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		result := &transcript{}
		var kept []byte
		out := &splitter{line: func(line []byte) {
			kept = append(append(kept, line...), '\n')
			if m := parseLine(line); m != nil {
				result.note(m, false)
			}
		}}
		for part := range slices.Chunk(data, max(1, chunk)) {
			out.Write(part)
		}
		out.Write([]byte("\n"))
		var want []byte
		for line := range bytes.SplitSeq(data, []byte("\n")) {
			if len(line) > 0 {
				want = append(append(want, line...), '\n')
			}
		}
		if diff := cmp.Diff(want, kept); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
		result.judge()
		if result.Status != "success" && result.Error == nil {
			t.Errorf("status %q without an error", result.Status)
		}
	})
}

// BenchmarkCommand and BenchmarkBare do the same work with and without the
// server; compare their medians of one run.
func BenchmarkCommand(b *testing.B) {
	s := startServer(b)
	for b.Loop() {
		if got := s.ask("hello"); got.Status != "success" {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(peakMemory(b, s.cmd.Process.Pid))/(1<<20), "peak-MB")
}

func BenchmarkBare(b *testing.B) {
	for b.Loop() {
		cmd := exec.Command(self(b), "-p")
		cmd.Stdin = strings.NewReader(`{"type":"user","message":{"role":"user","content":"hello"}}` + "\n")
		if output, err := cmd.Output(); err != nil || !bytes.Contains(output, []byte(`"result":"hello"`)) {
			b.Fatal(err, string(output))
		}
	}
}

// BenchmarkFlood is one command that writes 1 GiB without a newline.
func BenchmarkFlood(b *testing.B) {
	s := startServer(b)
	for b.Loop() {
		if got := s.ask("floods"); got.Status != "success" {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(peakMemory(b, s.cmd.Process.Pid))/(1<<20), "peak-MB")
}

// BenchmarkStubborn is the time from the deadline to the answer, with a tree
// that ignores SIGINT and SIGTERM.
func BenchmarkStubborn(b *testing.B) {
	s := startServer(b, "VM_TIMEOUT=100ms", "VM_STOP_GRACE=500ms")
	marker, total := newMarker(), time.Duration(0)
	for b.Loop() {
		got := s.ask("ignores-signals " + marker)
		total += time.Duration(got.DurationMS)*time.Millisecond - 100*time.Millisecond
		if list := marked(b, marker); len(list) > 0 {
			b.Fatal(list)
		}
	}
	b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms-after-deadline")
}

// peakMemory is a process's VmHWM, bytes.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}
