package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const realKey = "sk-the-real-key"

// startProxy starts a key proxy in front of api, for a server without agents.
func startProxy(t *testing.T, api http.HandlerFunc) (
	k keyring, base string, upstream *httptest.Server) {
	t.Helper()
	upstream = httptest.NewServer(api)
	t.Cleanup(upstream.Close)
	address, err := url.Parse(upstream.URL + "/base")
	if err != nil {
		t.Fatal(err)
	}
	k, handler := newKeyring(realKey, address)
	proxy := httptest.NewServer(handler)
	t.Cleanup(proxy.Close)
	return k, proxy.URL, upstream
}

func askProxy(t *testing.T, url, key string, header ...string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequest("POST", url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Api-Key", key)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, fmt.Sprint(string(data), response.Header)
}

func TestTheKeyProxyAcceptsThePresentPlaceholderAlone(t *testing.T) {
	t.Parallel()
	var seen atomic.Pointer[http.Request]
	keys, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		io.WriteString(w, "answered")
	})
	const old, present = "placeholder-old", "placeholder-present"
	keys.issue(old, nil)
	keys.issue(present, nil)
	tests := []struct {
		name, path, key string
		status          int
	}{
		{"the placeholder", "/v1/messages?beta=true", present, 200},
		{"the placeholder of the agent before", "/v1/messages", old, 403},
		{"no placeholder", "/v1/messages", "", 403},
		{"the real key", "/v1/messages", realKey, 403},
		{"another path", "/admin", present, 404},
		{"a path that climbs out", "/v1/../admin", present, 404},
		{"a path that climbs out, encoded", "/v1/%2e%2e/admin", present, 404},
		{"a path that climbs out, half encoded", "/v1/..%2fadmin", present, 404},
		{"a whole URL, as for a forward proxy", "/http://evil.example/v1/", present, 404},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			seen.Store(nil)
			status, text := askProxy(t, base+test.path, test.key, "Authorization", "Bearer from-the-agent")
			if diff := cmp.Diff(test.status, status); diff != "" {
				t.Errorf("status (-want +got):\n%s%s", diff, text)
			}
			if strings.Contains(text, realKey) {
				t.Errorf("the answer holds the key: %s", text)
			}
			r := seen.Load()
			if (r != nil) != (test.status == 200) {
				t.Fatalf("the API was asked: %v", r != nil)
			}
			if r == nil {
				return
			}
			got := []string{r.URL.String(), r.Header.Get("X-Api-Key"), r.Header.Get("Authorization")}
			if diff := cmp.Diff([]string{"/base/v1/messages?beta=true", realKey, ""}, got); diff != "" {
				t.Errorf("what the API saw (-want +got):\n%s", diff)
			}
		})
	}
	keys.void()
	if status, _ := askProxy(t, base+"/v1/messages", present); status != 403 {
		t.Errorf("the placeholder still counts after its command: %d", status)
	}
}

func TestTheKeyProxyStreamsAndCancels(t *testing.T) {
	t.Parallel()
	canceled := make(chan struct{})
	keys, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: first\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(canceled)
	})
	const placeholder = "placeholder-present"
	keys.issue(placeholder, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, "POST", base+"/v1/messages", strings.NewReader("{}"))
	request.Header.Set("X-Api-Key", placeholder)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	first := make([]byte, len("event: first\n\n"))
	if _, err := io.ReadFull(response.Body, first); err != nil {
		t.Fatal(err) // while the API's answer has not ended
	}
	cancel()
	select {
	case <-canceled:
	case <-time.After(time.Minute):
		t.Error("the API was not told that the request is canceled")
	}
}

func TestTheKeyProxyTellsOfARefusedKeyAndAnAPIOutOfReach(t *testing.T) {
	t.Parallel()
	keys, base, upstream := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(401)
	})
	refused := false
	const placeholder = "placeholder-present"
	keys.issue(placeholder, func(why error) { refused = why == errKeyRefused })
	if status, _ := askProxy(t, base+"/v1/messages", placeholder); status != 401 || !refused {
		t.Errorf("status %d, refused %v", status, refused)
	}
	upstream.Close()
	status, text := askProxy(t, base+"/v1/messages", placeholder)
	if status != 502 || !strings.Contains(text, "cannot reach the model's API") ||
		strings.Contains(text, realKey) {
		t.Errorf("status %d, %s", status, text)
	}
}

