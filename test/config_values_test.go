package test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each value either works or is refused with the variable and the remedy.
// config_test.go has a case of each kind; here are the edges between the two.

// refusedStart is what a server that doesn't start says.
func refusedStart(t *testing.T, env ...string) string {
	t.Helper()
	var output syncBuffer
	cmd := serverCommand(t, env...)
	cmd.Stderr = &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()

	var err error
	eventually(t, "it ends or listens", func() bool {
		if listening(output.String()) != "" {
			cmd.Process.Kill()
		}
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("exit: %v\n%s", err, &output)
	}
	return output.String()
}

func write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = t.TempDir() + "/" + name
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAValueThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	mcp := func(text string) string { return "VM_MCP_CONFIG=" + write(t, "mcp.json", text) }
	const (
		aDuration = "give a duration such as 10m"
		aURL      = "give a URL such as https://api.anthropic.com"
		anAddress = "give HOST:PORT such as 127.0.0.1:3001"
		oneLine   = "put it on one line"
		quotes    = "without a shell"
		ids       = "give uid:gid"
	)
	tests := []struct{ name, env, remedy string }{
		{"a duration without a unit", "VM_TIMEOUT=10", aDuration},
		{"a blank duration", "VM_EXIT_GRACE= ", aDuration},
		{"a duration that no clock has", "VM_HEARTBEAT=9999999999h", aDuration},
		{"a number that no integer holds", "VM_QUEUE=9223372036854775808", "give a number such as 8"},
		{"a fraction", "VM_MAX_BODY=0.5", "give a number such as 8"},
		{"a body of nothing", "VM_MAX_BODY=0", "give 15 to 8388608"},
		{"a body that holds no command", "VM_MAX_BODY=14", "give 15 to 8388608"},
		{"files of nothing", "VM_MAX_FILE=0", "give 1 to 1099511627776"},
		{"no port", "VM_ADDR=127.0.0.1:", anAddress},
		{"a token that no header holds", "VM_TOKEN=" + strings.Repeat("secret", 2000), "8192 at most"},
		{"a token file with a byte order mark", "VM_TOKEN_FILE=" + write(t, "token", "\ufeffsecret\n"), "in plain text"},
		{"a key that is a placeholder", "ANTHROPIC_API_KEY=…", "replace a placeholder"},
		{"headers that are none", "ANTHROPIC_CUSTOM_HEADERS=secret", "give lines such as Name: value"},
		{"MCP servers by another name", mcp(`{"mcpservers": {}}`), `{"mcpServers": {}}`},
		{"a blank switch", "VM_KEY_PROXY= ", "give true or false"},
		{"a misspelt variable, although it is empty", "VM_TIMEOUTS=", "-h lists them"},
		{"a port that Kubernetes doesn't set", "VM_PORT=3001", "-h lists them"},
		{"such a port of another name", "VM_TWO_PORT=3001", "-h lists them"},
		{"a Service of Kubernetes named vm", "VM_SERVICE_HOST=10.0.0.1", "enableServiceLinks: false"},
		{"its port", "VM_PORT=tcp://10.0.0.1:3001", "enableServiceLinks: false"},
		{"a port that there isn't", "VM_ADDR=127.0.0.1:99999", anAddress},
		{"a port that is none", "VM_ADDR=127.0.0.1:no-such-port", anAddress},
		{"a newline and blanks as the token", "VM_TOKEN=\r\n ", "set a token, or unset it"},
		{"a token with a control character", "VM_TOKEN=secret\x01secret", oneLine},
		{"a token file of two lines", "VM_TOKEN_FILE=" + write(t, "token", "secret\nsecret\n"), oneLine},
		{"a token file that is a folder", "VM_TOKEN_FILE=" + t.TempDir(), "put the token in it"},
		{"a git host with a path", "VM_GIT_HOST=github.com/me", "give a host such as github.com"},
		{"an OAuth token on two lines", "CLAUDE_CODE_OAUTH_TOKEN=secret\nsecret", oneLine},
		{"a gateway's token on two lines", "ANTHROPIC_AUTH_TOKEN=secret\nsecret", oneLine},
		{"a URL without a host", "ANTHROPIC_BASE_URL=https://", aURL},
		{"a URL with a port alone", "ANTHROPIC_BASE_URL=https://:443", aURL},
		{"a URL with a login alone", "ANTHROPIC_BASE_URL=https://user:secret@", aURL},
		{"a URL whose port there isn't", "ANTHROPIC_BASE_URL=http://secret@localhost:99999", aURL},
		{"a URL whose port is none", "ANTHROPIC_BASE_URL=http://secret@localhost:secret", aURL},
		{"a host and a port", "ANTHROPIC_BASE_URL=localhost:3001", aURL},
		{"a URL of a file", "ANTHROPIC_BASE_URL=file:///etc", aURL},
		{"MCP servers that are a device", "VM_MCP_CONFIG=/dev/zero", "name a file of JSON"},
		{"MCP servers with more behind", mcp(`{"mcpServers": {}} {}`), "name a file of JSON"},
		{"MCP servers without their name", mcp(`{}`), `{"mcpServers": {}}`},
		{"MCP servers that are null", mcp(`{"mcpServers": null}`), `{"mcpServers": {}}`},
		{"MCP servers in a list", mcp(`{"mcpServers": []}`), `{"mcpServers": {}}`},
		{"MCP servers that are a number", mcp(`42`), `{"mcpServers": {}}`},
		{"single quotes", "VM_CLAUDE_ARGS=--model 'opus'", quotes},
		{"a quote behind an equals sign", `VM_CLAUDE_ARGS=--append-system-prompt="be brief"`, quotes},
		{"JSON with a space in a text", `VM_CLAUDE_ARGS=--settings {"model":"a b"}`, quotes},
		{"a text with a quote in a word", `VM_CLAUDE_ARGS=--append-system-prompt be" "brief`, quotes},
		{"a uid without a gid", "VM_USER=54321", ids},
		{"a uid and nothing", "VM_USER=54321:", ids},
		{"a gid that is too large", "VM_USER=54321:4294967296", ids},
		{"a uid that means none", "VM_USER=4294967295:20", ids},
		{"a negative gid", "VM_USER=54321:-1", ids},
		{"a third id", "VM_USER=54321:20:30", ids},
	}
	for _, name := range []string{
		"VM_TIMEOUT", "VM_STOP_GRACE", "VM_EXIT_GRACE", "VM_HEARTBEAT", "VM_SHUTDOWN_GRACE",
	} {
		for _, value := range []string{"1500000h", "1000h1ns"} {
			test := struct{ name, env, remedy string }{
				name + " of " + value, name + "=" + value, "1000h0m0s at most",
			}
			tests = append(tests, test)
		}
	}

	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := refusedStart(t, test.env)
			name, _, _ := strings.Cut(test.env, "=")
			for _, want := range []string{"vm-server: cannot ", name, test.remedy} {
				if !strings.Contains(got, want) {
					t.Errorf("the message doesn't say %q: %s", want, got)
				}
			}
			for _, bad := range []string{"secret", "strconv", "envconfig", "assigning", "parsing"} {
				if strings.Contains(got, bad) {
					t.Errorf("the message says %q: %s", bad, got)
				}
			}
		})
	}
}

