package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What compose.yaml, fly.toml, README.md and the entrypoint make of the image.

// overridden leaves out each mount that a later one hides: at the same place, or
// above it.
func overridden(flags []string) (list []string) {
	place := func(flag string) string {
		kind, value, _ := strings.Cut(flag, "=")
		parts := strings.Split(value, ":")
		switch {
		case kind == "--tmpfs":
			return parts[0]
		case kind == "--volume" && len(parts) > 1:
			return parts[1]
		}
		return ""
	}
	for i, flag := range flags {
		here := place(flag)
		hidden := here != "" && slices.ContainsFunc(flags[i+1:], func(later string) bool {
			above := place(later)
			return above != "" && strings.HasPrefix(here+"/", above+"/")
		})
		if !hidden {
			list = append(list, flag)
		}
	}
	return list
}

// once runs a container as compose.yaml has it, with flags and then the command,
// and returns what it printed.
func once(t testing.TB, flags []string, command ...string) (stdout, stderr string) {
	t.Helper()
	flags = overridden(append(composeFlags(t), flags...))
	args := append([]string{"run", "--rm", "--network=none"}, flags...)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, engine, append(append(args, image), command...)...)
	var out, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errors
	if err := cmd.Run(); err != nil {
		t.Errorf("%q %q: %v: %s", flags, command, err, errors.String())
	}
	return out.String(), errors.String()
}

func needRoot(t *testing.T) {
	t.Helper()
	needImage(t)
	if os.Getuid() != 0 {
		t.Skip("needs root, to give folders to others")
	}
}

func TestImageAFlagIsForTheServer(t *testing.T) {
	needImage(t)
	const help = "vm-server answers POST /command by running Claude Code"
	for _, flag := range []string{"-h", "--help"} {
		if stdout, _ := once(t, nil, flag); !strings.Contains(stdout, help) {
			t.Errorf("%s printed %q, want %q", flag, stdout, help)
		}
	}
	if stdout, _ := once(t, nil, "-version"); !strings.HasPrefix(stdout, "vm-server ") {
		t.Errorf("-version printed %q", stdout)
	}
	if stdout, _ := once(t, nil, "echo", "a command of one's own"); stdout != "a command of one's own\n" {
		t.Errorf("echo printed %q", stdout)
	}
}

