package main

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What an error of the CLI means: above all that the model's API refuses, for now or
// for good, which is judged by what the CLI prints for programs and by what the API
// answers.

// rateLimit is what the CLI's rate_limit_event says of a plan.
type rateLimit struct {
	Status   string  `json:"status"`
	Kind     string  `json:"rateLimitType"`
	ResetsAt float64 `json:"resetsAt"` // seconds since 1970
}

// isReached says whether it is the plan's limit that was met. The CLI prints the event
// without kind and time where the API merely has too much to do (measured).
func (l rateLimit) isReached() bool {
	return l.Status == "rejected" && (l.Kind != "" || l.ResetsAt > 0)
}

// end is when the limit ends, zero where that is not known. A hostile agent chooses
// it, so it must be a date.
func (l rateLimit) end() time.Time {
	const year9999 = 253402300799
	if l.ResetsAt <= 0 || l.ResetsAt > year9999 {
		return time.Time{}
	}
	return time.Unix(int64(l.ResetsAt), 0)
}

// isBusy says whether an API's status means: not now.
func isBusy(status int) bool {
	const overloaded = 529 // Anthropic's own
	return status == http.StatusTooManyRequests || status == overloaded
}

// retryAfter reads that header, which has seconds or a date (RFC 9110, 10.2.3). It is
// zero for neither.
func retryAfter(header http.Header) time.Time {
	const longest = 366 * 24 * 60 * 60
	value := header.Get("Retry-After")
	seconds, err := strconv.Atoi(value)
	if err == nil && seconds >= 0 && seconds <= longest {
		return time.Now().Add(time.Duration(seconds) * time.Second)
	}

	date, err := http.ParseTime(value)
	if err != nil {
		return time.Time{}
	}
	return date
}

// failure is what a result with is_error means.
func (t *transcript) failure() *problem {
	isUnauthorized := t.refusal == "authentication_failed"
	hasMetLimit := t.refusal == "rate_limit" && t.limit.isReached()
	asked := t.verdict.APIStatus
	words := t.verdict.words()

	switch {
	case isUnauthorized && asked == 0: // nothing was asked (measured)
		return errNoCredentials
	case isUnauthorized:
		return errKeyRefused
	case hasMetLimit, t.refusal == "billing_error":
		until := t.limit.end()
		if until.IsZero() {
			until = t.retryAt
		}
		return limited("usage_limit", "the account's limit is reached", words, until)
	case isBusy(asked):
		return limited("overloaded", "the model's API has too much to do", words, t.retryAt)
	case t.verdict.lacksSession():
		return fail("session_not_found",
			"%s; leave session_id out to begin a new conversation", t.verdict.Errors[0])
	default:
		return fail("agent_error", "%s", words)
	}
}

func (m *message) lacksSession() bool {
	return len(m.Errors) > 0 && strings.HasPrefix(m.Errors[0], "No conversation found")
}

// words are what the CLI says of its error.
func (m *message) words() string {
	words := cmp.Or(m.Result, strings.Join(m.Errors, "; "), m.Subtype)
	return cmp.Or(words, "Claude Code reports an error without a word")
}

// limited is what a command is told that met a limit: words are the CLI's.
func limited(code, what, words string, until time.Time) *problem {
	why := fail(code, "%s: %s; send the command again later, "+
		"with its session_id to go on", what, words)
	if !until.IsZero() {
		why.RetryAt = until.UTC().Format(time.RFC3339)
	}
	return why
}