// Some put a secret where its file, or its host, is asked for.
func TestNoErrorOfAStartQuotesASecret(t *testing.T) {
	t.Parallel()
	const inline = `{"mcpServers": {"x": {"command": "x", "env": {"KEY": "sesame"}}}}`
	tests := []struct{ name, env, want string }{
		{"the token as its file", "VM_TOKEN_FILE=sesame", "VM_TOKEN_FILE: no such file or directory; name a file"},
		{"a token too long for a name", "VM_TOKEN_FILE=" + strings.Repeat("sesame", 1000),
			"VM_TOKEN_FILE: file name too long; name a file"},
		{"the git token as its file", "VM_GIT_TOKEN_FILE=sesame", "VM_GIT_TOKEN_FILE: no such file"},
		{"a git host with a login", "VM_GIT_HOST=https://me:sesame@github.com", "without a login"},
		{"a git host with a login, without a scheme", "VM_GIT_HOST=me:sesame@github.com", "without a login"},
		{"MCP servers inline", "VM_MCP_CONFIG=" + inline, "VM_MCP_CONFIG: no such file or directory; name a file"},
		{"MCP servers inline, with a path in them", "VM_MCP_CONFIG=" + `{"mcpServers": {"x": "/sesame"}}`,
			"VM_MCP_CONFIG: no such file"},
		{"an API's URL with a login", "ANTHROPIC_BASE_URL=https://me:sesame@", "ANTHROPIC_BASE_URL"},
		{"a token with a control character", "VM_TOKEN=sesame\x01", "VM_TOKEN"},
		{"a proxy of another scheme", "VM_UPSTREAM_PROXY=socks5://me:sesame@gateway", "VM_UPSTREAM_PROXY"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := refusedStart(t, test.env)
			if !strings.Contains(got, test.want) || strings.Contains(got, "sesame") {
				t.Errorf("it says %q, want %q and not the secret", got, test.want)
			}
		})
	}

	// As docker's option behind the image is.
	cmd := serverCommand(t)
	cmd.Args = append(cmd.Args, "-e", "VM_TOKEN=sesame")
	output, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(output), "sesame") {
		t.Errorf("%v: it says %q to an argument", err, output)
	}
}