func TestImageItsLabelsSayWhatItIsMadeOf(t *testing.T) {
	needImage(t)
	output, err := exec.Command(engine, "image", "inspect", image).Output()
	if err != nil {
		t.Fatal(err)
	}
	var images []struct {
		Config struct{ Labels map[string]string }
	}
	if err := json.Unmarshal(output, &images); err != nil {
		t.Fatal(err)
	}
	labels := images[0].Config.Labels
	commit, err := exec.Command("git", "-C", "..", "rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range []string{"title", "licenses", "base.name", "revision"} {
		got[name] = labels["org.opencontainers.image."+name]
	}
	want := map[string]string{
		"title":     "cockpit-vm",
		"licenses":  "MIT",
		"base.name": "docker.io/library/node:24-bookworm",
		"revision":  strings.TrimSpace(string(commit)),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	for _, name := range []string{"description", "version", "created", "source"} {
		if _, isThere := labels["org.opencontainers.image."+name]; !isThere {
			t.Errorf("there is no label %s", name)
		}
	}
}

// What is on top of the base image: 0.78 GB, and never more than 0.96. Mesa and LLVM alone
// are 214 MB, and come back if Debian's Chromium asks for more than x11-utils.
func TestImageIsSmall(t *testing.T) {
	needImage(t)
	history := run(t, "history", "--no-trunc", "--format={{.Size}} {{.CreatedBy}}", image)
	size := regexp.MustCompile(`^([\d.]+) ?([kMG]?)B `)
	var megabytes float64
	for line := range strings.Lines(history) {
		match := size.FindStringSubmatch(line)
		if match == nil {
			t.Fatalf("no size: %s", line)
		}
		number, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		megabytes += number * map[string]float64{"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3}[match[2]]
		if strings.Contains(line, "/tmp/no-x11-utils/DEBIAN/control") { // the first layer of ours
			break
		}
	}
	if megabytes < 500 || megabytes > 960 {
		t.Errorf("%.0f MB on top of the base:\n%s", megabytes, history)
	}
	const look = "dpkg -s x11-utils 2>&1; ls /usr/lib/*/libLLVM* 2>&1; true"
	got := run(t, "run", "--rm", "--entrypoint=sh", image, "-c", look)
	if strings.Contains(got, "Status:") || !strings.Contains(got, "No such file") {
		t.Errorf("what windows need is there: %s", got)
	}
}

// What README.md says that an agent finds.
func TestImageTheAgentFindsItsTools(t *testing.T) {
	needImage(t)
	v := start(t)
	const tools = "git rg curl jq python3 make cc node npm chromium"
	got := v.bash("success", "for tool in "+tools+"; do command -v $tool >/dev/null || echo no $tool; done; echo looked")
	if diff := cmp.Diff("looked", got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestImageATokenFileThatTheAgentCanReadIsTold(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"VM_TOKEN_FILE", "VM_GIT_TOKEN_FILE"} {
		for mode, want := range map[os.FileMode]bool{0o444: true, 0o400: false} {
			file := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(file, []byte("secret"), mode); err != nil {
				t.Fatal(err)
			}
			_, said := once(t, []string{"--volume=" + file + ":/run/token:ro", "--env=" + name + "=/run/token"}, "true")
			got := strings.Contains(said, "the agent can read "+name)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("whether it says so of %s with mode %o (-want +got):\n%s%s", name, mode, diff, said)
			}
		}
	}
}

// folder makes a folder of somebody's, with files and (where the name ends in a
// slash) folders in it.
func folder(t *testing.T, uid, gid int, mode os.FileMode, files ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "folder")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "/") {
			os.Mkdir(filepath.Join(path, name), 0o700)
		} else if err := os.WriteFile(filepath.Join(path, name), []byte("private\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chown(filepath.Join(path, name), uid, gid)
	}
	os.Chown(path, uid, gid)
	os.Chmod(path, mode)
	return path
}

func TestImageTheEntrypointGivesAwayWhatIsNobodysYetAlone(t *testing.T) {
	needRoot(t)
	chown := []string{"--cap-add=CHOWN"}
	for _, test := range []struct {
		name   string
		folder string
		flags  []string
		user   string
		want   string // the owner afterwards
		says   string
	}{
		{"root's, and empty", folder(t, 0, 0, 0o755), chown, "", "1000:1000", ""},
		{"root's, and empty but for lost+found", folder(t, 0, 0, 0o755, "lost+found/"), chown, "", "1000:1000", ""},
		{"root's, for an id without an account", folder(t, 0, 0, 0o755), chown, "501:20", "501:20", ""},
		{"root's, with files", folder(t, 0, 0, 0o755, "file"), chown, "", "0:0", "it is root's; give it to 1000:1000"},
		{"root's, without the capability", folder(t, 0, 0, 0o755), nil, "", "0:0", "add the capability CHOWN"},
		{"a person's, with files", folder(t, 501, 20, 0o755, "file"), chown, "", "501:20", "set VM_USER=501:20"},
		{"a person's, and empty", folder(t, 501, 20, 0o755), chown, "", "501:20", "set VM_USER=501:20"},
		{"a person's, who is the agent", folder(t, 501, 20, 0o700, "file"), nil, "501:20", "501:20", ""},
		{"open for all", folder(t, 0, 0, 0o777, "file"), chown, "", "0:0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			flags := append(test.flags, "--volume="+test.folder+":/workspace")
			if test.user != "" {
				flags = append(flags, "--env=VM_USER="+test.user)
			}
			stdout, stderr := once(t, flags, "stat", "-c", "%u:%g", "/workspace")
			if diff := cmp.Diff(test.want, strings.TrimSpace(stdout)); diff != "" {
				t.Errorf("the owner (-want +got):\n%s", diff)
			}
			said := strings.Contains(stderr, "entrypoint: /workspace is not writable")
			if !strings.Contains(stderr, test.says) || said != (test.says != "") {
				t.Errorf("it said %q, want %q", stderr, test.says)
			}
		})
	}
}

