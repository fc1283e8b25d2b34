package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	noCredentialsMessage = "the server has no credentials for the model's API; " +
		"set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN), or log in as the agent's user"
	keyRefusedMessage = "the model's API rejects the server's credentials; " +
		"log in again as the agent's user (in the image: as-agent claude)"
	timeoutMessage = "the command took longer than VM_TIMEOUT and was stopped; " +
		"send its session_id to go on"
)

func TestHowTheCLIEndsIsTheAnswer(t *testing.T) {
	t.Parallel()
	patient := startServer(t, "VM_TIMEOUT=1m", "VM_EXIT_GRACE=20s") // a slow exit is no silence
	strict := startServer(t, "VM_TIMEOUT=1m")
	playwright := []mcpServer{{"playwright", "connected"}}
	success := func(result string) answer {
		return answer{Status: "success", Result: result, NumTurns: 2, CostUSD: 0.25}
	}
	failed := func(code string, message string) answer {
		return answer{Status: "failed", Error: &apiError{Code: code, Message: message}}
	}
	crashed := func(exit, stderr string) answer {
		return failed("agent_crashed",
			"Claude Code ended without a result: "+exit+"; the end of its stderr: "+stderr)
	}
	saying := func(text string, a answer) answer {
		a.Result = text
		return a
	}
	leaving := func(swept int, a answer) answer {
		a.Killed = swept
		return a
	}
	warned := func(a answer, warnings ...string) answer {
		a.Warnings = warnings
		return a
	}
	background := func(swept int, a answer) answer {
		a.Background = true
		return leaving(swept, warned(a, "background work was still running and was stopped"))
	}
	noCredentials := failed("no_credentials", noCredentialsMessage)
	keyRefused := failed("authentication_failed", keyRefusedMessage)
	timeout := answer{Status: "timeout", Error: &apiError{Code: "timeout", Message: timeoutMessage}}
	interrupted := saying("half of it", timeout)
	interrupted.NumTurns, interrupted.CostUSD = 7, 0.5
	late := saying("all of it", timeout)
	late.NumTurns, late.CostUSD = 2, 0.25
	limited := func(code string, message, until, words string) answer {
		a := failed(code, message+": "+words+
			"; send the command again later, with its session_id to go on")
		a.Error.RetryAt, a.Result = until, words
		return a
	}
	const spent, busy = "the account's limit is reached", "the model's API is overloaded"
	failedLater := answer{Status: "success", Result: "first",
		Warnings: []string{"a turn after this result failed: the model's API is overloaded: API Error: 529; " +
			"send the command again later, with its session_id to go on"}}
	restricted := answer{Status: "success", Result: "I may not",
		MCPServers: []mcpServer{{"playwright", "failed"}},
		Warnings: []string{
			"the project's own settings restrict what Claude Code may do: its permission mode is \"default\"",
			"the project's own settings did not allow a call of the tool \"Bash\"",
			"the project's own settings did not allow a call of the tool \"Write\"",
			"the MCP server \"playwright\" failed to start",
		}}
	silent := crashed("exit status 0", "")
	silent.SessionID, silent.MCPServers = "-", []mcpServer{}
	const unknown = "No conversation found with session ID: x; " +
		"leave session_id out to begin a new conversation"
	tests := []struct {
		name, command string
		want          answer
	}{
		{"a plain answer", "hello", success("hello")},
		{"the results of two turns are joined", "answers-twice", success("first\n\nsecond")},
		{"a turn that says nothing new is left out", "answers-the-same-twice", success("the same")},
		{"a turn after the result may be silent for longer than the exit grace",
			"takes-another-turn", success("first\n\nsecond")},
		{"a turn that fails after a good one is a warning", "answers-and-fails-in-its-next-turn", failedLater},
		{"a good turn after one that failed counts", "fails-and-answers-in-its-next-turn", success("second")},
		{"a blank result is what the agent said last", "answers-blank", success("spoken")},
		{"a command that the CLI moved to the background is waited for", "waits-for-a-command-that-took-too-long",
			success("it still runs\n\nit has passed")},
		{"one that the agent put there is not", "starts-a-server", background(0, success("started"))},
		{"what restricts the agent is a warning", "is-restricted", restricted},
		{"a conversation that the API rejects", "is-too-long", failed("conversation_unusable",
			"the model's API rejects this conversation: Prompt is too long; leave session_id out to begin a new conversation")},
		{"a result stands although the CLI exits with 1", "answers-and-fails", success("answered")},
		{"a result stands although the CLI dies", "answers-and-dies", success("answered")},
		{"a CLI that dies in a turn after its result", "answers-and-dies-in-its-next-turn",
			warned(success("first"), "Claude Code ended in a turn after this result: signal: killed")},
		{"a result and then silence", "answers-and-stays",
			background(1, success("answered"))},
		{"a result and then a closed stdout", "answers-and-closes-stdout",
			background(0, success("answered"))},
		{"garbage is skipped", "writes-garbage", success("writes-garbage")},
		{"is_error decides, not subtype", "reports-an-error",
			failed("agent_error", "API Error: 529 overloaded")},
		{"an unknown session", "unknown-session", failed("session_not_found", unknown)},
		{"the third refusal of the key ends the command", "key-refused", keyRefused},
		{"a key that the CLI gives up on", "gives-up-on-its-key",
			saying("Invalid API key", keyRefused)},
		{"no credentials at all", "not-logged-in", saying("Not logged in", noCredentials)},
		{"a plan's limit", "hits-a-limit 1795707601",
			limited("usage_limit", spent, "2026-11-26T15:40:01Z", "You've hit your limit")},
		{"a plan's limit until no date at all", "hits-a-limit 1e300",
			limited("usage_limit", spent, "", "You've hit your limit")},
		{"no balance", "has-no-balance",
			limited("usage_limit", spent, "", "Credit balance is too low")},
		{"an API that has too much to do", "is-overloaded 529",
			limited("overloaded", busy, "", "API Error")},
		{"an API that is asked too often", "is-overloaded 429",
			limited("overloaded", busy, "", "API Error")},
		{"another refusal of the API", "is-overloaded 500", saying("API Error",
			failed("agent_error", "API Error"))},
		{"an exit without a result", "exits", crashed("exit status 3", "the reason")},
		{"a signal without a result", "dies",
			saying("last words", crashed("signal: killed", ""))},
		{"the end of a long stderr", "fills-stderr",
			crashed("exit status 1", strings.Repeat("e", 8<<10-7)+"the end")},
		{"an empty stream", "says-nothing", silent},
		{"a CLI that reports when it is interrupted", "tells-when-interrupted", interrupted},
		{"a good result after the stop is text, no verdict", "answers-well-when-interrupted", late},
		{"a CLI that doesn't care", "ignores-signals",
			leaving(1, saying("still here", timeout))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := patient
			isTurn := test.command == "takes-another-turn"
			isTask := test.command == "waits-for-a-command-that-took-too-long"
			if test.want.Background || isTurn || isTask {
				s = strict
			}
			var got answer
			if test.want.Status == "timeout" {
				overtime(func(timeout string) bool {
					got = startServer(t, timeout).ask(test.command + " " + newMarker())
					return got.Result != ""
				})
			} else {
				got = s.ask(test.command + " " + newMarker())
			}
			if got.DurationMS < 0 || got.DurationMS > 120000 {
				t.Errorf("duration_ms is %d", got.DurationMS)
			}
			got.DurationMS = 0
			if isTurn {
				got.Background, got.Warnings = false, nil // its exit may be slow
			}
			switch test.want.SessionID {
			case "":
				test.want.SessionID = testSession
				if test.want.MCPServers == nil {
					test.want.MCPServers = playwright
				}
			case "-":
				test.want.SessionID = ""
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// It was answered 200 with an empty body, and so was each replay.
func TestANumberWithoutAnEndIsAnsweredAndReplayed(t *testing.T) {
	t.Parallel()
	const line = `prints {"type":"result","result":"dear","total_cost_usd":1e300}`
	s := startKeyed(t)
	for _, replayed := range []string{"", "true"} {
		response, body := s.askWithKey("a", line)
		if got := response.Header.Get("Idempotency-Replayed"); got != replayed {
			t.Errorf("Idempotency-Replayed is %q, want %q", got, replayed)
		}
		var got answer
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%v: %q", err, body)
		}
		if diff := cmp.Diff("success", inShort(got)); diff != "" || got.Result != "dear" {
			t.Errorf("answer (-want +got):\n%s%s", diff, body)
		}
	}
}

// Whatever the agent prints.
func TestAnAnswerIsBounded(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	long := s.ask(fmt.Sprint("answers-with ", 3<<20))
	if diff := cmp.Diff("success", inShort(long)); diff != "" || len(long.Result) != 1<<20 || !long.Truncated {
		t.Errorf("answer (-want +got):\n%s%d bytes, truncated: %v", diff, len(long.Result), long.Truncated)
	}
	whole := s.ask(fmt.Sprint("answers-with ", 1<<20))
	if len(whole.Result) != 1<<20 || whole.Truncated {
		t.Errorf("a result of just the limit has %d bytes, truncated: %v", len(whole.Result), whole.Truncated)
	}

	got := s.ask("boasts-of-everything")
	if diff := cmp.Diff(testSession, got.SessionID); diff != "" {
		t.Errorf("the last session_id that is a UUID (-want +got):\n%.300s", diff)
	}
	bounds := []int{len(got.Error.Message), len(got.MCPServers), len(got.MCPServers[0].Name), len(got.MCPServers[0].Status)}
	if diff := cmp.Diff([]int{10_000, 100, 1000, 1000}, bounds); diff != "" {
		t.Errorf("lengths of the message, the servers, a name and a status (-want +got):\n%s", diff)
	}
}

// Streams and answers are UTF-8, and what is not takes no more memory than what is.
func TestInvalidUTF8IsReplacedAndTakesNoMoreMemory(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	count, size := 6, 16<<20-2000
	if hasRaceDetector() { // with which this takes ten times as long
		count, size = 1, 2<<20
	}
	for accept, lines := range map[string]int{"application/json": count, "text/event-stream": 0} {
		command := fmt.Sprintf("writes-invalid-utf8 %d %d", lines, size)
		_, body, err := s.post(context.Background(), command, "Accept", accept)
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.ValidString(body) {
			t.Errorf("%s is not UTF-8", accept)
		}
		if !strings.Contains(body, `"status":"success"`) || !strings.Contains(body, "\ufffdx\ufffdx") {
			t.Errorf("%s: %.200q", accept, body)
		}
		if size := len(body); accept == "application/json" && size > 2<<20 {
			t.Errorf("the answer has %d bytes", size)
		}
	}
	if peak := kilobytes(s.cmd.Process.Pid, "VmHWM") >> 10; !hasRaceDetector() && peak > 400 {
		t.Errorf("the server took %d MB", peak)
	}
}

// A process that asks its parent to trace it stops at its next signal, and wait reports that
// stop (ptrace(2)): it is no end.
func TestAnAgentThatIsTracedHasNotEnded(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=3s")
	marker := newMarker()
	for command, want := range map[string]string{
		"is-traced-and-stops":             "failed agent_crashed",
		"answers-well-traced-and-stopped": "success",
	} {
		got := s.ask(command + " " + marker)
		if diff := cmp.Diff(want, inShort(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s%+v", command, diff, got.Error)
		}
		if got.Error != nil && !strings.Contains(got.Error.Message, "was killed") {
			t.Errorf("%s: %q", command, got.Error.Message)
		}
		nothingLeft(t, marker)
	}
	s.goesOn()
}
