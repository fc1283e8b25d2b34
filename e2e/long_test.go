package main

import (
	"strings"
	"testing"
)

// What does nothing but wait, for minutes: make long.

// takes150s is no sleep: the CLI refuses one of more than seconds (measured).
const takes150s = `node -e 'setTimeout(() => console.log("printed at the " + "end"), 150_000)'`

// By its own default the CLI moves a command of Bash to the background after two
// minutes, and ends its turn. The control has that default.
func TestLongACommandOfBashMayTakeNearlyAsLongAsTheWholeCommand(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		env  []string
		want bool
	}{
		{"cold", nil, true},
		{"by a waiting Claude Code", []string{"VM_WARM=true"}, true},
		{"the control, as an operator may set it", []string{"BASH_DEFAULT_TIMEOUT_MS=120000"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := start(t, test.env...)
			got, body, err := v.post(t.Context(), "bash: "+takes150s, "")
			if err != nil {
				t.Fatalf("%v: %s; the server's log:\n%s", err, body, v.log)
			}
			if isThere := strings.Contains(got.Result, "printed at the end"); isThere != test.want || got.Status != "success" {
				t.Errorf("what it printed is in the answer: %v, want %v: %+v", isThere, test.want, got)
			}
		})
	}
}
