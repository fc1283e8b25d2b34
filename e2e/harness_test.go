// The tests of the parts together: the built vm-server, the real Claude Code
// CLI, the real Playwright MCP and the real Chromium; only the model is scripted.
//
// They run against a vm-server that TestMain builds or, where E2E_IMAGE names an
// image, against a container of it, by E2E_ENGINE (docker or podman).
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// vm is a running vm-server.
type vm struct {
	t         testing.TB
	url       string
	model     *model
	modelURL  string
	dir       string // on this machine: holds workspace and home
	workspace string // as the agent sees it
	container string
	cmd       *exec.Cmd // the server, or the engine's attached client
	log       *buffer
	mark      string
	token     string // VM_TOKEN, if it is set
	done      chan struct{}
}

type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

var image, engine = os.Getenv("E2E_IMAGE"), os.Getenv("E2E_ENGINE")

// program is the vm-server under test, where it is not an image.
var program string

// TestMain builds the program from the source as it is now: a test of an older
// one would prove nothing.
func TestMain(m *testing.M) {
	if image != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	program = dir + "/vm-server"
	build := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	code := 1
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: cannot build vm-server: %v\n%s", err, output)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// need fails a test whose part is not here. It does not skip it: without the
// real parts these tests would say nothing, and be green.
func need(t testing.TB, path, remedy string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil && image == "" {
		t.Fatalf("%v: %s", err, remedy)
	}
}

func needChromium(t testing.TB) {
	t.Helper()
	need(t, "/usr/bin/chromium", "make setup as root, or: apt-get install chromium")
}

// root is the folder of the project.
func root(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// agentEnv is the environment for the CLI: nothing of the machine's, and no way
// to a network but the scripted model.
func agentEnv(modelURL string) []string {
	return []string{"ANTHROPIC_BASE_URL=" + modelURL, "ANTHROPIC_API_KEY=dummy-key", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"}
}

// hostEnv is what a program needs on this machine to run the CLI in v's folders.
func (v *vm) hostEnv() []string {
	env := []string{"PATH=" + root(v.t) + "/node_modules/.bin:" + os.Getenv("PATH"), "HOME=" + v.dir + "/home", "TMPDIR=" + v.dir + "/tmp"}
	if os.Getuid() == 0 {
		env = append(env, "IS_SANDBOX=1")
	}
	return env
}

// claude is the CLI without the server, in the same folders, with its input.
func (v *vm) claude(input string, args ...string) *exec.Cmd {
	cmd := exec.Command(root(v.t)+"/node_modules/.bin/claude", append([]string{"-p", "--dangerously-skip-permissions"}, args...)...)
	cmd.Dir, cmd.Stdin = v.workspace, strings.NewReader(input)
	cmd.Env = append(agentEnv(v.modelURL), v.hostEnv()...)
	return cmd
}

// newDir makes the folders of a vm, for whoever the agent is. Not in t.TempDir,
// which has the test's name: Chromium's socket has its path in 108 bytes.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"workspace", "home", "tmp"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if image != "" {
			os.Chown(path, 1000, 1000)
		}
	}
	return dir
}

// start starts a server; env overrides what the tests set: there is no spare, so
// that any process but the server is one too many. An entry that begins with --
// is an argument for the container engine.
func start(t testing.TB, env ...string) *vm {
	t.Helper()
	return startIn(t, newDir(t), env...)
}

func startIn(t testing.TB, dir string, env ...string) *vm {
	t.Helper()
	return startFrom(t, image, dir, env...)
}

// startFrom is startIn with another image, or with none.
func startFrom(t testing.TB, image, dir string, env ...string) *vm {
	t.Helper()
	need(t, "../node_modules/.bin/claude", "make setup installs it")
	m := &model{}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	v := &vm{t: t, model: m, modelURL: server.URL, dir: dir, workspace: dir + "/workspace", log: &buffer{},
		mark: "E2E_MARK=" + strconv.FormatInt(time.Now().UnixNano(), 36), done: make(chan struct{})}
	env = append(append(agentEnv(server.URL), v.mark, "VM_ADDR=127.0.0.1:0", "VM_STOP_GRACE=3s", "VM_WARM=false"), env...)
	if image != "" {
		v.workspace = "/workspace"
		v.cmd = v.containerCommand(image, env)
	} else {
		v.cmd = exec.Command(programOf(env))
		v.cmd.Dir = dir
		v.cmd.Env = append(append(v.hostEnv(), "VM_WORKSPACE="+v.workspace, "VM_MCP_CONFIG="+root(t)+"/.mcp.json"), env...)
	}
	v.launch()
	t.Cleanup(v.stop)
	v.listens()
	return v
}

