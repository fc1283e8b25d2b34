package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What comes back through the key proxy, and what it says where nothing does. The
// API writes to the connection itself, as a server would not misbehave so.

// newRawAPI is an API that does with each connection what answer does, once it has
// read a request's head.
func newRawAPI(t *testing.T, answer func(out net.Conn, in *bufio.Reader)) (base string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	serve := func(connection net.Conn) {
		defer connection.Close()
		in := bufio.NewReader(connection)
		for line := "-"; line != "\r\n" && line != ""; {
			line, _ = in.ReadString('\n')
		}
		answer(connection, in)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(connection)
		}
	}()
	return "http://" + listener.Addr().String()
}

// newNoAPI is an address at which nobody listens: it is taken until the test ends, or
// another test's server might get it.
func newNoAPI(t *testing.T) (base string) {
	t.Helper()
	taken, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(taken)
	t.Cleanup(func() { syscall.Close(taken) })
	err = syscall.Bind(taken, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(taken)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port)
}

// net/http reports such bytes by a logger of its own.
func TestWhatTheAPISendsUnaskedIsNotInTheLog(t *testing.T) {
	t.Parallel()
	sent := make(chan bool, 1)
	api := newRawAPI(t, func(out net.Conn, in *bufio.Reader) {
		io.WriteString(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		for range 100 { // some of it comes when the connection is idle
			_, err := io.WriteString(out, realKey)
			if err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		select {
		case sent <- true:
		default:
		}
	})
	s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL="+api)
	if diff := cmp.Diff("404 Not Found", s.ask("asks-the-api").Result); diff != "" {
		t.Errorf("what the agent gets (-want +got):\n%s", diff)
	}
	<-sent
	s.stop()
	if strings.Contains(s.stderr.String(), realKey) {
		t.Errorf("the log quotes it:\n%s", s.stderr)
	}
}

func newAPI(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	api := httptest.NewServer(handle)
	t.Cleanup(api.Close)
	return api
}

const realKey = "sk-the-real-key"

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

var credentialNames = []string{"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"}

func TestTheAgentHasAPlaceholderForEachSecretAndTheControlHasThem(t *testing.T) {
	t.Parallel()
	for proxied, holds := range map[string]string{"true": "placeholder-", "false": "real-"} {
		t.Run("VM_KEY_PROXY="+proxied, func(t *testing.T) {
			t.Parallel()
			env := []string{"VM_KEY_PROXY=" + proxied, "ANTHROPIC_BASE_URL=http://127.0.0.1:1"}
			for _, name := range credentialNames {
				env = append(env, name+"=real-"+name)
			}
			s := startServer(t, env...)
			got := "\n" + strings.Join(s.describe("").Env, "\n")
			for _, name := range credentialNames {
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
