package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// These tests start vm-server as a process of its own, as a subreaper must be, and talk to
// it over HTTP. The agent is the hostile claude: this test binary by another name.

var builds = &builtServers{}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "descend" {
		descend(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "--version" { // the server tries it at its start
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "-p" {
		hostileClaude()
		return
	}
	status := m.Run()
	os.RemoveAll(builds.dir)
	os.Exit(status)
}

// edit replaces a text of a source file.
type edit struct{ file, text, replacement string }

// variants are servers that are not quite the program, for tests that name one by
// TEST_VARIANT.
var variants = map[string][]edit{
	"": nil,

	// The negative control of every test that nothing is left behind.
	"kill off": {
		{"reaper.go", beginKill, "\tif true {\n\t\treturn 0, false, nil\n\t}\n" + beginKill},
		{"warm.go", "\ts.reaper.kill(listOrphans)\n", ""},
	},

	// Killing begins when the folder that the server is started in has a file named sweep.
	"held kill": {{"reaper.go", beginKill,
		"\tfor _, err := os.Stat(\"sweep\"); err != nil; _, err = os.Stat(\"sweep\") {\n" +
			"\t\ttime.Sleep(5 * time.Millisecond)\n\t}\n" + beginKill}},

	// A connection too many is closed, and none makes room for it.
	"first come": {{"limits.go", "\t\t\tc.closeIdle()\n",
		"\t\t\tdelete(c.open, connection)\n\t\t\tconnection.Close()\n\t\t\t_ = c.closeIdle\n"}},

	// A client has ten seconds to take what is left, or each piece of it.
	"short write": {shortWrite},
	"short write for each piece": {shortWrite, {"response.go", "\t\t\t_, s.err = s.w.Write(part)\n",
		"\t\t\tfor len(part) > 0 && s.err == nil {\n\t\t\t\ts.setDeadline()\n" +
			"\t\t\t\tn := min(len(part), 1<<16)\n" +
			"\t\t\t\t_, s.err = s.w.Write(part[:n])\n\t\t\t\tpart = part[n:]\n\t\t\t}\n"}},

	// A connection is kept for whoever may send a request, also where there is no token.
	"keeps all": {{"handler.go", "case h.auth.token != \"\":", "default:"}},

	// A response that is broken off looks complete.
	"no abort": {{"handler.go", "panic(http.ErrAbortHandler)", "return nil"}},

	// Files are opened with the server's rights, or by their paths.
	"own rights": {{"files.go", "withRightsOf(s.agent, func", "withRightsOf(nil, func"}},
	"by path": {{"files.go", "file, err = workspace.OpenFile(outbox+\"/\"+name, os.O_RDONLY|syscall.O_NONBLOCK, 0)",
		"file, err = os.OpenFile(s.workspace+\"/\"+outbox+\"/\"+name, os.O_RDONLY|syscall.O_NONBLOCK, 0)"},
		{"files.go", "withRightsOf(s.agent, func", "withRightsOf(nil, func"}},

	// After a second a waiting CLI and a kept answer are old, and a silent CLI hangs.
	"short lives": {
		{"warm.go", "standbyTTL = 30 * time.Minute", "standbyTTL = time.Second"},
		{"operation.go", "= 30 * time.Minute", "= time.Second"},
		{"command.go", "outputTimeout = time.Minute", "outputTimeout = time.Second"},
	},
}

const beginKill = "\tr.mu.Lock()\n\tr.killed = 0\n" // of killAll

var shortWrite = edit{"response.go", "writeTimeout = 30 *", "writeTimeout = 10 *"}

func variantOf(env []string) string {
	for _, entry := range env {
		name, found := strings.CutPrefix(entry, "TEST_VARIANT=")
		if found {
			return name
		}
	}
	return ""
}

// builtServers are built when they are first asked for, in a folder that every user may
// read.
type builtServers struct {
	mu   sync.Mutex
	dir  string
	path map[string]string // by variant
}

// builtServer returns the path of a variant of the server. It has the race detector if the
// tests have it. Beside its variant's edits it has testdata/signals.go.
func builtServer(t testing.TB, variant string) (path string) {
	t.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()

	path, isBuilt := builds.path[variant]
	if isBuilt {
		return path
	}
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "vm-server-test")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		builds.dir, builds.path = dir, map[string]string{}
	}
	edits, isKnown := variants[variant]
	if !isKnown {
		t.Fatalf("there is no variant %q", variant)
	}

	name := "vm-server-" + strings.ReplaceAll(variant, " ", "-")
	path = filepath.Join(builds.dir, name)
	args := []string{"build", "-o", path, "-overlay", writeOverlay(t, name, edits)}
	if hasRaceDetector() {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, ".")...)
	build.Dir = projectRoot(t)
	output, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("cannot build the server %q: %v: %s", variant, err, output)
	}
	builds.path[variant] = path
	return path
}

// writeOverlay writes what go build -overlay reads, and returns its path. A text that is
// not in its file just once is an error, or a control could be of no use without a word.
func writeOverlay(t testing.TB, name string, edits []edit) (path string) {
	t.Helper()
	root := projectRoot(t)
	replaced := map[string]string{root + "/signals_linux.go": root + "/test/testdata/signals.go"}
	changed := map[string]string{}
	for _, e := range edits {
		if changed[e.file] == "" {
			data, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			changed[e.file] = string(data)
		}
		if count := strings.Count(changed[e.file], e.text); count != 1 {
			t.Fatalf("%s has %q %d times", e.file, e.text, count)
		}
		changed[e.file] = strings.Replace(changed[e.file], e.text, e.replacement, 1)
	}
	for file, text := range changed {
		path := filepath.Join(builds.dir, name+"-"+file)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		replaced[filepath.Join(root, file)] = path
	}

	data, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(builds.dir, name+".json")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// projectRoot is the folder of the source: a test runs in its package's own.
func projectRoot(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return path
}
