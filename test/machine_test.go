package test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// missing skips a test for what the machine doesn't have. In CI it must be there.
func missing(t testing.TB, what, remedy string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %s", what, remedy)
	}
	t.Skipf("%s: %s", what, remedy)
}

// program finds a program that a test needs.
func program(t testing.TB, name, remedy string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, err.Error(), remedy)
	}
	return path
}

// needsLinux is for a test that starts a server or an agent.
func needsLinux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		missing(t, "not Linux", "scripts/linux runs it in a container")
	}
}

// needsRoot is for a test that becomes, or looks at, other users or namespaces.
func needsRoot(t testing.TB, why string) {
	t.Helper()
	needsLinux(t)
	if os.Getuid() != 0 {
		missing(t, "not root", "needs root, "+why)
	}
}

// has says whether a part of a test can run. In CI it must.
func has(t testing.TB, err error, remedy string) bool {
	t.Helper()
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%v: %s", err, remedy)
	}
	if err != nil {
		t.Logf("left out: %v: %s", err, remedy)
	}
	return err == nil
}

// writeProgram writes a file that can be executed at once: no child that another
// test forks meanwhile may inherit its descriptor, or it would be busy.
func writeProgram(path string, data []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, 0o755)
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
		err = writeProgram(directory+"/claude", data)
	}
	if err == nil {
		err = os.Chmod(directory, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return directory + "/claude"
}

// asPID1 gives the server a pid namespace of its own, as a container does.
func asPID1(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	needsRoot(t, "to become PID 1")
	cmd.Env = append(cmd.Env, "TEST_MOUNT_PROC=1")
	cmd.SysProcAttr = ownNamespaces()
}

// asUser makes the server an ordinary user, who may execute the agent at path.
func asUser(t testing.TB, cmd *exec.Cmd, path string, uid uint32) {
	t.Helper()
	needsRoot(t, "to become an ordinary user")
	cmd.Dir = "/"
	cmd.Env = append(cmd.Env, "VM_CLAUDE="+path, "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

const nobody = 65534

// asNobodyElse makes the server a user whom no other process belongs to.
func asNobodyElse(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	asUser(t, cmd, publicSelf(t), uint32(1<<30+time.Now().UnixNano()%(1<<30)))
}

// below runs the server by another program, which executes it.
func below(t testing.TB, cmd *exec.Cmd, args ...string) {
	t.Helper()
	path := program(t, args[0], "install it")
	cmd.Path, cmd.Args = path, append(args, cmd.Path)
}

// onATinyDisk makes the server's workspace a disk of 64 kB, which is gone with
// the server: it is mounted in a namespace of the server's own.
func onATinyDisk(t testing.TB, cmd *exec.Cmd, workspace string) error {
	t.Helper()
	const mount = `mount -t tmpfs -o size=64k,mode=777 none "$0" && exec "$@"`
	unshare := []string{"unshare", "--mount", "sh", "-c", mount, workspace}
	output, err := exec.Command(unshare[0], append(unshare[1:], "true")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot mount a small disk: %w: %s", err, output)
	}
	below(t, cmd, unshare...)
	return nil
}

const needsMount = "needs root with CAP_SYS_ADMIN"

// fill fills the server's tiny disk until empty is called.
func (s *testServer) fill(workspace string) (empty func()) {
	s.t.Helper()
	path := fmt.Sprintf("/proc/%d/root%s/full", s.cmd.Process.Pid, workspace) // as the server sees it
	err := os.WriteFile(path, make([]byte, 1<<20), 0o644)
	if !errors.Is(err, syscall.ENOSPC) {
		s.t.Fatalf("the disk is not full: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			s.t.Fatal(err)
		}
	}
}

// limit sets a soft limit of the running server with prlimit(1), such as "nofile";
// lift sets what was there.
func (s *testServer) limit(resource string, soft int) (lift func()) {
	s.t.Helper()
	path, pid := program(s.t, "prlimit", "install util-linux"), strconv.Itoa(s.cmd.Process.Pid)
	run := func(args ...string) string {
		s.t.Helper()
		cmd := exec.Command(path, append([]string{"--pid", pid}, args...)...)
		if s.cmd.SysProcAttr != nil { // as the same user, for which no capability is needed
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cmd.SysProcAttr.Credential}
		}
		output, err := cmd.CombinedOutput()
		if err != nil {
			s.t.Fatalf("%v: %s", err, output)
		}
		return strings.TrimSpace(string(output))
	}
	old := run("--"+resource, "--noheadings", "--raw", "--output=SOFT")
	run(fmt.Sprintf("--%s=%d:", resource, soft))
	return func() { run("--" + resource + "=" + old + ":") }
}

// withRealClaude returns an environment in which a prompt that begins with
// "real " goes to the real CLI, on a scripted model that plays the rest of it.
// tmp is where Playwright and Chromium keep their files.
func withRealClaude(t testing.TB) (env []string, tmp string) {
	t.Helper()
	root := projectRoot(t)
	claude := program(t, root+"/node_modules/.bin/claude", "make setup")
	home, tmp, path := t.TempDir(), t.TempDir(), t.TempDir()+"/model"
	if output, err := exec.Command("go", "build", "-o", path, "../e2e").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	model := exec.Command(path)
	out, err := model.StdoutPipe()
	if err == nil {
		err = model.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		model.Process.Kill()
		model.Wait()
	})
	url, _ := bufio.NewReader(out).ReadString('\n')
	return []string{
		"TEST_REAL_CLAUDE=" + claude, "PATH=" + filepath.Dir(claude) + ":" + os.Getenv("PATH"),
		"HOME=" + home, "TMPDIR=" + tmp, "VM_MCP_CONFIG=" + root + "/.mcp.json",
		"ANTHROPIC_BASE_URL=" + strings.TrimSpace(url), "ANTHROPIC_API_KEY=dummy-key",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
	}, tmp
}
