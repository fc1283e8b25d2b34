package main

import (
	"errors"
	"fmt"
	"net/http"
)

// Every way in which the server says no stands here: the codes that programs
// hold on to, what HTTP or an answer makes of each, and why an agent is stopped.

// problem is an error for a program (Code) and for a person (Message, with the
// remedy). It never holds a prompt or a secret.
type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	RetryAt string `json:"retry_at,omitempty"` // RFC 3339, where it is known when to try again
}

func (p *problem) Error() string { return p.Message }

func fail(code, format string, args ...any) *problem {
	return &problem{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Why an agent is stopped. No caller is told of errSilent, which ends a CLI that has
// answered and stays, nor of errUnneeded, which ends a spare.
var (
	errTimeout = fail("timeout", "the command took longer than VM_TIMEOUT and was stopped; "+
		"send its session_id to go on")
	errShutdown = fail("shutting_down", "the server is stopping; "+
		"send the command again later, with the session_id if there is one")
	errStopped = fail("stopped", "the command was stopped, as it was asked for; "+
		"send its session_id to go on")
	errClientGone = fail("client_gone", "the client went away")
	errKeyRefused = fail("authentication_failed",
		"the model's API refuses the server's credentials; "+
			"check ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN)")
	errNoCredentials = fail("no_credentials", "the server has no credentials for the model's API; "+
		"set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN), or log in as the agent's user")
	errSilent   = fail("agent_crashed", "Claude Code answered and did not end")
	errUnneeded = fail("agent_crashed", "the waiting Claude Code is not needed")
)

// refusal is what a request that was not accepted is told. An error without a
// code is the request's own fault.
func refusal(err error) *problem {
	var why *problem
	if errors.As(err, &why) {
		return why
	}
	return &problem{Code: "invalid_request", Message: err.Error()}
}

// httpStatus is the status code of a refusal.
func (p *problem) httpStatus() int {
	switch p.Code {
	case "unauthorized":
		return http.StatusUnauthorized
	case "forbidden_origin":
		return http.StatusForbidden
	case "not_found":
		return http.StatusNotFound
	case "method_not_allowed":
		return http.StatusMethodNotAllowed
	case "body_too_large":
		return http.StatusRequestEntityTooLarge
	case "unsupported_media_type":
		return http.StatusUnsupportedMediaType
	case "key_reused":
		return http.StatusUnprocessableEntity
	case "queue_full":
		return http.StatusTooManyRequests
	case "shutting_down":
		return http.StatusServiceUnavailable
	default:
		return http.StatusBadRequest
	}
}

// status is the status of the answer of an accepted command.
func (p *problem) status() string {
	switch p.Code {
	case "timeout":
		return "timeout"
	case "shutting_down", "stopped", "client_gone":
		return "canceled"
	default:
		return "failed"
	}
}