func TestImageAHomeForAnyID(t *testing.T) {
	needRoot(t)
	const node, stranger = "1000:1000", "501:20"
	for _, test := range []struct {
		name  string
		home  string // what is mounted at /home; "" is the volume of the image
		flags []string
		user  string // VM_USER
		want  string // of the agent's home: owner, mode, folder
		open  string // the mode of /home afterwards
	}{
		{"in the image's volume, node's own", "", nil, "node", "1000:1000 755 /home/node", "1777"},
		{"in the image's volume, an id's without an account", "", nil, stranger, "501:20 700 /home/501", "1777"},
		{"in the image's volume, where the container is that id", "", []string{"--user=501:20"}, stranger, "501:20 700 /home/501", "1777"},
		{"in root's empty volume, node's", folder(t, 0, 0, 0o755, "lost+found/"), nil, "node", "1000:1000 755 /home/node", "1777"},
		{"in root's empty volume, an id's without an account", folder(t, 0, 0, 0o755, "lost+found/"), nil, stranger, "501:20 700 /home/501", "1777"},
		{"in the person's own folder", folder(t, 501, 20, 0o755), nil, stranger, "501:20 700 /home/501", "755"},
	} {
		t.Run(test.name, func(t *testing.T) {
			flags := append(test.flags, "--env=VM_USER="+test.user)
			if test.home != "" {
				flags = append(flags, "--volume="+test.home+":/home")
			}
			_, _, path := fields(test.want)
			got, said := once(t, flags, "sh", "-c", "stat -c '%u:%g %a %n' "+path+"; stat -c %a /home")
			if diff := cmp.Diff(test.want+"\n"+test.open+"\n", got); diff != "" {
				t.Errorf("(-want +got):\n%s%s", diff, said)
			}
		})
	}

	t.Run("and never the workspace, which engines name for an id without an account", func(t *testing.T) {
		got, _ := once(t, []string{"--user=501:20", "--env=VM_USER=501:20"}, "sh", "-c", "echo $HOME")
		if diff := cmp.Diff("/home/501\n", got); diff != "" {
			t.Errorf("HOME (-want +got):\n%s", diff)
		}
	})
	t.Run("in another's volume, nowhere, and it is said", func(t *testing.T) {
		closed := folder(t, 1000, 1000, 0o755)
		got, said := once(t, []string{"--env=VM_USER=501:20", "--volume=" + closed + ":/home"}, "ls", "-A", "/home")
		if got != "" || !strings.Contains(said, "make /home writable for 501:20") {
			t.Errorf("it made %q and said %q", got, said)
		}
	})
	t.Run("in a volume that was mounted at /home/node, and it is said", func(t *testing.T) {
		old := folder(t, 1000, 1000, 0o755, ".claude/")
		_, said := once(t, []string{"--volume=" + old + ":/home"}, "true")
		if !strings.Contains(said, "mount that volume at /home/node, as before") {
			t.Errorf("it said %q", said)
		}
	})
}

func fields(line string) (a, b, c string) {
	list := strings.Fields(line)
	return list[0], list[1], list[2]
}

// A person's folder, mounted, and the agent as its owner: it reads what only the
// owner may read, what it makes is the owner's, and its conversations last.
func TestImageTheAgentAsTheOwnerOfAFolder(t *testing.T) {
	needRoot(t)
	homes, dir := folder(t, 0, 0, 0o755), newDir(t)
	mine := folder(t, 501, 20, 0o700, "file")
	flags := []string{"--volume=" + mine + ":/workspace", "--volume=" + homes + ":/home", "VM_USER=501:20"}
	v := startIn(t, dir, flags...)
	got := v.bash("success", `id -u; id -g; cat file; echo "$HOME $USER"; touch made; stat -c %u:%g made; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; `+attacks)
	v.want(got, "501", "20", "private", "/home/501 501", "501:20", `CapEff:\s0{16}`, `NoNewPrivs:\s1`,
		"environ: no", "memory: no", "signal: no", "exists: no", "binary: no", "config: no", "root: no", "workspace: yes")
	first := v.ask("success", "said by the owner")
	v.stop()
	v = startIn(t, dir, flags...)
	if a := v.askIn("success", "recall", first.SessionID); a.Result != "said by the owner" {
		t.Errorf("%+v", a)
	}
	v.stop()

	// The control: as node, nothing of it can be read.
	v = startIn(t, dir, append(flags, "VM_USER=node", "VM_WORKSPACE=/tmp")...)
	if got := v.bash("success", "cat /workspace/file || echo no"); !strings.Contains(got, "Permission denied") {
		t.Errorf("node reads %q", got)
	}
}

