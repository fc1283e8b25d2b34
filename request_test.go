package main

import (
	"strings"
	"testing"
)

func FuzzDecodeCommand(f *testing.F) {
	for _, seed := range []string{`{"command":"hello"}`, `{"command":"a","session_id":"` + testSession + `"}`, `{"command":"\u0000"}`, `{}`, `{"command":"a"}{}`, `[`, "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := decodeCommand(body)
		if err != nil {
			return
		}
		if strings.TrimSpace(c.prompt) == "" || strings.Contains(c.prompt, "\x00") || c.session != "" && !uuid.MatchString(c.session) {
			t.Errorf("accepted %q as %+v", body, c)
		}
	})
}
