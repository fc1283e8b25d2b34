package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// needImage skips what only a container can show.
func needImage(t *testing.T) {
	t.Helper()
	if image == "" {
		t.Skip("a test of the image: make image-test runs it")
	}
}

func (v *vm) want(got string, lines ...string) {
	v.t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(got) {
			v.t.Errorf("there is no line %q in:\n%s", line, got)
		}
	}
}

// attacks prints a line for each try of the agent to touch the server.
const attacks = `tried() { if (eval "$2") >/dev/null 2>&1; then echo "$1: yes"; else echo "$1: no"; fi; }; ` +
	`tried environ 'cat /proc/1/environ'; tried memory 'head -c 1 /proc/1/mem'; tried descriptors 'ls /proc/1/fd'; ` +
	`tried signal 'kill -TERM 1'; tried exists 'kill -0 1'; tried binary 'echo >> /usr/local/bin/vm-server'; tried entrypoint 'echo >> /usr/local/bin/entrypoint.sh'; ` +
	`tried config 'echo >> /etc/cockpit-vm/mcp.json'; tried replace 'mv /usr/local/bin/vm-server /tmp/'; tried cli 'touch /opt/cockpit-vm/node_modules/x'; ` +
	`tried root 'setpriv --reuid=0 true'; tried su 'su -c true </dev/null'; tried workspace 'touch /workspace/x && rm /workspace/x'`

func TestImageTheAgentCannotTouchTheServer(t *testing.T) {
	needImage(t)
	v := start(t)
	got := v.bash("success", `id; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; `+attacks)
	v.want(got, `uid=1000\(node\) gid=1000\(node\) groups=1000\(node\).*`, `CapInh:\s0{16}`, `CapPrm:\s0{16}`, `CapEff:\s0{16}`, `CapAmb:\s0{16}`, `NoNewPrivs:\s1`,
		"environ: no", "memory: no", "descriptors: no", "signal: no", "exists: no", "binary: no", "entrypoint: no", "config: no", "replace: no", "cli: no",
		"root: no", "su: no", "workspace: yes")
	v.bash("failed", "kill -9 -1") // ends the CLI with all that is the agent's
	v.want(v.bash("success", "echo the server answers"), "the server answers")
}

// The control: with one user for both, the same tries reach the server.
func TestImageOneUserForBothIsWeaker(t *testing.T) {
	needImage(t)
	v := start(t, "--user=node")
	harmless := strings.Replace(attacks, "tried signal 'kill -TERM 1'; ", "", 1) // or the server would stop
	v.want(v.bash("success", harmless), "exists: yes", "workspace: yes", "binary: no", "config: no", "root: no")
	if !strings.Contains(v.log.String(), "the same user") {
		t.Errorf("no warning:\n%s", v.log)
	}
}

func TestImageWithMoreCapabilitiesGivesThemUp(t *testing.T) {
	needImage(t)
	v := start(t, "--cap-add=SETPCAP", "--cap-add=CHOWN", "--cap-add=DAC_OVERRIDE", "--cap-add=NET_RAW")
	if v.container != "" {
		output, err := exec.Command(engine, "exec", v.container, "grep", "-E", "^Cap(Prm|Eff|Bnd)", "/proc/1/status").CombinedOutput()
		if err != nil {
			t.Fatal(err, string(output))
		}
		const three = "00000000000000e0" // KILL, SETGID, SETUID
		v.want(string(output), `CapPrm:\s`+three, `CapEff:\s`+three, `CapBnd:\s`+three)
	}
	v.ask("success", "hello")
}

func TestImageAForkBombLeavesAServerThatAnswers(t *testing.T) {
	needImage(t)
	v := start(t, "--pids-limit=200", "VM_TIMEOUT=8s", "VM_STOP_GRACE=1s")
	a, body, err := v.post(context.Background(), "bash: bomb() { bomb | bomb & }; bomb; sleep 60", "")
	if err != nil || a.Status == "" {
		t.Fatalf("%v: %s\n%s", err, body, v.log)
	}
	v.nothingLeft()
	v.ask("success", "hello")
}

func TestImageAWorkspaceThatIsRootsIsToldOrHandedOver(t *testing.T) {
	needImage(t)
	if os.Getuid() != 0 {
		t.Skip("needs root, to own the workspace")
	}
	dir := newDir(t)
	os.Chown(dir+"/workspace", 0, 0)
	v := startIn(t, dir)
	v.want(v.bash("success", attacks), "workspace: no")
	if !strings.Contains(v.log.String(), "/workspace is not writable for node") {
		t.Errorf("nobody says it:\n%s", v.log)
	}
	v.stop()
	v = startIn(t, dir, "--cap-add=CHOWN")
	v.want(v.bash("success", attacks), "workspace: yes")
}

func TestImageAConversationOutlivesItsContainer(t *testing.T) {
	needImage(t)
	dir := newDir(t)
	v := startIn(t, dir)
	first := v.ask("success", "said in the first container")
	v.stop()
	v = startIn(t, dir)
	if a := v.askIn("success", "recall", first.SessionID); a.Result != "said in the first container" {
		t.Errorf("%+v", a)
	}
}

func TestImageAStopInMidCommandIsAnswered(t *testing.T) {
	needImage(t)
	v := start(t, "VM_SHUTDOWN_GRACE=2s")
	done := v.postBusy(context.Background())
	begin := time.Now()
	if output, err := exec.Command(engine, "stop", "--time=45", v.container).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("stop took %s", took)
	}
	select {
	case a := <-done:
		if a.Status != "canceled" || a.SessionID == "" {
			t.Errorf("%+v", a)
		}
	case <-time.After(10 * time.Second):
		t.Error("the client got no answer")
	}
}