// Fly mounts one volume, root's, and gives every capability.
func TestImageTheVolumeOfFly(t *testing.T) {
	needRoot(t)
	fly := read(t, "fly.toml")
	find := func(name string) string {
		match := regexp.MustCompile(`(?m)^  ` + name + ` = "(.*)"$`).FindStringSubmatch(fly)
		if match == nil {
			t.Fatalf("fly.toml has no %s", name)
		}
		return match[1]
	}
	place, workspace := find("destination"), find("VM_WORKSPACE")
	if !strings.HasPrefix(workspace, place+"/") {
		t.Errorf("the workspace %s is not in the volume at %s", workspace, place)
	}
	for _, user := range []string{"node", "501:20"} {
		t.Run("as "+user, func(t *testing.T) {
			volume, dir := folder(t, 0, 0, 0o755, "lost+found/"), newDir(t)
			flags := []string{"--volume=" + volume + ":" + place, "VM_WORKSPACE=" + workspace, "VM_USER=" + user,
				"--cap-add=CHOWN", "--cap-add=DAC_OVERRIDE", "--cap-add=FOWNER", "--cap-add=SETPCAP", "--cap-add=SYS_ADMIN"}
			v := startIn(t, dir, flags...)
			got := v.bash("success", `pwd; touch here "$HOME/there" && echo written; stat -c '%a %u' `+place)
			v.want(got, workspace, "written", "1777 0")
			first := v.ask("success", "said on Fly")
			v.stop()
			v = startIn(t, dir, flags...)
			if a := v.askIn("success", "recall", first.SessionID); a.Result != "said on Fly" {
				t.Errorf("%+v", a)
			}
		})
	}
}

// fill takes more of /tmp than there may be, and keeps in the workspace how much it got.
const fill = `head -c 3G /dev/zero >/tmp/fill; stat -c 'filled %s' /tmp/fill | tee filled`

// What a command leaves in /tmp counts as memory for as long as it is there. With
// the size of compose.yaml the next commands run, and can take it away.
func TestImageTmpDoesNotTakeTheMemory(t *testing.T) {
	needImage(t)
	v := start(t)
	v.ask("success", "bash: "+fill)
	v.ask("success", "bash: rm /tmp/fill")
	v.want(v.bash("success", "cat filled; df --output=size -B1 /tmp"), "filled 10[67][0-9]{7}", " *1073741824")
	if !slices.Contains(composeFlags(t), "--memory=4g") {
		t.Errorf("a /tmp of 1 GB, in compose.yaml with %q", composeFlags(t))
	}
}

// The control: without a size, it takes all that there is. Whom the kernel kills first
// is its own choice: where that is the CLI, the next command goes on with filling.
func TestImageWithoutASizeTmpTakesTheMemory(t *testing.T) {
	needImage(t)
	v := start(t, "--tmpfs=/tmp:exec", "--memory=1g", "--memory-swap=1g", "VM_TIMEOUT=60s")
	for range 10 {
		v.post(context.Background(), "bash: head -c 3G /dev/zero >>/tmp/fill", "")
		a, body, err := v.post(context.Background(), "hello", "")
		if err != nil || a.Status != "success" {
			t.Logf("the next command: %v %s", err, body)
			return
		}
	}
	t.Error("the next command ran, so the test beside this one proves nothing")
}

// A segment of System V memory is nobody's once its maker has ended; it would
// stay until the container ends. The control is the engine's default.
func TestImageSystemVMemoryEndsWithItsOwner(t *testing.T) {
	needImage(t)
	segment := func(v *vm) string {
		made := v.bash("success", `node --version >/dev/null; ipcmk -M 1000000; echo made`)
		if !strings.Contains(made, "Shared memory id") {
			t.Errorf("none was made: %s", made)
		}
		return v.bash("success", `ipcs -m | grep -c 1000000 || :`)
	}
	if got := segment(start(t)); got != "0" {
		t.Errorf("%s segments are left", got)
	}
	if got := segment(start(t, "--sysctl=kernel.shm_rmid_forced=0")); got != "1" {
		t.Errorf("in the control %s segments are left, so the test proves nothing", got)
	}
}

