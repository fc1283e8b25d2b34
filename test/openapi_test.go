package test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// openapi.yaml says what the server answers: every status with its error codes,
// and every field of an answer.
func TestOpenAPISaysWhatTheServerAnswers(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Properties map[string]struct {
			Enum []string `yaml:"enum"`
		} `yaml:"properties"`
		Required []string `yaml:"required"`
	}
	var api struct {
		Paths map[string]map[string]struct {
			Responses map[int]struct {
				Codes []string `yaml:"x-error-codes"`
			} `yaml:"responses"`
		} `yaml:"paths"`
		Components struct {
			Schemas map[string]schema `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(data, &api); err != nil {
		t.Fatal(err)
	}
	type codes map[string]map[int]map[string]bool // of each method and status
	add := func(in codes, method string, status int, found ...string) {
		if in[method] == nil {
			in[method] = map[int]map[string]bool{}
		}
		if in[method][status] == nil {
			in[method][status] = map[string]bool{}
		}
		for _, code := range found {
			in[method][status][code] = true
		}
	}
	documented := codes{}
	failures := map[string]bool{"client_gone": true} // which only a half-closed client reads
	refusals := map[string]bool{"no_space": true}    // of files
	for _, method := range []string{"POST", "DELETE"} {
		path := api.Paths["/command"][strings.ToLower(method)]
		for status, response := range path.Responses {
			add(documented, method, status, response.Codes...)
			schema := refusals
			if status == 200 {
				schema = failures
			}
			for _, code := range response.Codes {
				schema[code] = true
			}
		}
	}
	for name, want := range map[string]map[string]bool{"AnswerError": failures, "Refusal": refusals} {
		enum := map[string]bool{}
		for _, code := range api.Components.Schemas[name].Properties["code"].Enum {
			enum[code] = true
		}
		if diff := cmp.Diff(want, enum); diff != "" {
			t.Errorf("the codes of %s (-of the responses +enum):\n%s", name, diff)
		}
	}

	s := startServer(t, "VM_QUEUE=0", "VM_TOKEN=correct", "VM_MAX_BODY=200",
		"VM_SHUTDOWN_GRACE=1h")
	withToken := and(asJSON, "Authorization", "Bearer correct")
	got := codes{}
	answers := api.Components.Schemas["Answer"]
	note := func(method string, response *http.Response, body string) {
		t.Helper()
		var fields map[string]any
		if err := json.Unmarshal([]byte(body), &fields); err != nil {
			t.Fatalf("%v: %q", err, body)
		}
		status := response.StatusCode
		add(got, method, status)
		if apiError, isThere := fields["error"].(map[string]any); isThere {
			add(got, method, status, apiError["code"].(string))
		}
		if status != 200 {
			return
		}
		for name := range fields {
			if _, isThere := answers.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of an answer", name)
			}
		}
		for _, name := range answers.Required {
			if _, isThere := fields[name]; !isThere {
				t.Errorf("the required field %q is not in %s", name, body)
			}
		}
	}
	try := func(method, body string, header ...string) {
		t.Helper()
		response, text, err := s.send(context.Background(), method, "/command", body, header...)
		if err != nil {
			t.Fatal(err)
		}
		if method == "PUT" {
			method = "POST" // where other methods are documented
		}
		note(method, response, text)
	}
	for _, command := range []string{
		"hello", "hits-a-limit 1795707601", "is-overloaded 529", "reports-an-error", "not-logged-in", "gives-up-on-its-key", "unknown-session", "is-too-long", "exits",
	} {
		try("POST", `{"command":"`+command+`"}`, withToken...)
	}
	away := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL="+newNoAPI(t))
	gone, said, err := away.post(context.Background(), "asks-the-api-in-vain")
	if err != nil {
		t.Fatal(err)
	}
	note("POST", gone, said)
	late, words, err := startServer(t, "VM_TIMEOUT=1s").post(context.Background(), "waits")
	if err != nil {
		t.Fatal(err)
	}
	note("POST", late, words)
	try("PUT", "", withToken...)
	try("DELETE", "")
	try("DELETE", "", withToken...)
	try("DELETE", "", and(withToken, "Sec-Fetch-Site", "cross-site")...)
	keyed := and(withToken, "Idempotency-Key", "a")
	try("DELETE", "", keyed...)
	stopped := make(chan reply, 1)
	s.background(context.Background(), "waits", stopped, keyed...)
	s.queued(0)
	try("DELETE", "", keyed...)
	if diff := cmp.Diff("canceled stopped", inShort((<-stopped).answer)); diff != "" {
		t.Errorf("the stopped command (-want +got):\n%s", diff)
	}
	try("POST", `{"command":"waits"}`, keyed...)
	try("POST", hello, keyed...)
	short := startServer(t, "VM_TOKEN=correct", "TEST_VARIANT=short lives")
	eventually(t, "the key's answer is forgotten", func() bool {
		response, text, err := short.send(context.Background(), "POST", "/command", hello, keyed...)
		if err != nil {
			t.Fatal(err)
		}
		note("POST", response, text)
		return response.StatusCode == 410
	})
	try("POST", "{}", withToken...)
	try("POST", strings.Repeat("x", 300), withToken...)
	try("POST", "{}", "Authorization", "Bearer correct")
	try("POST", "{}", asJSON...)
	try("POST", "{}", and(withToken, "Sec-Fetch-Site", "cross-site")...)
	var response *http.Response
	var text string
	reply := make(chan error, 1)
	go func() {
		var err error
		response, text, err = s.post(context.Background(), "waits", withToken...)
		reply <- err
	}()
	s.queued(0)
	try("POST", `{"command":"one too many"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	var stopping map[string]any
	eventually(t, "it is stopping", func() bool {
		var status int
		status, stopping = s.state()
		return status == 503
	})
	try("POST", `{"command":"late"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	if err := <-reply; err != nil {
		t.Fatal(err)
	}
	note("POST", response, text)

	health := api.Components.Schemas["Health"]
	status, healthy := startServer(t).state()
	for _, status := range []int{status, 503} {
		if _, isDocumented := api.Paths["/healthz"]["get"].Responses[status]; !isDocumented {
			t.Errorf("openapi.yaml doesn't know the status %d of /healthz", status)
		}
	}
	for _, state := range []map[string]any{healthy, stopping} {
		for name := range state {
			if _, isThere := health.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of /healthz", name)
			}
		}
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("openapi.yaml and the server (-documented +answered):\n%s", diff)
	}
}