func TestAValueAtItsEdgeWorks(t *testing.T) {
	t.Parallel()
	mcp := func(text string) string { return "VM_MCP_CONFIG=" + write(t, "mcp.json", text) }
	tests := []struct {
		name string
		env  []string
	}{
		{"the longest durations", []string{"VM_TIMEOUT=1000h", "VM_STOP_GRACE=1000h",
			"VM_EXIT_GRACE=1000h", "VM_HEARTBEAT=1000h", "VM_SHUTDOWN_GRACE=1000h"}},
		{"no heartbeat, no grace and no queue",
			[]string{"VM_HEARTBEAT=0", "VM_SHUTDOWN_GRACE=0", "VM_QUEUE=0"}},
		{"the longest token", []string{"VM_TOKEN=" + strings.Repeat("x", 8192)}},
		{"an API at the last port of an IPv6 address",
			[]string{"ANTHROPIC_BASE_URL=http://[::1]:65535/base"}},
		{"no URL", []string{"ANTHROPIC_BASE_URL="}},
		{"no MCP servers", []string{mcp(`{"mcpServers": {}}`)}},
		{"MCP servers behind a byte order mark", []string{mcp("\ufeff" + `{"mcpServers": {}}`)}},
		{"an MCP server that is none", []string{mcp(`{"mcpServers": {"x": {"command": 7}}}`)}},
		{"an empty user", []string{"VM_USER="}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			startServer(t, test.env...).goesOn()
		})
	}
}

// The default is the server's own folder. Looking for what a spare reads at its
// start, in that folder and those above it, came to no end.
func TestASpareWaitsInTheWorkspaceThatIsTheDefault(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_WORKSPACE=", "VM_WARM=true")
	if diff := cmp.Diff(s.cmd.Dir, s.describe("").Dir); diff != "" {
		t.Errorf("the agent's folder (-want +got):\n%s", diff)
	}
}

func TestArgumentsThatAreJSONArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	const settings = `{"model":"opus","x":"don't"}`
	got := startServer(t, "VM_CLAUDE_ARGS=--settings  "+settings).describe("").Args
	if diff := cmp.Diff([]string{"--settings", settings}, got[max(0, len(got)-2):]); diff != "" {
		t.Errorf("the last arguments (-want +got):\n%s", diff)
	}
}

// Photos come as base64.
func TestTheDefaultTakesABodyOf8MiB(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_MAX_BODY=")
	if got := s.ask("hello " + strings.Repeat("x", 8<<20-100)); got.Status != "success" {
		t.Errorf("%s", inShort(got))
	}
	response, _, err := s.post(context.Background(), strings.Repeat("x", 8<<20))
	if err != nil || response.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a larger one: %v %v", response, err)
	}
}

func TestSecretsLoseTheWhiteSpaceAroundThem(t *testing.T) {
	t.Parallel()
	names := []string{"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"}
	env := []string{"VM_KEY_PROXY=false"}
	for _, name := range names {
		env = append(env, name+"= \tmine\r\n")
	}
	got := startServer(t, env...).describe("").Env
	for _, name := range names {
		if !slices.Contains(got, name+"=mine") {
			t.Errorf("the agent hasn't %s=mine: %q", name, got)
		}
	}
}

func TestTheRealCLIWorksByAKeyThatEndsWithANewline(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	seen := make(chan string, 20)
	note := func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("X-Api-Key")
		cli.model.ServeHTTP(w, r)
	}
	s := cli.start(t, note, "ANTHROPIC_API_KEY="+realKey+"\n", "VM_TIMEOUT=5m")
	if got := s.ask("real hello"); got.Status != "success" {
		t.Fatalf("%+v %+v", got, got.Error)
	}
	if diff := cmp.Diff(realKey, <-seen); diff != "" {
		t.Errorf("the API's key (-want +got):\n%s", diff)
	}
}

