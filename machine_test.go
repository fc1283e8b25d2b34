package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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

// here says whether a part is here. In CI it must be.
func here(t *testing.T, path, remedy string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%v: %s", err, remedy)
	}
	if err != nil {
		t.Logf("left out: %v: %s", err, remedy)
	}
	return err == nil
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

func lookPath(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// asNobodyElse makes the server an ordinary user whom no other process belongs to.
func asNobodyElse(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become a user without other processes")
	}
	path, uid := publicSelf(t), uint32(1<<30+time.Now().UnixNano()%(1<<30))
	cmd.Path, cmd.Args, cmd.Dir = path, []string{"vm-server"}, "/"
	cmd.Env = append(cmd.Env, "VM_CLAUDE="+path, "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// onATinyDisk makes the server's workspace a disk of 64 kB, which is gone with
// the server: it is mounted in a namespace of the server's own.
func onATinyDisk(t testing.TB, cmd *exec.Cmd, workspace string) error {
	t.Helper()
	unshare := []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size=64k,mode=777 none "$0" && exec "$@"`, workspace}
	if output, err := exec.Command("unshare", append(unshare[1:], "true")...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot mount a small disk, which needs root with CAP_SYS_ADMIN: %s", output)
	}
	cmd.Args = append(unshare, cmd.Path)
	cmd.Path = lookPath(t, "unshare")
	return nil
}

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
	run := func(args ...string) string {
		s.t.Helper()
		cmd := exec.Command(program(s.t, "prlimit", "apt-get install util-linux"), append([]string{"--pid", strconv.Itoa(s.cmd.Process.Pid)}, args...)...)
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
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	claude := filepath.Join(root, program(t, "node_modules/.bin/claude", "make setup"))
	home, tmp, path := t.TempDir(), t.TempDir(), t.TempDir()+"/model"
	if output, err := exec.Command("go", "build", "-o", path, "./e2e").CombinedOutput(); err != nil {
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
	return []string{"TEST_REAL_CLAUDE=" + claude, "PATH=" + filepath.Dir(claude) + ":" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + tmp,
		"VM_MCP_CONFIG=" + root + "/.mcp.json", "ANTHROPIC_BASE_URL=" + strings.TrimSpace(url), "ANTHROPIC_API_KEY=dummy-key",
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"}, tmp
}
