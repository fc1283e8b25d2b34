package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testName = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`)

const realKey = "sk-the-real-key"

// startProxy starts a key proxy in front of api, for a server without agents.
func startProxy(t *testing.T, api http.HandlerFunc) (s *keyProxy, base string, upstream *httptest.Server) {
	t.Helper()
	upstream = httptest.NewServer(api)
	t.Cleanup(upstream.Close)
	address, err := url.Parse(upstream.URL + "/base")
	if err != nil {
		t.Fatal(err)
	}
	s = newKeyProxy(&config{apiKey: realKey, api: address}, slog.New(slog.DiscardHandler))
	proxy := httptest.NewServer(s)
	t.Cleanup(proxy.Close)
	return s, proxy.URL, upstream
}

// issue lets an agent that isn't there use the key.
func (s *keyProxy) issue(placeholder string, stop context.CancelCauseFunc) {
	s.allow(&lease{placeholder: placeholder, stop: stop})
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
	s, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) { seen.Store(r); io.WriteString(w, "answered") })
	const old, present = "placeholder-old", "placeholder-present"
	s.issue(old, nil)
	s.issue(present, nil)
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
	s.allow(nil)
	if status, _ := askProxy(t, base+"/v1/messages", present); status != 403 {
		t.Errorf("the placeholder still counts after its command: %d", status)
	}
}

func TestTheKeyProxyStreamsAndCancels(t *testing.T) {
	t.Parallel()
	canceled := make(chan struct{})
	s, base, _ := startProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: first\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(canceled)
	})
	const placeholder = "placeholder-present"
	s.issue(placeholder, nil)
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
	case <-time.After(20 * time.Second):
		t.Error("the API was not told that the request is canceled")
	}
}

func TestTheKeyProxyTellsOfARefusedKeyAndAnAPIOutOfReach(t *testing.T) {
	t.Parallel()
	s, base, upstream := startProxy(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) })
	refused := false
	const placeholder = "placeholder-present"
	s.issue(placeholder, func(why error) { refused = why == errKeyRefused })
	if status, _ := askProxy(t, base+"/v1/messages", placeholder); status != 401 || !refused {
		t.Errorf("status %d, refused %v", status, refused)
	}
	upstream.Close()
	if status, text := askProxy(t, base+"/v1/messages", placeholder); status != 502 || !strings.Contains(text, "cannot reach the model's API") || strings.Contains(text, realKey) {
		t.Errorf("status %d, %s", status, text)
	}
}

// agentEnv returns what the agent's environment says of some variables.
func (s *testServer) agentEnv(token string) (env []string) {
	s.t.Helper()
	_, body, err := s.post(context.Background(), "describes-itself", "Authorization", "Bearer "+token)
	if err != nil {
		s.t.Fatal(err)
	}
	var a answer
	var got struct{ Env []string }
	json.Unmarshal([]byte(body), &a)
	json.Unmarshal([]byte(a.Result), &got)
	return got.Env
}

func TestTheAgentGetsAPlaceholder(t *testing.T) {
	t.Parallel()
	s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1", "NO_PROXY=corp")
	first, second := s.agentEnv(""), s.agentEnv("")
	for _, env := range [][]string{first, second} {
		if text := strings.Join(env, "\n"); strings.Contains(text, realKey) || !strings.Contains(text, "\nNO_PROXY=127.0.0.1,corp") || !strings.Contains(text, "ANTHROPIC_API_KEY=placeholder-") || !strings.Contains(text, "ANTHROPIC_BASE_URL=http://127.0.0.1:") {
			t.Errorf("environment of the agent:\n%s", text)
		}
	}
	if slices.Equal(first, second) {
		t.Error("two agents got the same placeholder")
	}
	// The controls: where the key can't be kept from the agent, it is passed through, and the log says so.
	off := startServer(t, "ANTHROPIC_API_KEY="+realKey, "VM_KEY_PROXY=false")
	if !slices.Contains(off.agentEnv(""), "ANTHROPIC_API_KEY="+realKey) {
		t.Error("with VM_KEY_PROXY=false the agent has no key")
	}
	for _, variable := range []struct {
		entry string
		told  bool
		key   string
	}{
		{"CLAUDE_CODE_OAUTH_TOKEN=1", true, "placeholder"},
		{"CLAUDE_CODE_USE_BEDROCK=1", true, "none"}, // which needs none
		{"CLAUDE_CODE_USE_VERTEX=True", true, "none"},
		{"CLAUDE_CODE_USE_BEDROCK=0", false, "placeholder"},
	} {
		other := startServer(t, variable.entry, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL=http://127.0.0.1:1")
		env, key := other.agentEnv(""), "none"
		for _, entry := range env {
			if value, found := strings.CutPrefix(entry, "ANTHROPIC_API_KEY="); found {
				key, _, _ = strings.Cut(value, "-")
			}
		}
		name, _, _ := strings.Cut(variable.entry, "=")
		told := strings.Contains(other.stderr.String(), "variable="+name)
		if !slices.Contains(env, variable.entry) || told != variable.told || key != variable.key {
			t.Errorf("%s: told %v, the agent's key is %s, its environment:\n%s", variable.entry, told, key, strings.Join(env, "\n"))
		}
	}
	if strings.Contains(s.stderr.String()+off.stderr.String(), realKey) {
		t.Error("the log holds the key")
	}
}

// With one user for both, what keeps the server's secrets is that it is not
// dumpable. SIGUSR2 makes the test's server dumpable again, for the control.
func TestTheAgentCannotReadTheServer(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become an ordinary user in a folder of its own")
	}
	cmd := serverCommand(t, "VM_CLAUDE="+publicSelf(t), "VM_TOKEN=secret-token", "ANTHROPIC_API_KEY="+realKey)
	cmd.Path, cmd.Dir = publicSelf(t), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	s := startCommand(t, cmd)
	look := func() string {
		t.Helper()
		_, body, err := s.post(context.Background(), "looks-at-its-parent", "Authorization", "Bearer secret-token")
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		json.Unmarshal([]byte(body), &a)
		return a.Result
	}
	if diff := cmp.Diff("environ: no, mem: no, fd: no", look()); diff != "" {
		t.Errorf("what the agent can read (-want +got):\n%s", diff)
	}
	s.cmd.Process.Signal(syscall.SIGUSR2)
	eventually(t, "the control can read the server", func() bool { return look() == "environ: yes, mem: yes, fd: yes" })
}

func TestTheAgentInheritsNoDescriptor(t *testing.T) {
	t.Parallel()
	secret, err := os.Open(self(t))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	cmd := serverCommand(t)
	cmd.ExtraFiles = []*os.File{secret}
	if got := startCommand(t, cmd).ask("lists-descriptors").Result; strings.Contains(got, self(t)+" ") {
		t.Errorf("the agent holds %s", got)
	}
	control := exec.Command("sh", "-c", "readlink /proc/self/fd/3") // what a server that does nothing hands on
	control.ExtraFiles = cmd.ExtraFiles
	if output, err := control.Output(); err != nil || !strings.Contains(string(output), self(t)) {
		t.Errorf("the control doesn't hold the descriptor: %s %v", output, err)
	}
}

// SECURITY.md names a test for each promise; a name that is no test is a lie.
func TestSecurityNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	security, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, pattern := range []string{".", "e2e"} {
		entries, err := os.ReadDir(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if strings.HasSuffix(entry.Name(), "_test.go") {
				data, _ := os.ReadFile(pattern + "/" + entry.Name())
				source.Write(data)
			}
		}
	}
	names := testName.FindAllString(string(security), -1)
	if len(names) < 10 {
		t.Errorf("SECURITY.md names %d tests", len(names))
	}
	for _, name := range names {
		if !strings.Contains(source.String(), "func "+name+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}