// The real CLI says the same of both, but for the API's status.
func TestNoCredentialsAreToldFromRefusedOnes(t *testing.T) {
	t.Parallel()
	cli := newRealCLI(t)
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	}
	tests := []struct{ name, key, token, want, remedy string }{
		{"none", "", "", "no_credentials", "set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN)"},
		{"a blank key", " \n", "", "no_credentials", "set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN)"},
		{"a refused key", "wrong", "", "authentication_failed", "check ANTHROPIC_API_KEY"},
		{"a refused token", "", "wrong", "authentication_failed", "check CLAUDE_CODE_OAUTH_TOKEN"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := cli.start(t, refuse,
				"ANTHROPIC_API_KEY="+test.key, "CLAUDE_CODE_OAUTH_TOKEN="+test.token)
			got := s.ask("real hello")
			if diff := cmp.Diff("failed "+test.want, inShort(got)); diff != "" {
				t.Fatalf("answer (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.Error.Message, test.remedy) {
				t.Errorf("the message doesn't say %q: %s", test.remedy, got.Error.Message)
			}
		})
	}
}

func TestAStartWarnsOfNoCredentialsAlone(t *testing.T) {
	t.Parallel()
	const warning = "no credentials are set"
	login := t.TempDir()
	if err := os.WriteFile(login+"/.credentials.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, env string
		warns     bool
	}{
		{"a blank key", "ANTHROPIC_API_KEY=\n", true},
		{"an OAuth token", "CLAUDE_CODE_OAUTH_TOKEN=x", false},
		{"a gateway's token", "ANTHROPIC_AUTH_TOKEN=x", false},
		{"a cloud", "CLAUDE_CODE_USE_BEDROCK=1", false},
		{"a cloud that is off", "CLAUDE_CODE_USE_BEDROCK=0", true},
		{"another cloud", "CLAUDE_CODE_USE_FOUNDRY=1", false},
		{"a login", "CLAUDE_CONFIG_DIR=" + login, false},
		{"no login", "CLAUDE_CONFIG_DIR=" + t.TempDir(), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, test.env)
			if got := strings.Contains(s.stderr.String(), warning); got != test.warns {
				t.Errorf("a warning: %v, want %v:\n%s", got, test.warns, s.stderr)
			}
		})
	}
}

