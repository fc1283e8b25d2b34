package main

import (
	"bytes"
	"strings"
	"testing"

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

func TestALineOf1GiBIsSkippedAndCounted(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5m")
	if got := s.ask("floods"); got.Status != "success" || got.Result != "floods" {
		t.Errorf("answer: %+v %+v", got, got.Error)
	}
	s.logged("lines_skipped=1 ")
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
