package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestABodyIsOneObjectWithACommandAndPerhapsASession(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	accepted := door{server: s, body: hello, header: asJSON, status: 200}
	t.Run("a plain body is accepted, which is the control", accepted.knock)
	tests := []struct{ name, body, message string }{
		{"an empty body", "", "not one JSON object"},
		{"half a body", `{"command":"hel`, "not one JSON object"},
		{"an array", `[]`, "not one JSON object but of type array"},
		{"a text", `"hello"`, "not one JSON object but of type string"},
		{"null", `null`, "missing"},
		{"no command", `{}`, "command is missing"},
		{"a blank command", `{"command":" \n"}`, "blank"},
		{"a command of another type", `{"command":7}`, "command is not a string"},
		{"an unknown field", `{"command":"hello","comand":1}`, `unknown field \"comand\"`},
		{"a field in another case", `{"command":"hello","Session_ID":"x"}`, `Session_ID`},
		{"a second value", hello + hello, "at byte 20"},
		{"a closing brace too many", hello + "}", "not one JSON object"},
		{"invalid UTF-8", "{\"command\":\"\xff\"}", "not UTF-8 at byte 12"},
		{"invalid UTF-8 behind a replacement character", "{\"\ufffd\":\"\xff\"}", "not UTF-8 at byte 8"},
		{"a NUL", `{"command":"a\u0000"}`, "command holds a NUL at byte 1"},
		{"a session that is no UUID", `{"command":"hello","session_id":"--help"}`,
			"session_id is not a UUID"},
		{"a session that is null", `{"command":"hello","session_id":null}`, "leave it out"},
	}
	for _, test := range tests {
		refused := door{server: s, body: test.body, header: asJSON,
			status: 400, code: "invalid_request", message: test.message}
		t.Run(test.name, refused.knock)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, seed := range []string{
		hello, `{"command":"a","session_id":"` + testSession + `"}`,
		`{"command":"\u0000"}`, `{}`, `{"command":"a"}{}`, `[`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	uuid := regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		prompt, session, err := decode(body)
		if err != nil {
			return
		}
		blank := strings.TrimSpace(prompt) == ""
		if blank || strings.Contains(prompt, "\x00") || session != "" && !uuid.MatchString(session) {
			t.Errorf("accepted %q as %q in %q", body, prompt, session)
		}
	})
}
