package main

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// answer is the response of an accepted command. Whatever the agent prints, it is bounded.
type answer struct {
	Status     string                 `json:"status"`
	Result     string                 `json:"result"`
	Truncated  bool                   `json:"truncated,omitempty"` // the result was longer
	SessionID  string                 `json:"session_id,omitempty"`
	RequestID  string                 `json:"request_id"` // as in the log
	DurationMS int64                  `json:"duration_ms"`
	NumTurns   int                    `json:"num_turns"`
	CostUSD    float64                `json:"cost_usd"` // of the conversation so far (measured)
	MCPServers boundedList[mcpServer] `json:"mcp_servers"`
	Killed     int                    `json:"swept"` // processes that the command left
	Background bool                   `json:"background_stopped,omitempty"`
	Warnings   []string               `json:"warnings,omitempty"`
	Files      []fileInfo             `json:"files,omitempty"` // new or changed in outbox
	Error      *apiError              `json:"error,omitempty"`
}

const (
	maxResult     = 1 << 20 // bytes
	maxMessage    = 10_000  // characters of an error's message
	maxText       = 1_000   // characters of any other text
	maxMCPServers = 100
	maxWarnings   = 20
)

type mcpServer struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// encode returns the answer as JSON. One that cannot be encoded becomes a failure that can,
// so that there is always an answer.
func (a answer) encode() []byte {
	data, err := encode(a)
	if err == nil {
		return data
	}

	reason := errorf(codeAgentCrashed, "cannot encode the answer: %v; "+sendAgain, err)
	data, _ = encode(answer{
		Status:     reason.status(),
		SessionID:  a.SessionID,
		RequestID:  a.RequestID,
		DurationMS: a.DurationMS,
		MCPServers: boundedList[mcpServer]{},
		Killed:     a.Killed,
		Error:      reason,
	})
	return data
}

// turnState is how far the CLI has come.
type turnState int

const (
	noResult  turnState = iota
	hasResult           // and nothing after it
	newTurn             // after a result, such as when a background task has ended (measured)
)

// outcome is what is known of a command while it runs, and in the end its answer. The
// result in it is that of all turns that ended well.
type outcome struct {
	answer
	conversation string          // as the last init names it
	state        turnState       //
	isGood       bool            // a turn ended well
	spoken       string          // the agent's last text
	last         *streamMessage  // the last turn's result
	apiError     string          // of the agent's last message, as the CLI calls it
	limit        rateLimit       // the plan's, as it was printed last
	tasks        backgroundTasks //
	skippedLines int             // lines that were not messages
	hasKey       bool            // the command has an Idempotency-Key

	stopped error     // why the agent was stopped, nil if it ended by itself
	exit    string    // how the CLI ended, "" if it did not
	stderr  string    // the end of it
	warm    bool      // the CLI had been waiting
	retryAt time.Time // when the API wants to be asked again, zero if it did not say
	remedy  string    // for credentials that the API rejects
	outage  *apiError // why the API cannot be reached, nil if it can
	left    error     // which processes could not be killed, nil if none is left
}

// apply takes in one message. isStopping says that the agent was told to stop before.
//
// What comes then is no result but text: a SIGINT releases a result that was held back for
// a subagent, and that looks like a good one (measured).
func (o *outcome) apply(m *streamMessage, isStopping bool) {
	if uuid.MatchString(m.SessionID) {
		o.SessionID = m.SessionID
	}
	if isStopping && o.state == hasResult {
		return
	}

	o.tasks.apply(m)
	switch {
	case m.Type == "result":
		o.applyResult(m, isStopping)
	case m.Type == "rate_limit_event":
		o.limit = m.Limit
	case m.isInit():
		o.beginTurn()
		o.conversation = m.SessionID
		o.MCPServers = m.MCPServers
		if m.PermissionMode != "" && m.PermissionMode != "bypassPermissions" {
			o.warn("the project's own settings restrict what Claude Code may do: "+
				"its permission mode is %q", m.PermissionMode)
		}
	case m.Type == "assistant" && m.Parent == "":
		o.beginTurn()
		o.apiError = m.Error
		o.spoken = cmp.Or(m.text(), o.spoken)
	}
}

