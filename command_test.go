package main

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=5s")
	playwright := []mcpServer{{"playwright", "connected"}}
	crashed := func(message string) *problem { return &problem{"agent_crashed", message} }
	tests := []struct {
		name, command string
		want          answer
	}{
		{"a plain answer", "hello", answer{Status: "success", Result: "hello", NumTurns: 2, CostUSD: 0.25}},
		{"the last of two results counts", "answers-twice", answer{Status: "success", Result: "second", NumTurns: 2, CostUSD: 0.25}},
		{"a turn after the result may be silent for longer than the exit grace", "takes-another-turn", answer{Status: "success", Result: "second", NumTurns: 2, CostUSD: 0.25}},
		{"a result stands although the CLI exits with 1", "answers-and-fails", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result stands although the CLI dies", "answers-and-dies", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result and then silence", "answers-and-stays", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"a result and then a closed stdout", "answers-and-closes-stdout", answer{Status: "success", Result: "answered", NumTurns: 2, CostUSD: 0.25}},
		{"garbage is skipped", "writes-garbage", answer{Status: "success", Result: "writes-garbage", NumTurns: 2, CostUSD: 0.25}},
		{"is_error decides, not subtype", "reports-an-error", answer{Status: "failed", Error: &problem{"agent_error", "API Error: 529 overloaded"}}},
		{"an unknown session", "unknown-session", answer{Status: "failed", Error: &problem{"session_not_found", "No conversation found with session ID: x; leave session_id out to begin a new conversation"}}},
		{"the third refusal of the key ends the command", "key-refused", answer{Status: "failed", Error: errKeyRefused.(*problem)}},
		{"no credentials at all", "not-logged-in", answer{Status: "failed", Result: "Not logged in", Error: errKeyRefused.(*problem)}},
		{"an exit without a result", "exits", answer{Status: "failed", Error: crashed("Claude Code ended without a result: exit status 3; the end of its stderr: the reason")}},
		{"a signal without a result", "dies", answer{Status: "failed", Result: "last words", Error: crashed("Claude Code ended without a result: signal: killed; the end of its stderr: ")}},
		{"the end of a long stderr", "fills-stderr", answer{Status: "failed", Error: crashed("Claude Code ended without a result: exit status 1; the end of its stderr: " + strings.Repeat("e", maxStderr-7) + "the end")}},
		{"an empty stream", "says-nothing", answer{Status: "failed", SessionID: "-", MCPServers: []mcpServer{}, Error: crashed("Claude Code ended without a result: exit status 0; the end of its stderr: ")}},
		{"a CLI that reports when it is interrupted", "tells-when-interrupted", answer{Status: "timeout", Result: "half of it", NumTurns: 7, CostUSD: 0.5, Error: errTimeout.(*problem)}},
		{"a CLI that doesn't care", "ignores-signals", answer{Status: "timeout", Result: "still here", Error: errTimeout.(*problem)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := s.ask(test.command + " " + newMarker())
			if got.DurationMS < 0 || got.DurationMS > 20000 {
				t.Errorf("duration_ms is %d", got.DurationMS)
			}
			got.DurationMS = 0
			switch test.want.SessionID {
			case "":
				test.want.SessionID, test.want.MCPServers = testSession, playwright
			case "-":
				test.want.SessionID = ""
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAClientThatGoesAwayCancelsItsCommand(t *testing.T) {
	t.Parallel()
	for _, header := range [][]string{nil, {"Accept", "text/event-stream"}} {
		s := startServer(t)
		marker := newMarker()
		ctx, cancel := context.WithCancel(context.Background())
		outcomes := make(chan outcome, 1)
		s.background(ctx, "waits "+marker, outcomes, header...)
		eventually(t, "the command runs", func() bool { return len(marked(t, marker)) > 0 })
		cancel()
		eventually(t, "its processes are gone", func() bool { return len(marked(t, marker)) == 0 })
		eventually(t, "the log says so", func() bool { return strings.Contains(s.stderr.String(), "status=canceled code=client_gone") })
		if got := s.ask("hello"); got.Status != "success" {
			t.Errorf("the next command: %+v", got)
		}
	}
}
