package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"strings"
)

// What the CLI prints, line by line, and what it comes to: the answer. Nothing
// here reads, waits or stops anything.

// answer is how an accepted command ended.
type answer struct {
	Status     string      `json:"status"`
	Result     string      `json:"result"`
	SessionID  string      `json:"session_id,omitempty"`
	DurationMS int64       `json:"duration_ms"`
	NumTurns   int         `json:"num_turns"`
	CostUSD    float64     `json:"cost_usd"`
	MCPServers []mcpServer `json:"mcp_servers"`
	Error      *problem    `json:"error,omitempty"`
}

type mcpServer struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// message is what matters of one line of the CLI's output.
type message struct {
	Type       string      `json:"type"`
	Subtype    string      `json:"subtype"`
	Error      string      `json:"error"`
	Result     string      `json:"result"`
	Errors     []string    `json:"errors"`
	Attempt    int         `json:"attempt"` // of api_retry
	Message    content     `json:"message"`
	Parent     string      `json:"parent_tool_use_id"` // a subagent's messages have one
	SessionID  string      `json:"session_id"`
	Version    string      `json:"claude_code_version"`
	MCPServers []mcpServer `json:"mcp_servers"`
	IsError    bool        `json:"is_error"`
	NumTurns   int         `json:"num_turns"`
	CostUSD    float64     `json:"total_cost_usd"`
}

type content struct {
	Content []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	} `json:"content"`
}

// parseLine returns nil for what is no message. A field of an unexpected type
// counts as absent.
func parseLine(line []byte) *message {
	m := &message{}
	err := json.Unmarshal(line, m)

	var wrongType *json.UnmarshalTypeError
	if err != nil && !errors.As(err, &wrongType) {
		return nil
	}
	if m.Type == "" {
		return nil
	}
	return m
}

// text is what the message says, without its other parts.
func (m *message) text() string {
	var texts []string
	for _, part := range m.Message.Content {
		if part.Type == "text" {
			texts = append(texts, part.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// refusesKey says whether the API will not take the server's key: the CLI has
// given up, or a third try was refused, after which no other succeeds.
func (m *message) refusesKey() bool {
	if m.Error != "authentication_failed" {
		return false
	}
	return m.Type == "assistant" || m.Attempt >= 3
}

// transcript is what is kept of a command's course: the last of everything.
type transcript struct {
	answer                // as far as it is known
	conversation string   // as the last init named it
	verdict      *message // the last result
	complete     bool     // the verdict stands: no other turn has begun since
	skipped      int      // lines that were no message

	stopped error  // why the agent was stopped, nil if it ended by itself
	exit    string // how the CLI ended, "" if there was none
	stderr  string // the end of it
	unread  bool   // the CLI never had the whole prompt
	warm    bool   // the CLI had been waiting
	swept   int    // processes that had to be killed
}

// note takes in one message. stopping says that the agent was told to stop
// before this message came.
//
// A background task that ends after a result begins another turn with an init of
// its own (measured), so the last result counts. What comes while stopping is
// about the stop, unless it is a good result.
func (t *transcript) note(m *message, stopping bool) {
	t.SessionID = cmp.Or(m.SessionID, t.SessionID)
	if stopping && t.complete {
		return
	}

	switch {
	case m.Type == "result":
		t.verdict = m
		t.NumTurns = m.NumTurns
		t.CostUSD = m.CostUSD
		t.complete = !stopping || !m.IsError
	case m.Subtype == "init":
		t.complete = false
		t.conversation = m.SessionID
		t.MCPServers = m.MCPServers
	case m.Type == "assistant" && m.Parent == "":
		t.complete = false
		t.Result = cmp.Or(m.text(), t.Result)
	}
}

// judge completes the answer, once nothing more can come.
//
//	stopped for     the last result      the answer
//	a reason        none that stands     the reason's
//	                any that stands      as if it had not been stopped
//	its silence     any                  as if it had not been stopped
//	nothing         none                 failed: agent_crashed
//	                good                 success
//	                unknown session      failed: session_not_found
//	                another error        failed: agent_error
//
// is_error says whether a result is good: subtype can be success in an error,
// and the exit status 0 after one (measured).
func (t *transcript) judge() {
	t.MCPServers = append([]mcpServer{}, t.MCPServers...) // JSON: [], not null

	hasReason := t.stopped != nil && t.stopped != errSilent
	switch {
	case hasReason && !t.complete:
		t.fail(refusal(t.stopped))
	case t.verdict == nil:
		t.fail(fail("agent_crashed",
			"Claude Code ended without a result: %s; the end of its stderr: %s", t.exit, t.stderr))
	case t.verdict.IsError:
		t.fail(t.verdict.problem())
	default:
		t.Status = "success"
		t.Result = t.verdict.Result
	}
}

func (t *transcript) fail(why *problem) {
	t.Error = why
	t.Status = why.status()
}

// problem is what a result with is_error means.
func (m *message) problem() *problem {
	if len(m.Errors) > 0 && strings.HasPrefix(m.Errors[0], "No conversation found") {
		return fail("session_not_found",
			"%s; leave session_id out to begin a new conversation", m.Errors[0])
	}
	return fail("agent_error", "%s", cmp.Or(m.Result, strings.Join(m.Errors, "; "), m.Subtype))
}
