package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is accepted, and what becomes of it, is tested with a whole server: test/.

func TestARejectionSaysWhatToDoInstead(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h := newServer(&config{Token: "correct", MaxBody: 100}, log, log).handler
	type rejection struct {
		Status        int
		Code, Message string
		Header        string // that belongs to the status
	}
	tests := []struct {
		name, line, contentType, token, body string
		want                                 rejection
	}{
		{"another path", "GET /", "", "", "",
			rejection{404, "not_found", "try POST /command", ""}},
		{"another method", "GET /command", "", "", "",
			rejection{405, "method_not_allowed", "use POST, DELETE", "Allow: POST, DELETE"}},
		{"another method for health", "POST /healthz", "", "", "",
			rejection{405, "method_not_allowed", "use GET, HEAD", "Allow: GET, HEAD"}},
		{"no token", "POST /command", "application/json", "", "{}",
			rejection{401, "unauthorized", "the token is missing: send", "Www-Authenticate: Bearer"}},
		{"a wrong token", "POST /command", "application/json", "wrong", "{}",
			rejection{401, "unauthorized", "the token is wrong: send", "Www-Authenticate: Bearer"}},
		{"no token, before anything else is judged", "POST /command", "", "", "{",
			rejection{401, "unauthorized", "Authorization: Bearer", "Www-Authenticate: Bearer"}},
		{"no type", "POST /command", "", "correct", "{}",
			rejection{415, "unsupported_media_type", "send Content-Type: application/json", ""}},
		{"no command", "POST /command", "application/json", "correct", "{}",
			rejection{400, "invalid_request", "command is missing", ""}},
		{"a large body", "POST /command", "application/json", "correct", strings.Repeat("x", 101),
			rejection{413, "body_too_large", "100 bytes", ""}},
		{"a stop without a key", "DELETE /command", "", "correct", "",
			rejection{400, "invalid_request", "send the Idempotency-Key", ""}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			method, path, _ := strings.Cut(test.line, " ")
			r := httptest.NewRequest(method, path, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			if test.token != "" {
				r.Header.Set("Authorization", "Bearer "+test.token)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)

			var body struct {
				Status string
				Error  apiError
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Status != "rejected" {
				t.Errorf("the body is %q, %v", w.Body, err)
			}
			got := rejection{Status: w.Code, Code: string(body.Error.Code), Message: test.want.Message}
			if !strings.Contains(body.Error.Message, test.want.Message) {
				got.Message = body.Error.Message
			}
			for _, name := range []string{"Allow", "Www-Authenticate"} {
				if value := w.Header().Get(name); value != "" {
					got.Header = name + ": " + value
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("rejection (-want +got):\n%s", diff)
			}
		})
	}
}