// healthy runs the image's HEALTHCHECK once and returns whether it succeeded.
func (v *vm) healthy() bool {
	v.t.Helper()
	if engine == "podman" {
		return exec.Command(engine, "healthcheck", "run", v.container).Run() == nil
	}
	output, err := exec.Command(engine, "image", "inspect", "--format", `{{range .Config.Healthcheck.Test}}{{.}}{{"\n"}}{{end}}`, image).Output()
	list := strings.Fields(string(output))
	if err != nil || len(list) < 2 || list[0] != "CMD" {
		v.t.Fatalf("%v: HEALTHCHECK %q", err, list)
	}
	_, err = v.inside(list[1:]...)
	return err == nil
}

func TestImageTheHealthcheckFollowsTheAddressAndTakesNoProxy(t *testing.T) {
	needImage(t)
	var asked buffer
	proxy := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(&asked, r.URL)
		w.WriteHeader(http.StatusBadGateway)
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go proxy.Serve(listener)
	t.Cleanup(func() { proxy.Close() })

	for _, host := range []string{"127.0.0.1", "localhost", "0.0.0.0", "", "[::1]", "[::]"} {
		t.Run(host+":PORT", func(t *testing.T) {
			_, port, _ := net.SplitHostPort(freeAddr(t))
			v := start(t, "VM_ADDR="+host+":"+port, "VM_ALLOW_NO_TOKEN=true",
				"http_proxy=http://"+listener.Addr().String(), "all_proxy=http://"+listener.Addr().String(), "no_proxy=")
			if !v.healthy() {
				t.Error("unhealthy")
			}
			// The control: a server that is not there.
			if _, err := v.inside("env", "VM_ADDR="+freeAddr(t), "healthcheck.sh"); err == nil {
				t.Error("healthy where nobody listens")
			}
		})
	}
	if asked.String() != "" {
		t.Errorf("the proxy was asked for %s", asked.String())
	}
}

// freeAddr is an address of the loopback that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// newModelServer serves a scripted model for the test and returns its URL.
func newModelServer(t testing.TB, m *model) string {
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	return server.URL
}

