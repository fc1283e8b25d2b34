package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"strings"
	"time"
)

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

	PermissionMode string              `json:"permissionMode"`
	Denials        boundedList[denial] `json:"permission_denials"`
	TerminalReason string              `json:"terminal_reason"`
	TaskID         string              `json:"task_id"` // of background work
	ToolUseID      string              `json:"tool_use_id"`
}

type messageContent struct {
	Content boundedList[contentBlock] `json:"content"`
}

// contentBlock is a text, or a call of a tool.
type contentBlock struct {
	Type  string `json:"type"`
	Text  string `json:"text"`
	ID    string `json:"id"`
	Input struct {
		IsBackground bool `json:"run_in_background"`
	} `json:"input"`
}

// denial is a call that the permissions of the project's own settings did not allow.
type denial struct {
	Tool string `json:"tool_name"`
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

func (m *streamMessage) isSessionNotFound() bool {
	return len(m.Errors) > 0 && strings.HasPrefix(m.Errors[0], "No conversation found")
}

// errorText is how the CLI describes its error.
func (m *streamMessage) errorText() string {
	text := cmp.Or(m.Result, strings.Join(m.Errors, "; "), m.Subtype)
	return cmp.Or(text, "Claude Code reports an error without a description")
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

// isConversationUnusable reports whether the API rejects the conversation itself, such as
// one that is too long or has too many images: every later message would fail alike
// (measured).
func (m *streamMessage) isConversationUnusable() bool {
	return m.TerminalReason == "prompt_too_long" || m.TerminalReason == "image_error"
}
