package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A limit is told by what the CLI prints and the API answers. Retrying is the CLI's.
func TestALimitIsToldWithItsEnd(t *testing.T) {
	t.Parallel()
	key := []string{"CLAUDE_CODE_MAX_RETRIES=1"} // or it would try for three minutes
	plan := append(slices.Clone(key), "ANTHROPIC_API_KEY=", "CLAUDE_CODE_OAUTH_TOKEN=dummy-token")
	reset := time.Now().Add(time.Hour).Truncate(time.Second)
	unified := fmt.Sprintf("anthropic-ratelimit-unified-status=rejected anthropic-ratelimit-unified-reset=%d "+
		"anthropic-ratelimit-unified-representative-claim=five_hour", reset.Unix())
	tests := []struct {
		name, refusal string
		env           []string
		code          string
		until         time.Time // a quarter of an hour more or less
	}{
		{"a plan's limit", "429 rate_limit_error " + unified + " - limited", plan, "usage_limit", reset},
		{"an exhausted balance", "400 invalid_request_error - Your credit balance is too low to access the Anthropic API.", key, "usage_limit", time.Time{}},
		{"a plan whose API has too much to do", "429 rate_limit_error retry-after=3600 - later", plan, "overloaded", reset},
		{"429", "429 rate_limit_error - later", key, "overloaded", time.Time{}},
		{"529", "529 overloaded_error - later", key, "overloaded", time.Time{}},
		{"529 with Retry-After", "529 overloaded_error retry-after=1 - later", key, "overloaded", time.Now()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			v := start(t, test.env...)
			a := v.ask("failed", "refuse: "+test.refusal)
			if a.Error.Code != test.code || a.Error.Message == "" || a.SessionID == "" {
				t.Errorf("%+v", a)
			}
			if test.until.IsZero() {
				if a.Error.RetryAt != "" {
					t.Errorf("retry_at is %s", a.Error.RetryAt)
				}
				return
			}
			until, err := time.Parse(time.RFC3339, a.Error.RetryAt)
			if err != nil || until.Sub(test.until).Abs() > 15*time.Minute {
				t.Errorf("retry_at is %q, want %v", a.Error.RetryAt, test.until)
			}
		})
	}
}