// README's `docker run` line, with names of this test's and the host's network
// for its port: a stop lets the running command end, longer than the engine's own
// 10 s, and a new container has the conversation.
func TestImageTheLineOfTheReadme(t *testing.T) {
	needImage(t)
	t.Parallel()
	line := regexp.MustCompile(`(?m)^docker run --name .*$`).FindString(read(t, "README.md"))
	if line == "" {
		t.Fatal("README.md has no such line with a name")
	}
	mark := fmt.Sprintf("e2e-readme-%d", time.Now().UnixNano())
	dir := t.TempDir()
	var written []byte
	for range 2 { // and what is there is not overwritten
		makeEnv := exec.Command("sh", "-c", regexp.MustCompile(`(?m)^\[ -e \.env \] .*$`).FindString(read(t, "README.md")))
		makeEnv.Dir = dir
		if output, err := makeEnv.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		before := written
		var err error
		written, err = os.ReadFile(dir + "/.env")
		if err != nil || before != nil && !bytes.Equal(before, written) {
			t.Fatalf("README.md's line overwrites .env: %q, then %q, %v", before, written, err)
		}
	}
	token := regexp.MustCompile(`^VM_TOKEN=([0-9a-f]{64})\nANTHROPIC_API_KEY=…\n$`).FindSubmatch(written)
	if info, _ := os.Stat(dir + "/.env"); token == nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("README.md makes a .env %s: %q, %q", info.Mode(), written, token)
	}
	var volumes []string
	run := func(leaveOut string) *vm {
		m := &model{}
		v := &vm{t: t, model: m, workspace: "/workspace", container: mark, token: string(token[1]), log: &buffer{}, done: make(chan struct{})}
		server := newModelServer(t, m)
		args := strings.Fields(strings.Replace(line, leaveOut, "", 1))[1:]
		for i, arg := range args {
			switch {
			case i > 0 && args[i-1] == "--name":
				args[i] = mark
			case i > 0 && args[i-1] == "-v":
				args[i] = mark + "-" + arg
				name, _, _ := strings.Cut(args[i], ":")
				volumes = append(volumes, name)
			case i > 0 && args[i-1] == "-p":
				args[i-1], args[i] = "--network=host", "--env=VM_ADDR=127.0.0.1:0"
			case i == len(args)-1:
				args[i] = image
			}
		}
		for _, entry := range append(agentEnv(server), "VM_WARM=false") {
			args = slices.Insert(args, len(args)-1, "--env="+entry)
		}
		v.cmd = exec.Command(engine, args...)
		v.cmd.Dir = dir
		v.launch()
		v.listens()
		return v
	}
	t.Cleanup(func() {
		exec.Command(engine, "rm", "--force", mark).Run()
		for _, name := range volumes {
			exec.Command(engine, "volume", "rm", "--force", name).Run()
		}
	})
	stopAndAsk := func(v *vm) (answer, error) {
		type result struct {
			a   answer
			err error
		}
		done := make(chan result, 1)
		go func() {
			a, _, err := v.post(context.Background(), "bash: : > begun; sleep 25; echo to the end", "")
			done <- result{a, err}
		}()
		v.eventually("the command runs", func() bool {
			_, err := v.inside("test", "-e", "/workspace/begun")
			return err == nil
		})
		if output, err := exec.Command(engine, "stop", mark).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
		<-v.done
		r := <-done
		return r.a, r.err
	}
	remove := func() {
		if output, err := exec.Command(engine, "rm", mark).CombinedOutput(); err != nil {
			t.Fatalf("the container is not there any more: %v: %s", err, output)
		}
	}

	v := run("")
	first := v.ask("success", "said before the stop")
	if a, err := stopAndAsk(v); err != nil || a.Status != "success" || a.Result != "to the end" {
		t.Errorf("the stop cut the answer off: %+v %v", a, err)
	}
	remove()
	v = run("")
	if a := v.askIn("success", "recall", first.SessionID); a.Result != "said before the stop" {
		t.Errorf("the conversation is lost: %+v", a)
	}
	v.bash("success", "rm begun")
	exec.Command(engine, "stop", mark).Run()
	<-v.done
	remove()

	// The control: by the engine's own 10 s.
	if a, err := stopAndAsk(run("--stop-timeout 45 ")); err == nil && a.Status == "success" {
		t.Errorf("the engine waits long enough by itself, so the test proves nothing: %+v", a)
	}
}

// Where the kernel and the engine let anybody make a user namespace, the agent has
// every capability in its own; they reach nothing of the container's.
func TestImageTheCapabilitiesOfAUserNamespaceReachNothing(t *testing.T) {
	needImage(t)
	dir := newDir(t)
	for name, script := range map[string]string{"attack": attacks + "; " + changes, "control": "grep CapEff /proc/self/status; mount -t tmpfs none /mnt && echo mounted"} {
		if err := os.WriteFile(filepath.Join(dir, "workspace", name), []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v := startIn(t, dir, "--read-only=false")
	if got := v.bash("success", "unshare -Urm true && echo made"); !strings.Contains(got, "made") {
		t.Skipf("no user namespace can be made here: %s", got)
	}
	v.want(v.bash("success", "unshare -Urm bash ./control"), `CapEff:\s0*[1-9a-f]+`, "mounted") // they are real
	v.want(v.bash("success", "unshare -Urm bash ./attack"),
		"environ: no", "memory: no", "descriptors: no", "signal: no", "exists: no", "binary: no", "entrypoint: no", "config: no", "replace: no", "cli: no", "workspace: yes",
		"instructions: no", "managed: no", "drop-in: no", "later: no", "mode: no", "rename: no")
	v.want(v.bash("success", `grep CapEff /proc/self/status; grep -c ' /mnt ' /proc/self/mounts`), `CapEff:\s0{16}`, "0")
}
