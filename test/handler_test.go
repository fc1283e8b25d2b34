package test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A door is a request, and what the server answers to it.
type door struct {
	name         string
	server       *testServer
	method, path string // POST /command, if they are empty
	body         string
	header       []string
	status       int
	code         string // none: the request is accepted
	message      string // a part of it
	answerHeader string // and its value
	answerValue  string
}

// and adds names and values to a header.
func and(header []string, more ...string) []string { return slices.Concat(header, more) }

// knock sends the request and compares the answer.
func (d door) knock(t *testing.T) {
	t.Helper()
	if d.method == "" {
		d.method, d.path = "POST", "/command"
	}
	response, body, err := d.server.send(context.Background(), d.method, d.path, d.body, d.header...)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Status string
		Error  apiError
	}
	json.Unmarshal([]byte(body), &got)
	if diff := cmp.Diff(d.status, response.StatusCode); diff != "" {
		t.Errorf("status code (-want +got):\n%s%s", diff, body)
	}
	if diff := cmp.Diff(d.code, string(got.Error.Code)); diff != "" {
		t.Errorf("error code (-want +got):\n%s", diff)
	}
	if d.code != "" && got.Status != "rejected" {
		t.Errorf("status is %q", got.Status)
	}
	if !strings.Contains(body, d.message) {
		t.Errorf("the message doesn't say %q: %s", d.message, body)
	}
	if d.answerHeader != "" {
		if diff := cmp.Diff(d.answerValue, response.Header.Get(d.answerHeader)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d.answerHeader, diff)
		}
	}
}

const hello = `{"command":"hello"}`

var asJSON = []string{"Content-Type", "application/json"}

func TestOnlyARequestThatPassesEveryDoorIsAccepted(t *testing.T) {
	t.Parallel()
	open := startServer(t)
	locked := startServer(t, "VM_TOKEN=correct", "VM_MAX_BODY=100")
	withToken := and(asJSON, "Authorization", "Bearer correct")
	tests := []door{
		{name: "a plain request is accepted", server: open, body: hello, header: asJSON,
			status: 200, answerHeader: "Content-Type", answerValue: "application/json"},
		{name: "a request with the token is accepted", server: locked, body: hello,
			header: withToken, status: 200, answerHeader: "Cache-Control", answerValue: "no-store"},
		{name: "the scheme may be in any case", server: locked, body: hello,
			header: and(asJSON, "Authorization", "bearer correct"), status: 200},
		{name: "a charset is accepted", server: open, body: hello,
			header: []string{"Content-Type", "application/json; charset=utf-8"}, status: 200},
		{name: "a session is accepted", server: open,
			body: `{"command":"hello","session_id":"` + testSession + `"}`, header: asJSON,
			status: 200},
		{name: "health needs no token", server: locked, method: "GET", path: "/healthz",
			status: 200, answerHeader: "Content-Type", answerValue: "application/json"},
		{name: "health answers HEAD", server: open, method: "HEAD", path: "/healthz", status: 200},
		{name: "health answers any Host", server: open, method: "GET", path: "/healthz",
			header: []string{"Host", "evil.example"}, status: 200},
		{name: "a loopback Host by name", server: open, body: hello,
			header: and(asJSON, "Host", "LOCALHOST:3001"), status: 200},
		{name: "a loopback Host of IPv6", server: open, body: hello,
			header: and(asJSON, "Host", "[::1]:3001"), status: 200},
		{name: "any Host with a token", server: locked, body: hello,
			header: and(withToken, "Host", "vm.example"), status: 200},

		{name: "another path", server: open, method: "GET", path: "/", status: 404,
			code: "not_found", message: "try POST /command"},
		{name: "a path below", server: open, method: "POST", path: "/command/", body: hello,
			header: asJSON, status: 404, code: "not_found"},
		{name: "GET of a command", server: open, method: "GET", path: "/command", status: 405,
			code: "method_not_allowed", message: "use POST",
			answerHeader: "Allow", answerValue: "POST, DELETE"},
		{name: "POST to health", server: open, method: "POST", path: "/healthz", status: 405,
			code: "method_not_allowed", message: "use GET",
			answerHeader: "Allow", answerValue: "GET, HEAD"},
		{name: "no token", server: locked, body: hello, header: asJSON, status: 401,
			code: "unauthorized", message: "VM_TOKEN",
			answerHeader: "WWW-Authenticate", answerValue: "Bearer"},
		{name: "a wrong token", server: locked, body: hello,
			header: and(asJSON, "Authorization", "Bearer wrong"), status: 401, code: "unauthorized",
			answerHeader: "WWW-Authenticate", answerValue: "Bearer"},
		{name: "the beginning of the token", server: locked, body: hello,
			header: and(asJSON, "Authorization", "Bearer correc"), status: 401,
			code: "unauthorized"},
		{name: "an empty token", server: locked, body: hello,
			header: and(asJSON, "Authorization", "Bearer "), status: 401, code: "unauthorized"},
		{name: "another scheme", server: locked, body: hello,
			header: and(asJSON, "Authorization", "Basic correct"), status: 401,
			code: "unauthorized"},
		{name: "a web page's request", server: open, body: hello,
			header: and(asJSON, "Sec-Fetch-Site", "cross-site"), status: 403,
			code: "forbidden_origin"},
		{name: "another origin", server: open, body: hello,
			header: and(asJSON, "Origin", "https://evil.example"), status: 403,
			code: "forbidden_origin"},
		{name: "a web page's request with the token", server: locked, body: hello,
			header: and(withToken, "Sec-Fetch-Site", "cross-site"), status: 403,
			code: "forbidden_origin"},
		{name: "a Host that DNS rebinding would send", server: open, body: hello,
			header: and(asJSON, "Host", "evil.example:3001"), status: 403, code: "forbidden_origin",
			message: "VM_TOKEN"},
		{name: "a Host that only begins like loopback", server: open, body: hello,
			header: and(asJSON, "Host", "127.0.0.1.evil.example"), status: 403,
			code: "forbidden_origin"},
		{name: "a form", server: open, body: "command=hello",
			header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415,
			code: "unsupported_media_type"},
		{name: "plain text, which a page may send", server: open, body: hello,
			header: []string{"Content-Type", "text/plain"}, status: 415,
			code: "unsupported_media_type"},
		{name: "no type", server: open, body: hello, status: 415, code: "unsupported_media_type"},
		{name: "a large body", server: locked,
			body: `{"command":"` + strings.Repeat("x", 100) + `"}`, header: withToken, status: 413,
			code: "body_too_large", message: "100 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, test.knock)
	}
	if strings.Contains(locked.stderr.String(), "correct") {
		t.Error("the log holds the token")
	}
}
