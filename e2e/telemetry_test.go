package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The five variables of README.md are all that a collector needs.
func TestTheCLITellsACollectorWhatItDoes(t *testing.T) {
	lines := regexp.MustCompile(`-e ((?:CLAUDE_CODE_ENABLE_TELEMETRY|OTEL_\w+)=\S+)`)
	var env []string
	for _, match := range lines.FindAllStringSubmatch(read(t, "README.md"), -1) {
		env = append(env, match[1])
	}
	if diff := cmp.Diff(5, len(env)); diff != "" {
		t.Fatalf("variables in README.md (-want +got):\n%s%q", diff, env)
	}

	var mu sync.Mutex
	told := map[string]string{}
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		told[r.URL.Path] += string(data)
		io.WriteString(w, "{}")
	}))
	t.Cleanup(collector.Close)
	for i, entry := range env {
		env[i] = strings.Replace(entry, "http://collector:4318", collector.URL, 1)
	}

	v := start(t, env...)
	v.ask("success", "bash: echo a-secret-prompt")
	v.eventually("the collector has the cost and the tool", func() bool {
		mu.Lock()
		defer mu.Unlock()
		hasCost := strings.Contains(told["/v1/metrics"], "claude_code.cost.usage")
		return hasCost && strings.Contains(told["/v1/logs"], "claude_code.tool_result")
	})
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(told["/v1/logs"], `"stringValue":"bash: echo a-secret-prompt"`) {
		t.Error("the collector has the prompt")
	}
}
