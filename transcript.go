package main

import (
	"cmp"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// What the CLI prints, line by line, and what it comes to: the answer. Nothing
// here reads, waits or stops anything.

// answer is how an accepted command ended.
type answer struct {
	Status     string         `json:"status"`
	Result     string         `json:"result"`
	SessionID  string         `json:"session_id,omitempty"`
	DurationMS int64          `json:"duration_ms"`
	NumTurns   int            `json:"num_turns"`
	CostUSD    float64        `json:"cost_usd"` // of the conversation so far (measured)
	MCPServers few[mcpServer] `json:"mcp_servers"`
	Swept      int            `json:"swept"` // processes that had to be killed
	Background bool           `json:"background_stopped,omitempty"`
	Error      *problem       `json:"error,omitempty"`
}

type mcpServer struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// message is what matters of one line of the CLI's output.
type message struct {
	Type       string         `json:"type"`
	Subtype    string         `json:"subtype"`
	Error      string         `json:"error"`
	Result     string         `json:"result"`
	Errors     few[string]    `json:"errors"`
	Attempt    int            `json:"attempt"` // of api_retry
	Message    content        `json:"message"`
	Parent     string         `json:"parent_tool_use_id"` // a subagent's messages have one
	SessionID  string         `json:"session_id"`
	Version    string         `json:"claude_code_version"`
	MCPServers few[mcpServer] `json:"mcp_servers"`
	IsError    bool           `json:"is_error"`
	APIStatus  int            `json:"api_error_status"`
	NumTurns   int            `json:"num_turns"`
	CostUSD    float64        `json:"total_cost_usd"`
	Limit      rateLimit      `json:"rate_limit_info"`
}

type content struct {
	Content few[block] `json:"content"`
}

type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// parseLine returns nil for what is no message. A field of an unexpected type
// counts as absent.
func parseLine(line []byte) *message {
	m := &message{}
	err := json.Unmarshal(line, m)
	if err != nil && !isWrongType(err) {
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

// isHook says whether this comes of the user's own SessionStart hook, which a CLI
// runs before it has a prompt (measured).
func (m *message) isHook() bool {
	return m.Type == "system" && strings.HasPrefix(m.Subtype, "hook_")
}

// isInit says whether a turn begins with this.
func (m *message) isInit() bool { return m.Subtype == "init" }

// refusesKey says whether the API will not take the server's key: a third try was
// refused, after which no other succeeds.
func (m *message) refusesKey() bool {
	return m.Error == "authentication_failed" && m.Attempt >= 3
}

// transcript is what is kept of a command's course: the last of everything.
type transcript struct {
	answer                 // as far as it is known
	conversation string    // as the last init named it
	verdict      *message  // the last result
	complete     bool      // the verdict stands: no other turn has begun since
	refusal      string    // why the API refused the agent's last words, as the CLI calls it
	limit        rateLimit // the plan's, as it was told last
	begun        bool      // the CLI said something that no hook says
	skipped      int       // lines that were no message

	stopped error     // why the agent was stopped, nil if it ended by itself
	exit    string    // how the CLI ended, "" if there was none
	stderr  string    // the end of it
	unread  bool      // the CLI never had the whole prompt
	warm    bool      // the CLI had been waiting
	retryAt time.Time // when the API wants to be asked again, zero if it said nothing
	unswept error     // why processes could not be cleared away, nil if they were
}

// note takes in one message. stopping says that the agent was told to stop
// before this message came.
//
// A background task that ends after a result begins another turn with an init of
// its own (measured), so the last result counts. What comes while stopping is no
// verdict but text: a SIGINT lets a result go that was held back for a subagent,
// and that is a good one (measured).
func (t *transcript) note(m *message, stopping bool) {
	t.SessionID = cmp.Or(m.SessionID, t.SessionID)
	t.begun = t.begun || !m.isHook()
	if stopping && t.complete {
		return
	}

	switch {
	case m.Type == "result":
		t.NumTurns = m.NumTurns
		t.CostUSD = rounded(m.CostUSD)
		if stopping {
			t.Result = cmp.Or(m.Result, t.Result)
			return
		}
		t.verdict = m
		t.complete = true
	case m.Type == "rate_limit_event":
		t.limit = m.Limit
	case m.isInit():
		t.complete = false
		t.conversation = m.SessionID
		t.MCPServers = m.MCPServers
	case m.Type == "assistant" && m.Parent == "":
		t.complete = false
		t.refusal = m.Error
		t.Result = cmp.Or(m.text(), t.Result)
	}
}

// judge completes the answer, once nothing more can come.
//
//	stopped for     the last result before that     the answer
//	a reason        none, or a turn begun since     the reason's
//	                one that stands                 as if it had not been stopped
//	its silence     one that stands                 as if it had not been stopped
//	nothing         none                            failed: agent_crashed
//	                a turn begun since, and the
//	                CLI did not exit with 0         failed: agent_crashed
//	                a good one                      success
//	                no credentials                  failed: no_credentials
//	                a refusal of them               failed: authentication_failed
//	                a plan's limit, no balance      failed: usage_limit
//	                another 429, or 529             failed: overloaded
//	                an unknown session              failed: session_not_found
//	                another error                   failed: agent_error
//
// Where processes are left the answer is failed: agent_crashed, with the result that
// there was.
//
// is_error says whether a result is good: subtype can be success in an error,
// and the exit status 0 after one (measured).
func (t *transcript) judge() {
	t.MCPServers = append([]mcpServer{}, t.MCPServers...) // JSON: [], not null

	t.Background = t.stopped == errSilent
	hasReason := t.stopped != nil && t.stopped != errSilent
	diedSince := !t.complete && t.exit != "exit status 0"
	isGood := t.verdict != nil && !t.verdict.IsError
	if isGood && (t.complete || !hasReason && !diedSince) {
		t.Result = t.verdict.Result
	}

	switch {
	case t.unswept != nil:
		t.fail(fail("agent_crashed", "%v; restart the container", t.unswept))
	case hasReason && !t.complete:
		t.fail(refusal(t.stopped))
	case t.verdict == nil:
		t.fail(fail("agent_crashed",
			"Claude Code ended without a result: %s; the end of its stderr: %s", t.exit, t.stderr))
	case diedSince:
		t.fail(fail("agent_crashed", "Claude Code ended in a turn that followed its result: "+
			"%s; the end of its stderr: %s", t.exit, t.stderr))
	case isGood:
		t.Status = "success"
	default:
		t.fail(t.failure())
	}
}

// rounded takes away what adding floats leaves. A number that is too large for that stays
// as it is, since JSON has no infinity.
func rounded(cost float64) float64 {
	result := math.Round(cost*1e9) / 1e9
	if math.IsInf(result, 0) {
		return cost
	}
	return result
}

// encode is the answer as JSON. One that can't be encoded becomes a failure that can, so
// that there always is an answer.
func (a answer) encode() []byte {
	data, err := encode(a)
	if err == nil {
		return data
	}

	why := fail("agent_crashed", "cannot encode the answer: %v; send the command again", err)
	data, _ = encode(answer{
		Status:     why.status(),
		SessionID:  a.SessionID,
		DurationMS: a.DurationMS,
		MCPServers: few[mcpServer]{},
		Swept:      a.Swept,
		Error:      why,
	})
	return data
}

func (t *transcript) fail(why *problem) {
	t.Error = why
	t.Status = why.status()
}
