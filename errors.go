package main

import (
	"errors"
	"fmt"
	"net/http"
)

// errorCode is what programs distinguish errors by. Each is documented in docs/http.md.
type errorCode string

const (
	// Of requests that were rejected.
	codeInvalidRequest       errorCode = "invalid_request"
	codeUnauthorized         errorCode = "unauthorized"
	codeForbiddenOrigin      errorCode = "forbidden_origin"
	codeNotFound             errorCode = "not_found"
	codeMethodNotAllowed     errorCode = "method_not_allowed"
	codeAnswerForgotten      errorCode = "answer_forgotten"
	codeBodyTooLarge         errorCode = "body_too_large"
	codeUnsupportedMediaType errorCode = "unsupported_media_type"
	codeKeyReused            errorCode = "key_reused"
	codeQueueFull            errorCode = "queue_full"
	codeNoSpace              errorCode = "no_space"

	// Of commands that were accepted, and did not succeed.
	codeAgentError           errorCode = "agent_error"
	codeAgentCrashed         errorCode = "agent_crashed"
	codeAuthenticationFailed errorCode = "authentication_failed"
	codeNoCredentials        errorCode = "no_credentials"
	codeUsageLimit           errorCode = "usage_limit"
	codeOverloaded           errorCode = "overloaded"
	codeSessionNotFound      errorCode = "session_not_found"
	codeConversationUnusable errorCode = "conversation_unusable"
	codeAPIUnreachable       errorCode = "api_unreachable"
	codeTimeout              errorCode = "timeout"
	codeStopped              errorCode = "stopped"
	codeClientGone           errorCode = "client_gone"

	// Of both.
	codeShuttingDown errorCode = "shutting_down"
)

// httpStatus is the status code of each rejection.
var httpStatus = map[errorCode]int{
	codeInvalidRequest:       http.StatusBadRequest,
	codeUnauthorized:         http.StatusUnauthorized,
	codeForbiddenOrigin:      http.StatusForbidden,
	codeNotFound:             http.StatusNotFound,
	codeMethodNotAllowed:     http.StatusMethodNotAllowed,
	codeAnswerForgotten:      http.StatusGone,
	codeBodyTooLarge:         http.StatusRequestEntityTooLarge,
	codeUnsupportedMediaType: http.StatusUnsupportedMediaType,
	codeKeyReused:            http.StatusUnprocessableEntity,
	codeQueueFull:            http.StatusTooManyRequests,
	codeNoSpace:              http.StatusInsufficientStorage,
	codeShuttingDown:         http.StatusServiceUnavailable,
}

// apiError is an error for a program (Code) and for a person (Message, which names the
// remedy). It never contains a prompt or a secret.
type apiError struct {
	Code    errorCode `json:"code"`
	Message string    `json:"message"`
	RetryAt string    `json:"retry_at,omitempty"` // RFC 3339, if it is known
}

func (e *apiError) Error() string { return e.Message }

func errorf(code errorCode, format string, args ...any) *apiError {
	return &apiError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// asAPIError returns err itself if it has a code. One that has none is the request's own
// fault.
func asAPIError(err error) *apiError {
	var coded *apiError
	if errors.As(err, &coded) {
		return coded
	}
	return &apiError{Code: codeInvalidRequest, Message: err.Error()}
}

// status is the status of an answer with this error.
func (e *apiError) status() string {
	switch e.Code {
	case codeTimeout:
		return "timeout"
	case codeShuttingDown, codeStopped, codeClientGone:
		return "canceled"
	default:
		return "failed"
	}
}

// sendAgain is the remedy for what may not happen again.
const sendAgain = "send the command again"

var errNotFound = errorf(codeNotFound, "not found: try POST /command, DELETE /command, "+
	"PUT /files/inbox/NAME, GET /files/outbox or GET /healthz")

// Why an agent is stopped. No caller sees errIdleAfterResult, which ends a CLI that has
// answered and does not exit, or errNotNeeded, which ends a waiting CLI.
var (
	errTimeout = errorf(codeTimeout,
		"the command took longer than VM_TIMEOUT and was stopped; "+
			"send its session_id to go on")
	errShutdown = errorf(codeShuttingDown,
		"the server is stopping; "+
			sendAgain+" later, with the session_id if there is one")
	errStopped = errorf(codeStopped,
		"the command was stopped on request; send its session_id to go on")
	errClientGone = errorf(codeClientGone, "the client closed the connection")
	errKeyRefused = errorf(codeAuthenticationFailed,
		"the model's API rejects the server's credentials")
	errNoCredentials = errorf(codeNoCredentials,
		"the server has no credentials for the model's API; "+
			"set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN), or log in as the agent's user")
	errNoOutput = errorf(codeAgentCrashed,
		"Claude Code printed nothing for a minute and was stopped; "+sendAgain)
	errIdleAfterResult = errorf(codeAgentCrashed, "Claude Code answered and did not exit")
	errNotNeeded       = errorf(codeAgentCrashed, "the waiting Claude Code is not needed")
)
