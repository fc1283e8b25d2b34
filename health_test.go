package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Which anybody may ask.
func TestHealthTellsLittleOfTheVersionThatTheAgentClaims(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.ask("boasts")
	_, state := s.state()
	if diff := cmp.Diff(strings.Repeat("9", 40), state["cli_version"]); diff != "" {
		t.Errorf("cli_version (-want +got):\n%s", diff)
	}
}
