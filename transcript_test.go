package main

import (
	"strings"
	"testing"
)

func TestAnAnswerIsWrittenForPrograms(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, line, want string }{
		{"a cost is no sum of floats", `{"type":"result","total_cost_usd":0.0012000000000000001}`,
			`"cost_usd":0.0012,`},
		{"markup stays as it is", `{"type":"result","result":"<b>&</b>"}`, `"result":"<b>&</b>"`},
		{"an error without a word gets one", `{"type":"result","is_error":true}`,
			`"message":"Claude Code reports an error without a word"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := string(encode(judgeLines([][]byte{[]byte(test.line)})))
			if !strings.Contains(got, test.want) {
				t.Errorf("%s is not in %s", test.want, got)
			}
		})
	}
}

// A line may name millions of something. What is kept of it is bounded.
func TestALineOfAMillionThingsIsDecodedInPart(t *testing.T) {
	t.Parallel()
	for _, form := range []string{
		`{"type":"system","subtype":"init","mcp_servers":[MANY]}`,
		`{"type":"assistant","message":{"content":[MANY]}}`,
		`{"type":"result","errors":[MANY]}`,
	} {
		line := strings.Replace(form, "MANY", strings.Repeat("{},", 1_000_000)+"{}", 1)
		m := parseLine([]byte(line))
		got := len(m.MCPServers) + len(m.Message.Content) + len(m.Errors)
		if got != enough {
			t.Errorf("%d of a million are kept of %s", got, form)
		}
	}
}
