package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
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
	DurationMS int64                  `json:"duration_ms"`
	NumTurns   int                    `json:"num_turns"`
	CostUSD    float64                `json:"cost_usd"` // of the conversation so far (measured)
	MCPServers boundedList[mcpServer] `json:"mcp_servers"`
	Killed     int                    `json:"swept"` // processes that the command left
	Background bool                   `json:"background_stopped,omitempty"`
	Error      *apiError              `json:"error,omitempty"`
}

const (
	maxResult     = 1 << 20 // bytes
	maxMessage    = 10_000  // characters of an error's message
	maxText       = 1_000   // characters of any other text
	maxMCPServers = 100
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
		DurationMS: a.DurationMS,
		MCPServers: boundedList[mcpServer]{},
		Killed:     a.Killed,
		Error:      reason,
	})
	return data
}

// streamMessage is what matters of one line of the CLI's output.
type streamMessage struct {
	Type       string                 `json:"type"`
	Subtype    string                 `json:"subtype"`
	Error      string                 `json:"error"`
	Result     string                 `json:"result"`
	Errors     boundedList[string]    `json:"errors"`
	Attempt    int                    `json:"attempt"` // of api_retry
	Message    messageContent         `json:"message"`
	Parent     string                 `json:"parent_tool_use_id"` // of a subagent's messages
	SessionID  string                 `json:"session_id"`
	Version    string                 `json:"claude_code_version"`
	MCPServers boundedList[mcpServer] `json:"mcp_servers"`
	IsError    bool                   `json:"is_error"`
	APIStatus  int                    `json:"api_error_status"`
	NumTurns   int                    `json:"num_turns"`
	CostUSD    float64                `json:"total_cost_usd"`
	Limit      rateLimit              `json:"rate_limit_info"`
}

type messageContent struct {
	Content boundedList[block] `json:"content"`
}

type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// parseLine returns nil for a line that is not a message. A field of an unexpected type
// counts as absent.
func parseLine(line []byte) *streamMessage {
	m := &streamMessage{}
	err := json.Unmarshal(line, m)
	if err != nil && !isWrongType(err) || m.Type == "" {
		return nil
	}
	return m
}

func isWrongType(err error) bool {
	var wrong *json.UnmarshalTypeError
	return errors.As(err, &wrong)
}

// text returns what the message says, without its other parts.
func (m *streamMessage) text() string {
	var texts []string
	for _, part := range m.Message.Content {
		if part.Type == "text" {
			texts = append(texts, part.Text)
		}
	}

	return strings.Join(texts, "\n")
}

func (m *streamMessage) isInit() bool { return m.Subtype == "init" }

// isHook reports whether this is about the user's own SessionStart hook, which a CLI runs
// before it has a prompt (measured).
func (m *streamMessage) isHook() bool {
	return m.Type == "system" && strings.HasPrefix(m.Subtype, "hook_")
}

// isAuthFailure reports whether the API finally rejects the server's key: no try after the
// third one succeeds.
func (m *streamMessage) isAuthFailure() bool {
	return m.Error == "authentication_failed" && m.Attempt >= 3
}

// maxElements is how much is decoded of an array, far more than the CLI sends: a line of
// 16 MiB that lists millions of something would take ten times its size.
const maxElements = 1000

// boundedList is the beginning of a JSON array. What is not an array counts as absent, and
// an element of another type as an empty one.
type boundedList[T any] []T

func (l *boundedList[T]) UnmarshalJSON(data []byte) error {
	isArray := bytes.HasPrefix(data, []byte("["))
	if !isArray {
		return nil
	}

	*l = boundedList[T]{}
	in := json.NewDecoder(bytes.NewReader(data))
	in.Token() // the bracket
	for in.More() && len(*l) < maxElements {
		var element T
		err := in.Decode(&element)
		if err != nil && !isWrongType(err) {
			return err
		}
		*l = append(*l, element)
	}

	return nil
}

// turnState is how far the CLI has come.
type turnState int

const (
	noResult  turnState = iota
	hasResult           // and nothing after it
	newTurn             // after a result, such as when a background task has ended (measured)
)