// keyOf is the agent's ANTHROPIC_API_KEY, or "none".
func keyOf(env []string) string {
	for _, entry := range env {
		if value, found := strings.CutPrefix(entry, "ANTHROPIC_API_KEY="); found {
			return value
		}
	}
	return "none"
}

func TestTheAgentGetsAPlaceholder(t *testing.T) {
	t.Parallel()
	s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1",
		"NO_PROXY=corp")
	first, second := s.describe("").Env, s.describe("").Env
	for _, env := range [][]string{first, second} {
		text := strings.Join(env, "\n")
		if strings.Contains(text, realKey) || !strings.HasPrefix(keyOf(env), "placeholder-") {
			t.Errorf("the agent's key is not just a placeholder:\n%s", text)
		}
		for _, want := range []string{"NO_PROXY=127.0.0.1,corp", "ANTHROPIC_BASE_URL=http://127.0.0.1:"} {
			if !strings.Contains(text, "\n"+want) {
				t.Errorf("environment of the agent without %s:\n%s", want, text)
			}
		}
	}
	if keyOf(first) == keyOf(second) {
		t.Error("two agents got the same placeholder")
	}
	if strings.Contains(s.stderr.String(), realKey) {
		t.Error("the log holds the key")
	}
}

func TestTheAgentHasAPlaceholderForEachSecretAndTheControlHasThem(t *testing.T) {
	t.Parallel()
	for proxied, holds := range map[string]string{"true": "placeholder-", "false": "real-"} {
		t.Run("VM_KEY_PROXY="+proxied, func(t *testing.T) {
			t.Parallel()
			env := []string{"VM_KEY_PROXY=" + proxied, "ANTHROPIC_BASE_URL=http://127.0.0.1:1"}
			for _, name := range credentialVars {
				env = append(env, name+"=real-"+name)
			}
			s := startServer(t, env...)
			got := "\n" + strings.Join(s.describe("").Env, "\n")
			for _, name := range credentialVars {
				if !strings.Contains(got, "\n"+name+"="+holds) {
					t.Errorf("the agent's %s is not %s…:\n%s", name, holds, got)
				}
				isTold := strings.Contains(s.stderr.String(), "variable="+name)
				if isTold != (proxied == "false") {
					t.Errorf("the log tells of %s: %v", name, isTold)
				}
			}
			if isReal := strings.Contains(got, "real-"); isReal != (proxied == "false") {
				t.Errorf("the agent has a secret: %v", isReal)
			}
		})
	}
}

// The controls of the placeholder: the key is passed through where the proxy is
// off, and the log tells what else the agent can read.
func TestWhatCannotBeKeptFromTheAgentIsPassedThroughAndTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		variable string
		told     bool
		key      string // begins with
	}{
		{"VM_KEY_PROXY=false", false, realKey},
		{"CLAUDE_CODE_USE_BEDROCK=1", true, "none"}, // which needs none
		{"CLAUDE_CODE_USE_VERTEX=True", true, "none"},
		{"CLAUDE_CODE_USE_BEDROCK=0", false, "placeholder-"},
	} {
		t.Run(test.variable, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, test.variable,
				"ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1")
			env := s.describe("").Env
			if got := keyOf(env); !strings.HasPrefix(got, test.key) {
				t.Errorf("the agent's key is %q", got)
			}
			if !strings.HasPrefix(test.variable, "VM_") && !slices.Contains(env, test.variable) {
				t.Errorf("the agent doesn't get the variable:\n%s", strings.Join(env, "\n"))
			}
			name, _, _ := strings.Cut(test.variable, "=")
			if told := strings.Contains(s.stderr.String(), "variable="+name); told != test.told {
				t.Errorf("the log tells of the variable: %v", told)
			}
			if strings.Contains(s.stderr.String(), realKey) {
				t.Error("the log holds the key")
			}
		})
	}
}
