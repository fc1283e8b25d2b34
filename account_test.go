package main

import (
	"strings"
	"testing"
)

func TestARootServerWithoutVMUSERWarns(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to be that server")
	for env, warns := range map[string]bool{"IS_SANDBOX=": true, "IS_SANDBOX=1": false} {
		s := startServer(t, env)
		if got := strings.Contains(s.stderr.String(), "level=WARN"); got != warns {
			t.Errorf("%s: a warning: %v, want %v:\n%s", env, got, warns, s.stderr)
		}
	}
}