// applyResult takes in a turn's result. A blank one stands for what the agent said before,
// beside a call of a tool for example (measured).
func (o *outcome) applyResult(m *streamMessage, isStopping bool) {
	o.NumTurns = m.NumTurns
	o.CostUSD = roundCost(m.CostUSD)
	if isStopping {
		o.spoken = cmp.Or(m.Result, o.spoken)
		return
	}

	o.last = m
	o.state = hasResult
	for _, denial := range m.Denials {
		o.warn("the project's own settings did not allow a call of the tool %q", denial.Tool)
	}
	if m.IsError {
		return
	}

	o.isGood = true
	text := m.Result
	if strings.TrimSpace(text) == "" {
		text = o.spoken
	}
	isNew := !strings.Contains(o.Result, text)
	switch {
	case o.Result == "":
		o.Result = text
	case isNew && len(o.Result) < maxResult:
		o.Result += "\n\n" + text
	}
}

// warn adds what a caller should be told beside the answer, once.
func (o *outcome) warn(format string, args ...any) {
	text := truncate(fmt.Sprintf(format, args...), maxText)
	if len(o.Warnings) < maxWarnings && !slices.Contains(o.Warnings, text) {
		o.Warnings = append(o.Warnings, text)
	}
}

func (o *outcome) beginTurn() {
	if o.state == hasResult {
		o.state = newTurn
	}
}

// roundCost removes what adding floats leaves. A number that is too large for that stays as
// it is, since JSON has no infinity.
func roundCost(cost float64) float64 {
	rounded := math.Round(cost*1e9) / 1e9
	if math.IsInf(rounded, 0) {
		return cost
	}
	return rounded
}

// finish completes the answer once no more can come. The first row that fits counts:
//
//	processes are left                      failed: agent_crashed, with the result there was
//	a turn ended well before any stop       success; what went wrong after it is a warning
//	stopped, before any result, or in a
//	turn after one that was an error        the reason of the stop
//	no result                               failed: agent_crashed
//	an exit status in a turn after it       failed: agent_crashed
//	the API cannot be reached               failed: api_unreachable
//	no credentials                          failed: no_credentials
//	the credentials were rejected           failed: authentication_failed
//	a plan's limit, no balance              failed: usage_limit
//	another 429, or 529                     failed: overloaded
//	an unknown session                      failed: session_not_found
//	a conversation that the API rejects     failed: conversation_unusable
//	another error                           failed: agent_error
//
// is_error tells whether a result is good: subtype can be success in an error, and the exit
// status 0 after one (measured).
func (o *outcome) finish() {
	o.boundServers()
	o.Background = o.stopped == errIdleAfterResult
	wasStopped := o.stopped != nil && !o.Background
	if !o.isGood {
		o.Result = o.spoken
	}

	switch {
	case o.left != nil:
		o.fail(errorf(codeAgentCrashed, "%v; the server restarts", o.left))
	case o.isGood:
		o.Status = "success"
		o.warnOfLaterTurns(wasStopped)
	case wasStopped && o.state != hasResult:
		o.fail(asAPIError(o.stopped))
	case o.state == noResult:
		o.fail(errorf(codeAgentCrashed,
			"Claude Code ended without a result: %s; the end of its stderr: %s", o.exit, o.stderr))
	case o.hasCrashed():
		o.fail(errorf(codeAgentCrashed, "Claude Code ended in a turn that followed its result: "+
			"%s; the end of its stderr: %s", o.exit, o.stderr))
	default:
		o.fail(o.classify())
	}

	if len(o.Result) > maxResult {
		o.Result = strings.ToValidUTF8(o.Result[:maxResult], "") // without half a character
		o.Truncated = true
	}
}

func (o *outcome) hasCrashed() bool { return o.state == newTurn && o.exit != "exit status 0" }

// warnOfLaterTurns warns of what went wrong after a good result.
func (o *outcome) warnOfLaterTurns(wasStopped bool) {
	switch {
	case o.Background, wasStopped && o.tasks.areRunning():
		o.warn("background work was still running and was stopped")
	case wasStopped && o.state == newTurn:
		o.warn("a turn after this result was stopped: %v", o.stopped)
	case o.hasCrashed():
		o.warn("Claude Code ended in a turn after this result: %s", o.exit)
	case o.last.IsError:
		o.warn("a turn after this result failed: %s", o.classify().Message)
	}
}

func (o *outcome) boundServers() {
	servers := boundedList[mcpServer]{} // JSON: [], not null
	for _, s := range o.MCPServers[:min(len(o.MCPServers), maxMCPServers)] {
		server := mcpServer{truncate(s.Name, maxText), truncate(s.Status, maxText)}
		servers = append(servers, server)
		if server.Status == "failed" {
			o.warn("the MCP server %q failed to start", server.Name)
		}
	}
	o.MCPServers = servers
}

