package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// main.go names each file, first those of the core, in reading order, and how long the
// core is.
func TestMainNamesTheCoreAndEveryOtherFile(t *testing.T) {
	t.Parallel()
	source := readFile(t, "main.go")
	comment, _, _ := strings.Cut(source, "\npackage main")
	coreText, _, found := strings.Cut(comment, "A mistake in any other file")
	if !found {
		t.Fatal("main.go does not end the list of the core")
	}
	goFile := regexp.MustCompile(`\b[a-z_]+\.go\b`)
	stated := regexp.MustCompile(`about ([0-9,]+) lines`).FindStringSubmatch(strings.ReplaceAll(coreText, "\n// ", " "))
	if stated == nil {
		t.Fatal("main.go does not state the lines of the core")
	}
	limit, _ := strconv.Atoi(strings.ReplaceAll(stated[1], ",", ""))
	core, lines := "", 0
	for _, name := range goFile.FindAllString(coreText, -1) {
		text := readFile(t, name)
		core += text
		lines += strings.Count(text, "\n")
	}
	if lines > limit+limit/20 || lines < limit-limit/20 {
		t.Errorf("the core has %d lines, main.go states %d", lines, limit)
	}

	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	for _, name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			want[name] = 1
		}
	}
	got := map[string]int{}
	for _, name := range goFile.FindAllString(comment, -1) {
		got[name]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("how often main.go names each file (-want +got):\n%s", diff)
	}

	// The promises about who may ask, one true answer, and nothing left behind.
	security := readFile(t, "SECURITY.md")
	for _, promise := range []string{
		"no command without the token", "no web page can send a command", "one command at a time",
		"a key is no way around", "a command with a key runs at most once", "a client that does not read delays nobody",
		"no process outlives its command", "if one can't be killed",
	} {
		row := regexp.MustCompile(`(?m)^\| ` + promise + `[^|]*\|([^|]*)\|`).FindStringSubmatch(security)
		if row == nil {
			t.Errorf("SECURITY.md has no promise %q", promise)
			continue
		}
		for _, keeper := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			name := keeper[1][strings.LastIndex(keeper[1], ".")+1:]
			isDefined := regexp.MustCompile(`(?m)^(type ` + name + ` |func (\([^)]*\) )?` + name + `\()`).MatchString(core)
			if !isDefined && name != "hardenProcess" { // a system call, which main.go makes
				t.Errorf("%q is kept by %s, which no file of the core defines", promise, keeper[1])
			}
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
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

func TestHelpAndVersionArePrintedAndArgumentsAreRefused(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{
		"-h": "VM_SHUTDOWN_GRACE (default 30s)", "--help": "VM_TOKEN", "-version": "vm-server dev\n",
	} {
		var out bytes.Buffer
		err := run(context.Background(), []string{flag}, &out, io.Discard)
		if err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s printed %q, %v", flag, out.String(), err)
		}
	}
	err := run(context.Background(), []string{"serve"}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "cannot use arguments") {
		t.Errorf("an argument: %v", err)
	}
}
