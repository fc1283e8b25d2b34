package main

import (
	"net/http"
	"strconv"
	"time"
)

// What the model's API refuses for now, and until when: by what the CLI prints and
// the API answers, never by their words.

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

// limited is what a command is told that met a limit: words are the CLI's.
func limited(code, what, words string, until time.Time) *problem {
	why := fail(code, "%s: %s; send the command again later, "+
		"with its session_id to go on", what, words)
	if !until.IsZero() {
		why.RetryAt = until.UTC().Format(time.RFC3339)
	}
	return why
}