// A root server that has the image's three capabilities alone can't look into the
// agent's own folders. The agent can.
func TestWhatTheAgentAloneMayReadIsNoMistake(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to give folders away")
	folder, err := os.MkdirTemp("", "vm-server-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	path := folder + "/mcp.json"
	steps := []error{
		os.Chmod(folder, 0o755),
		os.WriteFile(path, []byte(`{"mcpServers": {}}`), 0o600),
		os.Chown(path, 54321, 20),
		os.Mkdir(folder+"/settings", 0o700),
		os.Chown(folder+"/settings", 54321, 20),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}

	cmd := serverCommand(t, "VM_USER=54321:20", "VM_CLAUDE="+publicSelf(t),
		"VM_WORKSPACE=/", "VM_MCP_CONFIG="+path, "CLAUDE_CONFIG_DIR="+folder+"/settings")
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = []string{setpriv, "--bounding-set=-all,+setuid,+setgid,+kill", "--", cmd.Path}
	cmd.Path = setpriv
	s := startCommand(t, cmd)

	s.goesOn()
	if strings.Contains(s.stderr.String(), "no credentials are set") {
		t.Errorf("a warning of what it can't know:\n%s", s.stderr)
	}
}

func TestAnAgentThatWouldBeRootIsRefused(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to be that agent")
	got := refusedStart(t, "IS_SANDBOX=", "VM_USER=0:0")
	if !strings.Contains(got, `VM_USER="0:0": Claude Code refuses to run as root; name another user`) {
		t.Errorf("it says %q", got)
	}
	startServer(t, "IS_SANDBOX=1", "VM_USER=0:0").goesOn() // the control
}

// Every command would fail. The program and the folder are tried as the agent's user.
func TestWhatTheAgentCannotStartWithIsRefused(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to start another user's agent")
	claude := publicSelf(t)
	folder := filepath.Dir(claude)
	file := func(name, text string, mode os.FileMode) string {
		path := folder + "/" + name
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, mode := range map[string]os.FileMode{"closed": 0o700, "open": 0o755} {
		if err := errors.Join(os.Mkdir(folder+"/"+name, mode), os.Chmod(folder+"/"+name, mode)); err != nil {
			t.Fatal(err)
		}
	}
	const program, place = "cannot start Claude Code (VM_CLAUDE)", "cannot use VM_WORKSPACE"
	for _, test := range []struct{ name, claude, workspace, want string }{
		{"a text that is no program", file("text", "claude\n", 0o755), "open", program},
		{"a script whose interpreter isn't there", file("script", "#!/no/such/sh\n", 0o755), "open", program},
		{"a program that only root may execute", file("roots", "#!/bin/sh\n", 0o700), "open", program},
		{"a workspace that only root may enter", claude, "closed", place},
		{"both are right", claude, "open", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := []string{"VM_USER=54321:20", "VM_CLAUDE=" + test.claude, "VM_WORKSPACE=" + folder + "/" + test.workspace}
			if test.want == "" {
				startServer(t, env...).goesOn()
				return
			}
			if got := refusedStart(t, env...); !strings.Contains(got, test.want) || !strings.Contains(got, "let the agent's user (VM_USER)") {
				t.Errorf("it says %q", got)
			}
		})
	}
}

// What the agent can read although it may be a secret is named, and its value is not.
func TestASecretThatTheAgentCanReadIsNamedInAWarning(t *testing.T) {
	t.Parallel()
	for entry, warns := range map[string]bool{
		"GH_TOKEN=sesame":                    true,
		"GITHUB_TOKEN=sesame":                true,
		"AWS_SECRET_ACCESS_KEY=sesame":       true,
		"AWS_SESSION_TOKEN=sesame":           true,
		"MY_SECRET=sesame":                   true,
		"DB_PASSWORD=sesame":                 true,
		"OPENAI_API_KEY=sesame":              true,
		"ANTHROPIC_CUSTOM_HEADERS=X: sesame": true, // since no key is there, whose proxy would send them
		"HTTPS_PROXY=http://me:sesame@proxy": true,
		"DATABASE_URL=db://me:sesame@db/x":   true,

		"HTTPS_PROXY=http://proxy:3128":       false,
		"AWS_REGION=sesame":                   false,
		"CLAUDE_CODE_MAX_OUTPUT_TOKENS=32000": false,
		"GH_TOKEN=":                           false,
	} {
		name, _, _ := strings.Cut(entry, "=")
		t.Run(name, func(t *testing.T) { // without the value, which would be in the workspace's path
			t.Parallel()
			s := startServer(t, entry)
			log := s.stderr.String()
			if got := strings.Contains(log, "variable="+name+"\n"); got != warns || strings.Contains(log, "sesame") {
				t.Errorf("a warning: %v, want %v, without the value:\n%s", got, warns, log)
			}
		})
	}
}

// The gateway gets them all the same.
func TestTheAgentHasNoCustomHeaders(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header })
	for proxied, holds := range map[string]bool{"true": false, "false": true} { // the control
		s := startServer(t, "ANTHROPIC_API_KEY="+realKey, "ANTHROPIC_BASE_URL="+api.URL, "VM_KEY_PROXY="+proxied,
			"ANTHROPIC_CUSTOM_HEADERS=X-Tenant: sesame\nX-Other:  b")
		if got := strings.Contains(strings.Join(s.describe("").Env, "\n"), "sesame"); got != holds {
			t.Errorf("VM_KEY_PROXY=%s: the agent has them: %v", proxied, got)
		}
		if proxied == "true" {
			s.ask("asks-the-api")
			header := <-seen
			if got := []string{header.Get("X-Tenant"), header.Get("X-Other")}; !slices.Equal(got, []string{"sesame", "b"}) {
				t.Errorf("the API gets %q", got)
			}
		}
	}
}

func TestATokenFileThatTheAgentCanReadWarns(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to start another user's agent")
	claude := publicSelf(t)
	for _, test := range []struct {
		name  string
		mode  os.FileMode
		user  string
		warns bool
	}{
		{"of root alone", 0o600, "54321:20", false},
		{"of everybody", 0o644, "54321:20", true},
		{"of its group", 0o640, "54321:0", true},
		{"of another group", 0o640, "54321:20", false},
		{"of root, as which the agent runs too", 0o600, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, "token", "correct")
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			s := startServer(t, "VM_TOKEN_FILE="+path, "VM_CLAUDE="+claude, "VM_WORKSPACE=/", "VM_USER="+test.user)
			log := s.stderr.String()
			if got := strings.Contains(log, "variable=VM_TOKEN_FILE"); got != test.warns {
				t.Errorf("a warning: %v, want %v:\n%s", got, test.warns, log)
			}
			isSame := strings.Contains(log, "server and agent are the same user")
			if isSame != (test.user == "") {
				t.Errorf("a warning that both are one user: %v:\n%s", isSame, log)
			}
		})
	}
}