// truncate returns the beginning of a text, so many characters at most.
func truncate(text string, characters int) string {
	return fmt.Sprintf("%.*s", characters, text)
}

// fail sets the error. To send a command again, one that has an Idempotency-Key needs a new
// one, since the old one stands for this failure.
func (o *outcome) fail(reason *apiError) {
	message := reason.Message
	if reason.Code == codeAuthenticationFailed {
		message += "; " + o.remedy
	}
	if o.hasKey {
		message = strings.Replace(message, sendAgain, sendAgain+" with a new Idempotency-Key", 1)
	}
	o.Status = reason.status()
	o.Error = &apiError{
		Code:    reason.Code,
		Message: truncate(message, maxMessage),
		RetryAt: reason.RetryAt,
	}
}

// logReason returns the error's message where it is the server's own: what the agent printed
// may quote the prompt.
func (o *outcome) logReason() string {
	if o.Error == nil || o.last != nil || o.Error.Code == codeAgentCrashed {
		return ""
	}
	return o.Error.Message
}

// classify returns what a result with is_error means.
func (o *outcome) classify() *apiError {
	isAuthFailure := o.apiError == "authentication_failed"
	hasMetLimit := o.apiError == "rate_limit" && o.limit.isReached()
	status := o.last.APIStatus
	text := o.last.errorText()

	switch {
	case o.outage != nil:
		return o.outage
	case isAuthFailure && status == 0: // the API was not asked (measured)
		return errNoCredentials
	case isAuthFailure:
		return errKeyRefused
	case hasMetLimit, o.apiError == "billing_error":
		retryAt := o.limit.resetTime()
		if retryAt.IsZero() {
			retryAt = o.retryAt
		}
		return limitError(codeUsageLimit, "the account's limit is reached", text, retryAt)
	case isOverloaded(status):
		return limitError(codeOverloaded, "the model's API is overloaded", text, o.retryAt)
	case o.last.isSessionNotFound():
		return errorf(codeSessionNotFound,
			"%s; leave session_id out to begin a new conversation", o.last.Errors[0])
	case o.last.isConversationUnusable():
		return errorf(codeConversationUnusable, "the model's API rejects this conversation: "+
			"%s; leave session_id out to begin a new conversation", text)
	default:
		return errorf(codeAgentError, "%s", text)
	}
}

func limitError(code errorCode, what, text string, retryAt time.Time) *apiError {
	e := errorf(code, "%s: %s; "+sendAgain+" later, with its session_id to go on",
		what, text)
	if !retryAt.IsZero() {
		e.RetryAt = retryAt.UTC().Format(time.RFC3339)
	}
	return e
}

// isOverloaded reports whether an API's status means: not now.
func isOverloaded(status int) bool {
	const overloaded = 529 // Anthropic's own
	return status == http.StatusTooManyRequests || status == overloaded
}

// retryAfter reads that header, which has seconds or a date (RFC 9110, 10.2.3). It returns
// zero for neither.
func retryAfter(header http.Header) time.Time {
	const maxSeconds = 366 * 24 * 60 * 60
	value := header.Get("Retry-After")
	seconds, err := strconv.Atoi(value)
	if err == nil && seconds >= 0 && seconds <= maxSeconds {
		return time.Now().Add(time.Duration(seconds) * time.Second)
	}

	date, err := http.ParseTime(value)
	if err != nil {
		return time.Time{}
	}
	return date
}

// backgroundTasks are those that the CLI runs in the background although the agent did not
// ask for that: commands that took too long, for whose end it then begins a turn (measured).
// What the agent put there itself, such as a dev server, may never end.
type backgroundTasks struct {
	requested map[string]bool // calls that ask for the background
	running   map[string]bool // tasks of the others
}

const maxTasks = 1000 // of each kind are tracked, since the agent could print any number

func (t *backgroundTasks) apply(m *streamMessage) {
	if t.running == nil {
		t.requested, t.running = map[string]bool{}, map[string]bool{}
	}
	for _, block := range m.Message.Content {
		if block.Input.IsBackground && len(t.requested) < maxTasks {
			t.requested[block.ID] = true
		}
	}

	switch m.Subtype {
	case "task_started":
		if !t.requested[m.ToolUseID] && len(t.running) < maxTasks {
			t.running[m.TaskID] = true
		}
	case "task_notification":
		delete(t.running, m.TaskID)
	}
}

func (t *backgroundTasks) areRunning() bool { return len(t.running) > 0 }