// outcome is what is known of a command while it runs, and in the end its answer.
type outcome struct {
	answer
	conversation string         // as the last init names it
	state        turnState      //
	result       *streamMessage // the last one
	apiError     string         // of the agent's last message, as the CLI calls it
	limit        rateLimit      // the plan's, as it was printed last
	skippedLines int            // lines that were not messages
	hasKey       bool           // the command has an Idempotency-Key

	stopped error     // why the agent was stopped, nil if it ended by itself
	exit    string    // how the CLI ended, "" if it did not
	stderr  string    // the end of it
	warm    bool      // the CLI had been waiting
	retryAt time.Time // when the API wants to be asked again, zero if it did not say
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

	switch {
	case m.Type == "result":
		o.NumTurns = m.NumTurns
		o.CostUSD = roundCost(m.CostUSD)
		if isStopping {
			o.Result = cmp.Or(m.Result, o.Result)
			return
		}

		o.result = m
		o.state = hasResult
	case m.Type == "rate_limit_event":
		o.limit = m.Limit
	case m.isInit():
		o.beginTurn()
		o.conversation = m.SessionID
		o.MCPServers = m.MCPServers
	case m.Type == "assistant" && m.Parent == "":
		o.beginTurn()
		o.apiError = m.Error
		o.Result = cmp.Or(m.text(), o.Result)
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
//	stopped, except for its silence after
//	a result, and no result is the latest   the reason of the stop
//	no result                               failed: agent_crashed
//	an exit status in a turn after it       failed: agent_crashed
//	the result is no error                  success
//	no credentials                          failed: no_credentials
//	the credentials were rejected           failed: authentication_failed
//	a plan's limit, no balance              failed: usage_limit
//	another 429, or 529                     failed: overloaded
//	an unknown session                      failed: session_not_found
//	another error                           failed: agent_error
//
// is_error tells whether a result is good: subtype can be success in an error, and the exit
// status 0 after one (measured).
func (o *outcome) finish() {
	o.boundServers()
	o.Background = o.stopped == errIdleAfterResult

	wasStopped := o.stopped != nil && !o.Background
	crashed := o.state == newTurn && o.exit != "exit status 0"
	isGood := o.result != nil && !o.result.IsError
	if isGood && (o.state == hasResult || !wasStopped && !crashed) {
		o.Result = o.result.Result
	}

	switch {
	case o.left != nil:
		o.fail(errorf(codeAgentCrashed, "%v; the server restarts", o.left))
	case wasStopped && o.state != hasResult:
		o.fail(asAPIError(o.stopped))
	case o.state == noResult:
		o.fail(errorf(codeAgentCrashed,
			"Claude Code ended without a result: %s; the end of its stderr: %s", o.exit, o.stderr))
	case crashed:
		o.fail(errorf(codeAgentCrashed, "Claude Code ended in a turn that followed its result: "+
			"%s; the end of its stderr: %s", o.exit, o.stderr))
	case isGood:
		o.Status = "success"
	default:
		o.fail(o.classify())
	}

	if len(o.Result) > maxResult {
		o.Result = strings.ToValidUTF8(o.Result[:maxResult], "") // without half a character
		o.Truncated = true
	}
}

func (o *outcome) boundServers() {
	servers := boundedList[mcpServer]{} // JSON: [], not null
	for _, s := range o.MCPServers[:min(len(o.MCPServers), maxMCPServers)] {
		servers = append(servers, mcpServer{truncate(s.Name, maxText), truncate(s.Status, maxText)})
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

// classify returns what a result with is_error means.
func (o *outcome) classify() *apiError {
	isAuthFailure := o.apiError == "authentication_failed"
	hasMetLimit := o.apiError == "rate_limit" && o.limit.isReached()
	status := o.result.APIStatus
	text := o.result.errorText()

	switch {
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
	case o.result.isSessionNotFound():
		return errorf(codeSessionNotFound,
			"%s; leave session_id out to begin a new conversation", o.result.Errors[0])
	default:
		return errorf(codeAgentError, "%s", text)
	}
}

func (m *streamMessage) isSessionNotFound() bool {
	return len(m.Errors) > 0 && strings.HasPrefix(m.Errors[0], "No conversation found")
}

// errorText is how the CLI describes its error.
func (m *streamMessage) errorText() string {
	text := cmp.Or(m.Result, strings.Join(m.Errors, "; "), m.Subtype)
	return cmp.Or(text, "Claude Code reports an error without a description")
}

func limitError(code errorCode, what, text string, retryAt time.Time) *apiError {
	e := errorf(code, "%s: %s; "+sendAgain+" later, with its session_id to go on",
		what, text)
	if !retryAt.IsZero() {
		e.RetryAt = retryAt.UTC().Format(time.RFC3339)
	}
	return e
}

// rateLimit is what the CLI's rate_limit_event says of a plan.
type rateLimit struct {
	Status   string  `json:"status"`
	Kind     string  `json:"rateLimitType"`
	ResetsAt float64 `json:"resetsAt"` // seconds since 1970
}

// isReached reports whether it is the plan's limit that was met. The CLI prints the event
// without kind and time where the API is merely overloaded (measured).
func (l rateLimit) isReached() bool {
	return l.Status == "rejected" && (l.Kind != "" || l.ResetsAt > 0)
}

// resetTime returns when the limit ends, zero if that is not known. The agent could print
// any number, so it must be a date.
func (l rateLimit) resetTime() time.Time {
	const year9999 = 253402300799
	if l.ResetsAt <= 0 || l.ResetsAt > year9999 {
		return time.Time{}
	}
	return time.Unix(int64(l.ResetsAt), 0)
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