func TestImageGitWorksInAForeignCheckout(t *testing.T) {
	needImage(t)
	dir := newDir(t)
	if os.Getuid() == 0 {
		os.MkdirAll(dir+"/workspace/repo", 0o777)
		os.Chmod(dir+"/workspace/repo", 0o777) // root's, and writable
	}
	v := startIn(t, dir, "GIT_AUTHOR_NAME=Someone", "GIT_AUTHOR_EMAIL=someone@example.com")
	v.want(v.bash("success", "cd repo && git init -q . && touch a && git add a && git commit -qm first && git log --format='%an %ce'"), "Someone someone@example.com")
}

// BenchmarkStart is the time from `run` to a healthy server, beside that of a
// container that does nothing, and the size of the image.
func BenchmarkStart(b *testing.B) {
	if image == "" {
		b.Skip("a benchmark of the image")
	}
	var healthy, nothing time.Duration
	for b.Loop() {
		begin := time.Now()
		if output, err := exec.Command(engine, "run", "--rm", "--network=host", "--entrypoint=true", image).CombinedOutput(); err != nil {
			b.Fatal(err, string(output))
		}
		nothing += time.Since(begin)
		begin = time.Now()
		cmd := exec.Command(engine, "run", "--rm", "--network=host", "--env=VM_ADDR=127.0.0.1:0", image)
		log := &buffer{}
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		for !strings.Contains(log.String(), "msg=listening") {
			time.Sleep(time.Millisecond)
		}
		healthy += time.Since(begin)
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	output, _ := exec.Command(engine, "image", "inspect", "--format", "{{.Size}}", image).Output()
	size, _ := strconv.Atoi(strings.TrimSpace(string(output)))
	b.ReportMetric(float64(healthy.Milliseconds())/float64(b.N), "ms-to-listening")
	b.ReportMetric(float64(nothing.Milliseconds())/float64(b.N), "ms-of-the-engine")
	b.ReportMetric(float64(size)/1e6, "image-MB")
}

// As README.md says, where the engine is asked and not compose.
func TestImageFilesForThePersonComeOutOfTheWorkspace(t *testing.T) {
	needImage(t)
	v := start(t)
	v.bash("success", "mkdir -p outbox && echo for you >outbox/report.txt")
	dir := t.TempDir()
	if output, err := exec.Command(engine, "cp", v.container+":/workspace/outbox", dir).CombinedOutput(); err != nil {
		t.Fatal(err, string(output))
	}
	got, err := os.ReadFile(dir + "/outbox/report.txt")
	if diff := cmp.Diff("for you\n", string(got)); err != nil || diff != "" {
		t.Errorf("the file (-want +got):\n%s%v", diff, err)
	}
}

// closed lists the folders that the agent's user can't enter, but for those that are
// root's own on every Debian.
const closed = `find / -xdev -type d ! -perm -005 ! -path '/root*' ! -path '/proc*' ! -path '/etc/ssl/private' ` +
	`! -path '/var/cache/apt/*' ! -path '/var/cache/ldconfig' ! -path '/var/lib/private' ! -path '/var/log/private' ` +
	`! -path '/var/spool/*' ! -path '/var/log/squid' ! -path '/var/lib/apt/*'`

// Whoever built them. The control is the mode that Docker 28.1 and newer gave.
func TestImageTheAgentAndSquidCanEnterTheirFolders(t *testing.T) {
	needImage(t)
	for name, folders := range map[string][]string{
		image:                {"/etc/claude-code", "/etc/claude-code/managed-settings.d", "/etc/claude-code/.claude/rules", "/etc/cockpit-vm"},
		"cockpit-vm-gateway": {"/etc/egress"},
	} {
		look := func(before string) string {
			return run(t, "run", "--rm", "--no-healthcheck", "--network=none", "--user=0", "--entrypoint=sh", name, "-c", before+closed)
		}
		if got := look(""); got != "" {
			t.Errorf("%s has folders that nobody but root can enter:\n%s", name, got)
		}
		for _, folder := range folders {
			if got := look("chmod 644 " + folder + "; "); !strings.Contains(got, folder) {
				t.Errorf("the control: %s is closed and not found: %q", folder, got)
			}
		}
	}
}

// The settings are those of the image, and who waits is the server's.
func TestImageAWaitingClaudeCodeDeletesNoConversation(t *testing.T) {
	needImage(t)
	empty := t.TempDir()
	os.Chmod(empty, 0o755)
	for _, test := range []struct {
		name string
		env  []string
		want bool
	}{
		{"as the image is", nil, true},
		{"the control: without the image's settings", []string{"--volume=" + empty + ":/etc/claude-code:ro"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newDir(t)
			v := startIn(t, dir, test.env...)
			v.ask("success", "said long ago")
			v.stop()
			path := v.onlyConversation(t)
			makeOld(t, path)
			os.Remove(v.housekeeping())
			v = startIn(t, dir, append(test.env, "VM_WARM=true")...)
			v.eventually("the housekeeping of the waiting one has run", func() bool { return exists(v.housekeeping()) })
			if exists(path) != test.want {
				t.Errorf("the conversation is there: %v, want %v", !test.want, test.want)
			}
		})
	}
}