// programOf is the vm-server to start: a mutant that env names, or the program.
func programOf(env []string) string {
	path := program
	for _, entry := range env {
		if name, isNamed := strings.CutPrefix(entry, "E2E_PROGRAM="); isNamed {
			path = name
		}
	}
	return path
}

// launch starts the server's command.
func (v *vm) launch() {
	v.t.Helper()
	v.cmd.Stderr = v.log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	go func() {
		v.cmd.Wait()
		close(v.done)
	}()
}

// listens waits until the server says where it listens.
func (v *vm) listens() {
	v.t.Helper()
	v.eventually("the server listens", func() bool {
		_, rest, found := strings.Cut(v.log.String(), "msg=listening addr=")
		addr, _, _ := strings.Cut(rest, " ")
		v.url = "http://" + addr
		return found || v.ended()
	})
	if v.ended() {
		v.t.Fatalf("%q ended:\n%s", v.cmd.Args, v.log)
	}
}

// containerCommand runs the image as compose.yaml does, but for the volumes, which
// are this test's folders, and the host's network, as the model listens on its
// loopback. A mount among env replaces one that is there.
func (v *vm) containerCommand(image string, env []string) *exec.Cmd {
	v.container = "e2e-" + strings.ToLower(v.mark[len("E2E_MARK="):])
	flags := append(composeFlags(v.t), "--volume="+v.dir+"/workspace:/workspace", "--volume="+v.dir+"/home:/home/node")
	for _, entry := range env {
		if !strings.HasPrefix(entry, "--") {
			entry = "--env=" + entry
		}
		flags = append(flags, entry)
	}
	args := append([]string{"run", "--rm", "--name", v.container, "--network=host"}, overridden(flags)...)
	cmd := exec.Command(engine, append(args, image)...)
	cmd.Dir = v.dir // conmon writes a file there when the memory is used up
	return cmd
}

func (v *vm) ended() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// signal signals the server.
func (v *vm) signal(name string, sig syscall.Signal) {
	if v.container != "" {
		exec.Command(engine, "kill", "--signal="+name, v.container).Run()
		return
	}
	v.cmd.Process.Signal(sig)
}

// stop ends the server as an operator would; afterwards nothing may be left.
func (v *vm) stop() {
	v.signal("TERM", syscall.SIGTERM)
	select {
	case <-v.done:
	case <-time.After(60 * time.Second):
		v.t.Error("the server did not stop within a minute")
		v.signal("KILL", syscall.SIGKILL)
		<-v.done
	}
	v.nothingLeft()
	if v.t.Failed() {
		v.t.Logf("the server's log:\n%s", v.log)
	}
}

func (v *vm) eventually(what string, condition func() bool) {
	v.t.Helper()
	eventually(v.t, what, condition, func() string { return "the server's log:\n" + v.log.String() })
}

// eventually polls, and when nothing comes of it within a minute fails the test, with
// what tells why.
func eventually(t testing.TB, what string, condition func() bool, why func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s; %s", what, why())
		}
	}
}

// mutant builds the program with a text of one of its files replaced, for negative
// controls: a mechanism is off, and the same look must find what it prevents.
func mutant(t testing.TB, file, text, replacement string) (path string) {
	t.Helper()
	source := read(t, file)
	if strings.Count(source, text) != 1 {
		t.Fatalf("%s has %q %d times, so the control is of no use any more", file, text, strings.Count(source, text))
	}
	dir := t.TempDir()
	changed := strings.Replace(source, text, replacement, 1)
	overlay := fmt.Sprintf(`{"Replace": {%q: %q}}`, root(t)+"/"+file, dir+"/"+file)
	err := errors.Join(os.WriteFile(dir+"/"+file, []byte(changed), 0o644), os.WriteFile(dir+"/overlay.json", []byte(overlay), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-overlay", dir+"/overlay.json", "-o", dir+"/vm-server", ".")
	build.Dir, build.Env = root(t), append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return dir + "/vm-server"
}
