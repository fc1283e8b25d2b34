package test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestStartIsRefused(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	empty := directory + "/empty"
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		env  []string
		want []string // in the message
	}{
		{"a misspelt variable", []string{"VM_TIMEOUTS=1s"}, []string{"VM_TIMEOUTS", "-h"}},
		{"a duration that is none", []string{"VM_TIMEOUT=soon"}, []string{"VM_TIMEOUT", "soon"}},
		{"a timeout of 0", []string{"VM_TIMEOUT=0"}, []string{"VM_TIMEOUT", "5s"}},
		{"a negative grace", []string{"VM_STOP_GRACE=-1s"}, []string{"VM_STOP_GRACE"}},
		{"a negative heartbeat", []string{"VM_HEARTBEAT=-1s"}, []string{"VM_HEARTBEAT"}},
		{"a negative queue", []string{"VM_QUEUE=-1"}, []string{"VM_QUEUE"}},
		{"a body larger than the CLI takes", []string{"VM_MAX_BODY=10000000"},
			[]string{"VM_MAX_BODY", "8388608"}},
		{"an address without a port", []string{"VM_ADDR=localhost"},
			[]string{"VM_ADDR", "127.0.0.1:3001"}},
		{"every address without a token", []string{"VM_ADDR=:0"},
			[]string{"VM_ADDR", "VM_TOKEN", "VM_ALLOW_NO_TOKEN"}},
		{"an address of the network without a token", []string{"VM_ADDR=192.0.2.1:0"},
			[]string{"VM_TOKEN"}},
		{"a token file that isn't there", []string{"VM_TOKEN_FILE=" + directory + "/none"},
			[]string{"VM_TOKEN_FILE", "no such file"}},
		{"an empty token file", []string{"VM_TOKEN_FILE=" + empty},
			[]string{"VM_TOKEN_FILE", "empty"}},
		{"two tokens", []string{"VM_TOKEN=secret", "VM_TOKEN_FILE=" + empty},
			[]string{"VM_TOKEN_FILE", "unset"}},
		{"no CLI", []string{"VM_CLAUDE=no-such-claude"}, []string{"VM_CLAUDE", "npm install"}},
		{"no workspace", []string{"VM_WORKSPACE=" + directory + "/none"},
			[]string{"VM_WORKSPACE", "create it"}},
		{"no MCP configuration", []string{"VM_MCP_CONFIG=" + directory + "/none"},
			[]string{"VM_MCP_CONFIG"}},
		{"an API address that is none", []string{"ANTHROPIC_BASE_URL=no URL"},
			[]string{"ANTHROPIC_BASE_URL", "https://"}},
		{"an API address without a scheme", []string{"ANTHROPIC_BASE_URL=//host"},
			[]string{"ANTHROPIC_BASE_URL", "https://"}},
		{"an API address of another scheme", []string{"ANTHROPIC_BASE_URL=ftp://secret@host"},
			[]string{"ANTHROPIC_BASE_URL", "https://"}},
		{"a key on two lines", []string{"ANTHROPIC_API_KEY=secret\nsecret"},
			[]string{"ANTHROPIC_API_KEY", "one line"}},
		{"a token of blanks", []string{"VM_TOKEN= \t"}, []string{"VM_TOKEN", "blank"}},
		{"a token on two lines", []string{"VM_TOKEN=secret\nsecret"}, []string{"token", "one line"}},
		{"a grace that would overflow", []string{"VM_STOP_GRACE=1500000h"},
			[]string{"VM_STOP_GRACE", "1000h"}},
		{"a switch that is none", []string{"VM_WARM=perhaps"}, []string{"VM_WARM", "true or false"}},
		{"a number that is none", []string{"VM_QUEUE=many"}, []string{"VM_QUEUE", "a number"}},
		{"a workspace that is a file", []string{"VM_WORKSPACE=" + empty},
			[]string{"VM_WORKSPACE", "not a folder"}},
		{"an MCP configuration that is a folder", []string{"VM_MCP_CONFIG=" + directory},
			[]string{"VM_MCP_CONFIG", "directory"}},
		{"an MCP configuration that is no JSON", []string{"VM_MCP_CONFIG=" + empty},
			[]string{"VM_MCP_CONFIG", "not JSON"}},
		{"quotes in the arguments", []string{`VM_CLAUDE_ARGS=--append-system-prompt "be brief"`},
			[]string{"VM_CLAUDE_ARGS", "without a shell"}},
		{"ids that are none", []string{"VM_USER=a:b"}, []string{"VM_USER", "uid:gid"}},
		{"an unknown user", []string{"VM_USER=no-such-user"}, []string{"VM_USER", "no-such-user"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := serverCommand(t, test.env...)
			output, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("exit: %v\n%s", err, output)
			}
			for _, want := range test.want {
				if !strings.Contains(string(output), want) {
					t.Errorf("the message doesn't say %q: %s", want, output)
				}
			}
			for _, word := range []string{"strconv", "envconfig", "assigning", "time.Parse"} {
				if strings.Contains(string(output), word) {
					t.Errorf("the message speaks of %s: %s", word, output)
				}
			}
			if strings.Contains(string(output), "secret") {
				t.Errorf("the message holds the token: %s", output)
			}
		})
	}
}

