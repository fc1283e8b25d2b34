package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	open := startServer(t)
	locked := startServer(t, "VM_TOKEN=correct", "VM_MAX_BODY=100")
	asJSON := []string{"Content-Type", "application/json"}
	withToken := append([]string{"Authorization", "Bearer correct"}, asJSON...)
	hello := `{"command":"hello"}`
	tests := []struct {
		name               string
		server             *testServer
		method, path, body string
		header             []string
		status             int
		code, message      string
		answerHeader       [2]string
	}{
		{"a plain request is accepted", open, "POST", "/command", hello, asJSON, 200, "", "", [2]string{"Content-Type", "application/json"}},
		{"a request with the token is accepted", locked, "POST", "/command", hello, withToken, 200, "", "", [2]string{"Cache-Control", "no-store"}},
		{"the scheme may be in any case", locked, "POST", "/command", hello, append([]string{"Authorization", "bearer correct"}, asJSON...), 200, "", "", [2]string{}},
		{"a charset is accepted", open, "POST", "/command", hello, []string{"Content-Type", "application/json; charset=utf-8"}, 200, "", "", [2]string{}},
		{"a session is accepted", open, "POST", "/command", `{"command":"hello","session_id":"` + testSession + `"}`, asJSON, 200, "", "", [2]string{}},
		{"health needs no token", locked, "GET", "/healthz", "", nil, 200, "", "", [2]string{"Content-Type", "application/json"}},
		{"health answers HEAD", open, "HEAD", "/healthz", "", nil, 200, "", "", [2]string{}},
		{"health answers any Host", open, "GET", "/healthz", "", []string{"Host", "evil.example"}, 200, "", "", [2]string{}},
		{"a loopback Host by name", open, "POST", "/command", hello, append([]string{"Host", "LOCALHOST:3001"}, asJSON...), 200, "", "", [2]string{}},
		{"a loopback Host of IPv6", open, "POST", "/command", hello, append([]string{"Host", "[::1]:3001"}, asJSON...), 200, "", "", [2]string{}},
		{"any Host with a token", locked, "POST", "/command", hello, append([]string{"Host", "vm.example"}, withToken...), 200, "", "", [2]string{}},

		{"another path", open, "GET", "/", "", nil, 404, "not_found", "POST /command", [2]string{}},
		{"a path below", open, "POST", "/command/", hello, asJSON, 404, "not_found", "", [2]string{}},
		{"GET of a command", open, "GET", "/command", "", nil, 405, "method_not_allowed", "use POST", [2]string{"Allow", "POST"}},
		{"POST to health", open, "POST", "/healthz", "", nil, 405, "method_not_allowed", "use GET", [2]string{"Allow", "GET, HEAD"}},
		{"no token", locked, "POST", "/command", hello, asJSON, 401, "unauthorized", "VM_TOKEN", [2]string{"WWW-Authenticate", "Bearer"}},
		{"a wrong token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer wrong"}, asJSON...), 401, "unauthorized", "", [2]string{"WWW-Authenticate", "Bearer"}},
		{"the beginning of the token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer correc"}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"an empty token", locked, "POST", "/command", hello, append([]string{"Authorization", "Bearer "}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"another scheme", locked, "POST", "/command", hello, append([]string{"Authorization", "Basic correct"}, asJSON...), 401, "unauthorized", "", [2]string{}},
		{"a web page's request", open, "POST", "/command", hello, append([]string{"Sec-Fetch-Site", "cross-site"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"another origin", open, "POST", "/command", hello, append([]string{"Origin", "https://evil.example"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"a web page's request with the token", locked, "POST", "/command", hello, append([]string{"Sec-Fetch-Site", "cross-site"}, withToken...), 403, "forbidden_origin", "", [2]string{}},
		{"a Host that DNS rebinding would send", open, "POST", "/command", hello, append([]string{"Host", "evil.example:3001"}, asJSON...), 403, "forbidden_origin", "VM_TOKEN", [2]string{}},
		{"a Host that only begins like loopback", open, "POST", "/command", hello, append([]string{"Host", "127.0.0.1.evil.example"}, asJSON...), 403, "forbidden_origin", "", [2]string{}},
		{"a form", open, "POST", "/command", "command=hello", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "unsupported_media_type", "", [2]string{}},
		{"plain text, which a page may send", open, "POST", "/command", hello, []string{"Content-Type", "text/plain"}, 415, "unsupported_media_type", "", [2]string{}},
		{"no type", open, "POST", "/command", hello, nil, 415, "unsupported_media_type", "", [2]string{}},
		{"a large body", locked, "POST", "/command", `{"command":"` + strings.Repeat("x", 100) + `"}`, withToken, 413, "body_too_large", "100 bytes", [2]string{}},
		{"an empty body", open, "POST", "/command", "", asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"half a body", open, "POST", "/command", `{"command":"hel`, asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"an array", open, "POST", "/command", `[]`, asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"null", open, "POST", "/command", `null`, asJSON, 400, "invalid_request", "missing", [2]string{}},
		{"no command", open, "POST", "/command", `{}`, asJSON, 400, "invalid_request", "command is missing", [2]string{}},
		{"a blank command", open, "POST", "/command", `{"command":" \n"}`, asJSON, 400, "invalid_request", "blank", [2]string{}},
		{"a command of another type", open, "POST", "/command", `{"command":7}`, asJSON, 400, "invalid_request", "command is not a string", [2]string{}},
		{"an unknown field", open, "POST", "/command", `{"command":"hello","comand":1}`, asJSON, 400, "invalid_request", `unknown field \"comand\"`, [2]string{}},
		{"a field in another case", open, "POST", "/command", `{"command":"hello","Session_ID":"x"}`, asJSON, 400, "invalid_request", `Session_ID`, [2]string{}},
		{"a second value", open, "POST", "/command", hello + hello, asJSON, 400, "invalid_request", "at byte 20", [2]string{}},
		{"a closing brace too many", open, "POST", "/command", hello + "}", asJSON, 400, "invalid_request", "not one JSON object", [2]string{}},
		{"invalid UTF-8", open, "POST", "/command", "{\"command\":\"\xff\"}", asJSON, 400, "invalid_request", "not UTF-8 at byte 12", [2]string{}},
		{"a NUL", open, "POST", "/command", `{"command":"a\u0000"}`, asJSON, 400, "invalid_request", "command holds a NUL at byte 1", [2]string{}},
		{"a session that is no UUID", open, "POST", "/command", `{"command":"hello","session_id":"--help"}`, asJSON, 400, "invalid_request", "session_id is not a UUID", [2]string{}},
		{"a session that is null", open, "POST", "/command", `{"command":"hello","session_id":null}`, asJSON, 400, "invalid_request", "leave it out", [2]string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response, body, err := test.server.send(context.Background(), test.method, test.path, test.body, test.header...)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Status string
				Error  problem
			}
			json.Unmarshal([]byte(body), &got)
			if diff := cmp.Diff(test.status, response.StatusCode); diff != "" {
				t.Errorf("status code (-want +got):\n%s%s", diff, body)
			}
			if diff := cmp.Diff(test.code, got.Error.Code); diff != "" {
				t.Errorf("error code (-want +got):\n%s", diff)
			}
			if test.code != "" && got.Status != "rejected" {
				t.Errorf("status is %q", got.Status)
			}
			if !strings.Contains(body, test.message) {
				t.Errorf("the message doesn't say %q: %s", test.message, body)
			}
			if name, want := test.answerHeader[0], test.answerHeader[1]; name != "" {
				if diff := cmp.Diff(want, response.Header.Get(name)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
	if strings.Contains(locked.stderr.String(), "correct") {
		t.Error("the log holds the token")
	}
}
