package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the CLI leaves out where its API is not at the vendor's address stands in
// SECURITY.md. It is told from what the CLI says if it is made to believe otherwise;
// the vendor's hosts, which it then looks for, are kept from it.
func TestWithoutTheServerTheCLISaysThisMoreToItsVendor(t *testing.T) {
	t.Parallel()
	v := start(t)
	betas := func(env ...string) []string {
		t.Helper()
		var mu sync.Mutex
		var seen []string
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen = append(seen, strings.Split(r.Header.Get("Anthropic-Beta"), ",")...)
			mu.Unlock()
			v.model.ServeHTTP(w, r)
		}))
		defer api.Close()
		cmd := v.claude("hello")
		cmd.Env = append(cmd.Env, "ANTHROPIC_API_KEY=", "CLAUDE_CODE_OAUTH_TOKEN=sk-ant-oat01-none", "ANTHROPIC_BASE_URL="+api.URL,
			"HTTPS_PROXY=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9", "NO_PROXY=127.0.0.1")
		cmd.Env = append(cmd.Env, env...)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		slices.Sort(seen)
		return slices.Compact(seen)
	}
	here := betas()
	if !slices.Contains(here, "oauth-2025-04-20") {
		t.Errorf("a subscription's token is sent with %v", here)
	}
	lacking := slices.DeleteFunc(betas("_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL=1"), func(beta string) bool {
		return slices.Contains(here, beta)
	})

	security, err := os.ReadFile(root(t) + "/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	told := regexp.MustCompile(`[a-z-]+-20[0-9]{2}-[0-9]{2}-[0-9]{2}`).FindAllString(string(security), -1)
	slices.Sort(told)
	if diff := cmp.Diff(told, lacking); diff != "" {
		t.Errorf("what it lacks (-SECURITY.md +measured):\n%s", diff)
	}
}