func TestStartIsAllowed(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/token"
	if err := os.WriteFile(file, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "VM_ADDR=:0", "VM_TOKEN_FILE="+file)
	s.url = strings.Replace(s.url, "[::]", "127.0.0.1", 1)
	response, _, err := s.post(context.Background(), "hello", "Authorization", "Bearer from-a-file")
	if err != nil || response.StatusCode != 200 {
		t.Errorf("with the token of VM_TOKEN_FILE: %v %v", response, err)
	}
	if strings.Contains(s.stderr.String(), "from-a-file") {
		t.Error("the log holds the token")
	}
	open := startServer(t, "VM_ADDR=:0", "VM_ALLOW_NO_TOKEN=true")
	if !strings.Contains(open.stderr.String(), "level=WARN") {
		t.Errorf("no warning of a server without a token:\n%s", open.stderr)
	}
}

// Each of these kept the server from starting, or every command from an answer.
func TestWhatIsUsualInAnEnvironmentWorks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		env  []string
	}{
		{"an empty workspace is the default", []string{"VM_WORKSPACE="}},
		{"empty variables of every kind", []string{"VM_TOKEN=", "VM_TIMEOUT=", "VM_QUEUE=", "VM_WARM="}},
		{"a key that ends with a newline", []string{"ANTHROPIC_API_KEY=key\n"}},
		{"a queue of the largest number", []string{"VM_QUEUE=9223372036854775807", "VM_TOKEN=correct"}},
		{"a queue of billions", []string{"VM_QUEUE=20000000000", "VM_TOKEN=correct"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, test.env...)
			s.goesOn()
			key := "ANTHROPIC_API_KEY=key"
			for _, entry := range s.describe("").Env {
				if strings.HasPrefix(entry, "VM_") || strings.HasPrefix(entry, key) {
					t.Errorf("the agent's environment holds %q", entry)
				}
			}
		})
	}
}

func TestATokenLosesTheWhiteSpaceAroundIt(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct\n")
	response, _, err := s.post(context.Background(), "hello", "Authorization", "Bearer correct")
	if err != nil || response.StatusCode != 200 {
		t.Errorf("%v %v", response, err)
	}
}

// The control is a key.
func TestAStartWithoutCredentialsWarns(t *testing.T) {
	t.Parallel()
	for env, warns := range map[string]bool{"X=": true, "ANTHROPIC_API_KEY=key": false} {
		s := startServer(t, env)
		if got := strings.Contains(s.stderr.String(), "no credentials are set"); got != warns {
			t.Errorf("%s: a warning: %v, want %v:\n%s", env, got, warns, s.stderr)
		}
	}
}
