package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGitsSettingsComeBehindTheOperatorsOwn(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_GIT_TOKEN= secret-of-git\n", "VM_GIT_HOST=git.example:8443",
		"ANTHROPIC_API_KEY="+realKey,
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=me")
	env := s.describe("").Env
	value := map[string]string{}
	for _, entry := range env {
		name, rest, _ := strings.Cut(entry, "=")
		value[name] = rest // of two the last counts
	}

	base := value["ANTHROPIC_BASE_URL"]
	here := "http://git.example" + base[strings.LastIndex(base, ":"):] + "/"
	want := []string{
		"user.name=me",
		"url." + here + ".insteadOf=https://git.example:8443/",
		"url." + here + ".insteadOf=git@git.example:",
		"url." + here + ".insteadOf=git@git.example:/",
		"url." + here + ".insteadOf=ssh://git@git.example/",
	}
	users := []string{
		"url." + here + ".insteadOf=https://git@git.example:8443/",
		"url." + here + ".insteadOf=https://oauth2@git.example:8443/",
		"url." + here + ".insteadOf=https://x-access-token@git.example:8443/",
	}
	var got []string
	for i := range want {
		got = append(got, value[fmt.Sprint("GIT_CONFIG_KEY_", i)]+"="+value[fmt.Sprint("GIT_CONFIG_VALUE_", i)])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("git's settings (-want +got):\n%s", diff)
	}
	for i, want := range users {
		if diff := cmp.Diff(want, value[fmt.Sprint("GIT_CONFIG_KEY_", 9+i)]+"="+value[fmt.Sprint("GIT_CONFIG_VALUE_", 9+i)]); diff != "" {
			t.Errorf("for an address with a user's name (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff("12", value["GIT_CONFIG_COUNT"]); diff != "" {
		t.Errorf("how many there are (-want +got):\n%s", diff)
	}
	text := strings.Join(env, "\n") + s.stderr.String()
	if strings.Contains(text, "secret-of-git") {
		t.Errorf("the agent or the log has the token:\n%s", text)
	}
}

func TestWhatIsWrongForGitIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, variable, value string }{
		{"a URL", "VM_GIT_HOST", "https://github.com"},
		{"a path", "VM_GIT_HOST", "github.com/"},
		{"two words", "VM_GIT_HOST", "a b"},
		{"a user", "VM_GIT_HOST", "user@host"},
		{"an option", "VM_GIT_HOST", "-x"},
		{"a port that is missing", "VM_GIT_HOST", "host:"},
		{"a port that is no number", "VM_GIT_HOST", "host:x"},
		{"port 0", "VM_GIT_HOST", "host:0"},
		{"a port too high", "VM_GIT_HOST", "host:99999"},
		{"a dot", "VM_GIT_HOST", "."},
		{"two dots in a row", "VM_GIT_HOST", "a..b"},
		{"a port without a host", "VM_GIT_HOST", ":443"},
		{"capitals, which no address has", "VM_GIT_HOST", "GitHub.com"},
		{"a part of an address", "VM_GIT_HOST", "10.1"},
		{"an address in hex", "VM_GIT_HOST", "0x7f.1"},
		{"a number", "VM_GIT_HOST", "2130706433"},
		{"two ports", "VM_GIT_HOST", "host:443:443"},
		{"the name that the API has here", "VM_GIT_HOST", "127.0.0.1:8443"},
		{"no token behind the user", "VM_GIT_TOKEN", "user:"},
		{"no user before the token", "VM_GIT_TOKEN", ":sesame"},
		{"blanks", "VM_GIT_TOKEN", " "},
		{"a token on two lines", "VM_GIT_TOKEN", "sesame\nopen"},
		{"a file that is not there", "VM_GIT_TOKEN_FILE", "/nowhere"},
		{"a count below 0", "GIT_CONFIG_COUNT", "-1"},
		{"a count with a blank", "GIT_CONFIG_COUNT", " 1"},
		{"a count that is none", "GIT_CONFIG_COUNT", "x"},
		{"a count that nobody has", "GIT_CONFIG_COUNT", "2147483647"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			setting := []string{test.variable + "=" + test.value}
			if test.variable == "GIT_CONFIG_COUNT" {
				setting = append(setting, "VM_GIT_TOKEN=sesame")
			}

			stderr := refusedStart(t, setting...)
			if !strings.Contains(stderr, "cannot use "+test.variable) || strings.Contains(stderr, "sesame") {
				t.Errorf("stderr: %s", stderr)
			}
		})
	}
}
