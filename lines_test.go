package main

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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

func TestALineOf1GiBIsSkippedAndCounted(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	if got := s.ask("floods"); got.Status != "success" || got.Result != "floods" {
		t.Errorf("answer: %+v %+v", got, got.Error)
	}
	eventually(t, "the log counts it", func() bool { return strings.Contains(s.stderr.String(), "lines_skipped=1 ") })
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("{\"type\":\"result\"}\n"), 3)
	f.Add([]byte("\x00\n"+strings.Repeat("x", 200)), 100)
	f.Add([]byte(`{"type":"assistant","message":{"content":[{"type":"text","text":"hi"}]}}`), 1)
	f.Add([]byte(`{"type":"result","is_error":"of another type","result":7}`), 10)
	f.Add([]byte(`{"type":"system","subtype":"init","mcp_servers":[{"name":"a","status":"b"}]}`), 64)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		a, result := &agent{}, &transcript{}
		a.ctx, a.stop = context.WithCancelCause(context.Background())
		var kept []byte
		out := &splitter{line: func(line []byte) {
			kept = append(append(kept, line...), '\n')
			if m := parseLine(line); m != nil {
				result.note(m, a)
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
