package main

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLinesAreSplitAndAnOverlongOneIsToldAsNothing(t *testing.T) {
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
				for _, line := range splitLines([]byte(test.in), chunk) {
					got = append(got, string(line))
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// What is split comes to an answer, whatever it is.
func FuzzSplitter(f *testing.F) {
	f.Add([]byte("{\"type\":\"result\"}\n"), 3)
	f.Add([]byte("\x00\n"+strings.Repeat("x", 200)), 100)
	f.Add([]byte(`{"type":"assistant","message":{"content":[{"type":"text","text":"hi"}]}}`), 1)
	f.Add([]byte(`{"type":"result","is_error":"of another type","result":7}`), 10)
	f.Add([]byte(`{"type":"system","subtype":"init","mcp_servers":[{"name":"a","status":"b"}]}`), 64)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		lines := splitLines(append(bytes.Clone(data), '\n'), max(1, chunk))
		var want [][]byte
		for line := range bytes.SplitSeq(data, []byte("\n")) {
			if len(line) > 0 {
				want = append(want, line)
			}
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
		if got := judgeLines(lines); got.Status != "success" && got.Error == nil {
			t.Errorf("status %q without an error", got.Status)
		}
	})
}

// os/exec takes an environment that is nil for its own process's, with the token.
// Not in parallel: it empties the environment for a moment.
func TestAnAgentWithoutAnyVariableGetsNoneOfTheServers(t *testing.T) {
	environ := os.Environ()
	os.Clearenv()
	defer func() {
		for _, entry := range environ {
			name, value, _ := strings.Cut(entry, "=")
			os.Setenv(name, value)
		}
	}()
	os.Setenv("VM_TOKEN", "secret")

	got := agentEnvironment(&config{Timeout: time.Minute}, "", "placeholder")
	want := []string{"BASH_DEFAULT_TIMEOUT_MS=54000", "BASH_MAX_TIMEOUT_MS=54000"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the agent's environment (-want +got):\n%s", diff)
	}
}

// splitLines reads data in chunks and returns its lines.
func splitLines(data []byte, chunk int) (lines [][]byte) {
	in, out := io.Pipe()
	go func() {
		for part := range slices.Chunk(data, chunk) {
			out.Write(part)
		}
		out.Close()
	}()
	readLines(in, func(line []byte) { lines = append(lines, line) })
	return lines
}
