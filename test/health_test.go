package test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHealthTellsLittleOfTheVersionThatTheAgentClaims(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.ask("boasts")
	_, state := s.state()
	if diff := cmp.Diff(strings.Repeat("9", 40), state["cli_version"]); diff != "" {
		t.Errorf("cli_version (-want +got):\n%s", diff)
	}
}

// Where there is a token, it is also for what the server knows of itself.
func TestHealthTellsItsDetailsToWhoMaySendACommand(t *testing.T) {
	t.Parallel()
	open, locked := startServer(t), startServer(t, "VM_TOKEN=correct")
	tests := []struct {
		name   string
		server *testServer
		header []string
		all    bool
	}{
		{"a loopback Host while there is no token", open, nil, true},
		{"another Host while there is no token", open, []string{"Host", "evil.example"}, false},
		{"no token", locked, nil, false},
		{"a wrong token", locked, []string{"Authorization", "Bearer wrong"}, false},
		{"the token", locked, []string{"Authorization", "Bearer correct"}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx := context.Background()
			response, body, err := test.server.send(ctx, "GET", "/healthz", "", test.header...)
			if err != nil || response.StatusCode != 200 {
				t.Fatal(response, err)
			}
			var state map[string]any
			if err := json.Unmarshal([]byte(body), &state); err != nil {
				t.Fatal(err)
			}
			_, tells := state["version"]
			if tells != test.all || state["status"] != "ok" || !tells && len(state) != 1 {
				t.Errorf("it tells %v", state)
			}
		})
	}
}
