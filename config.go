package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kelseyhightower/envconfig"
)

// config is not changed after loadConfig has returned it. The tags are the source of -h
// and of the table in docs/configuration.md.
type config struct {
	Addr          string        `default:"127.0.0.1:3001" desc:"listen address; the image sets :3001"`
	Token         string        `desc:"bearer token that POST /command asks for; surrounding white space is trimmed"`
	TokenFile     string        `split_words:"true" desc:"file to read the token from, such as a mounted secret"`
	AllowNoToken  bool          `split_words:"true" default:"false" desc:"serve a non-loopback address without a token; otherwise such a start is refused"`
	Claude        string        `default:"claude" desc:"the Claude Code CLI: a name on PATH or a path"`
	ClaudeArgs    string        `split_words:"true" desc:"further CLI arguments, split at spaces, such as --model opus --max-budget-usd 5"`
	Workspace     string        `default:"." desc:"working directory of every command; the image: /workspace"`
	MCPConfig     string        `split_words:"true" desc:"passed as --mcp-config FILE --strict-mcp-config; the image: its .mcp.json"`
	User          string        `desc:"user that the agent runs as, a name or uid:gid, needs a root server; HOME, USER and groups follow it; the image: node"`
	Timeout       time.Duration `default:"10m" desc:"maximum run time of one command (RuntimeMaxSec); time spent in the queue does not count"`
	StopGrace     time.Duration `split_words:"true" default:"5s" desc:"time between SIGINT and SIGTERM, and between SIGTERM and SIGKILL (TimeoutStopSec)"`
	ExitGrace     time.Duration `split_words:"true" default:"2s" desc:"how long the CLI may stay silent after its result before it is stopped"`
	Queue         int           `default:"8" desc:"commands that may wait while one runs, first come, first served; without a token none may wait"`
	MaxBody       int64         `split_words:"true" default:"8388608" desc:"largest request body, bytes (photos come as base64)"`
	MaxFile       int64         `split_words:"true" default:"104857600" desc:"largest file of PUT /files/inbox/NAME, bytes"`
	Heartbeat     time.Duration `default:"15s" desc:"how often a waiting client is sent a byte; 0 sends none"`
	ShutdownGrace time.Duration `split_words:"true" default:"30s" desc:"how long the running command may still take after SIGTERM to the server"`
	KeyProxy      bool          `split_words:"true" default:"true" desc:"with ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN or ANTHROPIC_AUTH_TOKEN set: the agent gets a placeholder and a loopback base URL, only the server holds the secret"`
	GitToken      string        `split_words:"true" desc:"token, or user:token, for git over https at VM_GIT_HOST, which the server uses on the agent's behalf"`
	GitTokenFile  string        `split_words:"true" desc:"file to read that token from"`
	GitHost       string        `split_words:"true" default:"github.com" desc:"host that VM_GIT_TOKEN is for"`
	UpstreamProxy string        `split_words:"true" desc:"HTTP proxy, with a login, for the server's own requests to the model's API and the git host; the agent never gets it"`
	Warm          bool          `default:"true" desc:"keeps the next CLI started and waiting, so that an answer does not pay for its start-up"`

	agent       agentUser
	credentials credentials
	tls         *tls.Config // of the server's own connections
	proxy       *url.URL    // VM_UPSTREAM_PROXY, nil for none
	mcpServers  int         // how many processes MCPConfig starts
}

// maxBody is what the CLI surely takes: it rejects more than 10 MB (measured), and JSON
// can make a prompt longer than its body was.
const maxBody = 8 << 20

const (
	minBody  = len(`{"command":"x"}`)
	maxFile  = 1 << 40
	maxToken = 8 << 10 // bytes, which leaves room for a request's other headers
)

// maxDuration is so short that no sum of durations overflows.
const maxDuration = 1000 * time.Hour

// usage is the format of -h.
const usage = "vm-server answers POST /command by running Claude Code. " +
	"It is configured through environment variables:\n" +
	"{{range .}}\n{{usage_key .}}{{with usage_default .}} (default {{.}}){{end}}\n" +
	"  {{usage_description .}}\n{{end}}"

// loadConfig reads the environment and checks that commands can work with it. An error
// names the variable and the remedy, and never contains a secret. What works but is weaker
// than it could be is logged.
func loadConfig(log *slog.Logger) (*config, error) {
	c, err := parseEnvironment()
	if err != nil {
		return nil, err
	}

	c.Token, err = readToken("VM_TOKEN", c.Token, c.TokenFile)
	if err != nil {
		return nil, err
	}
	c.GitToken, err = readToken("VM_GIT_TOKEN", c.GitToken, c.GitTokenFile)
	if err != nil {
		return nil, err
	}
	c.agent, err = resolveUser(c.User, log)
	if err != nil {
		return nil, err
	}
	c.credentials, err = loadCredentials(c.KeyProxy, c.agent, log)
	if err != nil {
		return nil, err
	}

	checks := []func() error{
		c.checkNumbers, c.checkGit, c.resolveClaude, c.resolveWorkspace, c.resolveMCP,
		c.checkArgs, c.checkUpstreamProxy, c.checkStart,
	}

	for _, check := range checks {
		err := check()
		if err != nil {
			return nil, err
		}
	}

	if c.Token == "" {
		c.Queue = 0 // or the agent could leave a command behind that outlives it
	}
	if c.credentials.proxied || c.GitToken != "" {
		c.tls, err = loadTLS()
		if err != nil {
			return nil, err
		}
	}
	warnOfExposed(c, log)
	return c, c.checkAddr(log)
}

// parseEnvironment fills in the variables. An empty one is as if it were not set, and one
// that does not exist is an error.
func parseEnvironment() (*config, error) {
	c := &config{}
	var names bytes.Buffer
	err := envconfig.Usagef("vm", c, &names, "{{range .}}{{usage_key .}} {{end}}")
	if err != nil {
		return nil, fmt.Errorf("cannot list the variables: %w", err)
	}
	known := strings.Fields(names.String())

	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case slices.Contains(credentialVars, name):
			os.Setenv(name, strings.TrimSpace(value)) // as $(cat FILE) leaves a newline
		case !strings.HasPrefix(name, "VM_"):
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("cannot use %s: there is no such variable; "+
				"vm-server -h lists them (if Kubernetes sets it for a Service named vm: "+
				"enableServiceLinks: false in the pod's spec)", name)
		case value == "":
			os.Unsetenv(name)
		}
	}

	return c, describeParseError(envconfig.Process("vm", c))
}

// describeParseError names what would be right instead of a value that cannot be parsed.
// No secret is ever parsed: those are strings.
func describeParseError(err error) error {
	var parse *envconfig.ParseError
	if !errors.As(err, &parse) {
		return err
	}

	right := "a number such as 8"
	switch parse.TypeName {
	case "time.Duration":
		right = "a duration such as 10m"
	case "bool":
		right = "true or false"
	}
	return fmt.Errorf("cannot use %s=%q: give %s", parse.KeyName, parse.Value, right)
}

// readToken returns a token, or reads it from its file if there is one.
func readToken(name, token, file string) (string, error) {
	source := name
	if file != "" {
		source = name + "_FILE"
		if token != "" {
			return "", fmt.Errorf("cannot use %s: %s is set too; unset one of them", source, name)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("cannot use %s: %w; "+
				"name a file, and put the token in it", source, withoutPath(err))
		}

		token = string(data)
		if strings.TrimSpace(token) == "" {
			return "", fmt.Errorf("cannot use %s: it is empty; put the token in it", source)
		}
	}

	if token == "" {
		return "", nil
	}

	token = strings.TrimSpace(token)
	if token == "" {
		return "", fmt.Errorf("cannot use %s: it is blank; set a token, or unset it", name)
	}
	isInvisible := func(char rune) bool { return unicode.In(char, unicode.Cc, unicode.Cf) }
	if strings.ContainsFunc(token, isInvisible) {
		return "", fmt.Errorf("cannot use %s: no client can send a token with a control "+
			"character or a byte order mark; put it on one line, in plain text", source)
	}

	if len(token) > maxToken {
		return "", fmt.Errorf("cannot use %s: it has %d bytes, more than a header may have; "+
			"use a token of %d at most", source, len(token), maxToken)
	}

	return token, nil
}

// withoutPath removes the file's name from an error, since some people put the secret
// itself where the name of its file belongs.
func withoutPath(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Err
	}
	return err
}

func (c *config) checkNumbers() error {
	durations := []struct {
		name      string
		value     time.Duration
		allowZero bool
	}{
		{"VM_TIMEOUT", c.Timeout, false},
		{"VM_STOP_GRACE", c.StopGrace, false},
		{"VM_EXIT_GRACE", c.ExitGrace, false},
		{"VM_HEARTBEAT", c.Heartbeat, true},
		{"VM_SHUTDOWN_GRACE", c.ShutdownGrace, true},
	}

	for _, d := range durations {
		isTooShort := d.value < 0 || d.value == 0 && !d.allowZero
		if isTooShort || d.value > maxDuration {
			return fmt.Errorf("cannot use %s=%v: give a duration such as 5s, %v at most",
				d.name, d.value, maxDuration)
		}
	}

	if c.Queue < 0 {
		return fmt.Errorf("cannot use VM_QUEUE=%d: give 0 or more", c.Queue)
	}
	if c.MaxBody < int64(minBody) || c.MaxBody > maxBody {
		return fmt.Errorf("cannot use VM_MAX_BODY=%d: give %d to %d", c.MaxBody, minBody, maxBody)
	}
	if c.MaxFile < 1 || c.MaxFile > maxFile {
		return fmt.Errorf("cannot use VM_MAX_FILE=%d: give 1 to %d", c.MaxFile, maxFile)
	}
	return nil
}

// checkAddr refuses to serve the network without a token.
func (c *config) checkAddr(log *slog.Logger) error {
	host, port, err := net.SplitHostPort(c.Addr)
	if err == nil && port == "" { // which would be any port
		err = errors.New("its port is missing")
	}
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("cannot use VM_ADDR=%q: %w; "+
			"give HOST:PORT such as 127.0.0.1:3001", c.Addr, err)
	}

	if c.Token != "" || isLoopback(host) {
		return nil
	}
	if !c.AllowNoToken {
		return fmt.Errorf("cannot serve VM_ADDR=%q without a token, "+
			"because anyone who can reach it could run anything: "+
			"set VM_TOKEN or VM_TOKEN_FILE (or VM_ALLOW_NO_TOKEN=true, if you mean it)", c.Addr)
	}

	log.Warn("no VM_TOKEN is set: anyone who can reach this port " +
		"with a loopback Host header can run commands")
	return nil
}

// isLoopback reports whether a host, without its port, can only mean this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// resolveMCP rejects a file that the CLI rejects (measured). A server in it that does not
// work is no reason: each answer has its status.
func (c *config) resolveMCP() (err error) {
	if c.MCPConfig == "" {
		return nil
	}
	c.MCPConfig, err = filepath.Abs(c.MCPConfig)
	if err == nil {
		c.mcpServers, err = readMCPConfig(c.MCPConfig)
	}
	isOnlyTheAgents := c.agent.credential != nil && errors.Is(err, fs.ErrPermission)
	if err != nil && !isOnlyTheAgents {
		return fmt.Errorf("cannot use VM_MCP_CONFIG: %w; "+
			`name a file of JSON such as {"mcpServers": {}}, or unset it`, withoutPath(err))
	}

	return nil
}

// readMCPConfig returns how many servers of a file are processes. No error quotes path: it
// may be the JSON itself, with its keys.
func readMCPConfig(path string) (servers int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, errors.New("it is a directory or a device")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}

	data = bytes.TrimPrefix(data, []byte("\ufeff")) // as the CLI does (measured)
	if !json.Valid(data) {
		return 0, errors.New("it is not JSON")
	}
	var members map[string]json.RawMessage // a struct would take mcpservers too
	var list map[string]json.RawMessage
	err = json.Unmarshal(data, &members)
	if err == nil {
		err = json.Unmarshal(members["mcpServers"], &list)
	}
	if err != nil || list == nil {
		return 0, errors.New("it has no object mcpServers")
	}
	for _, text := range list {
		var server struct{ Command string }
		err := json.Unmarshal(text, &server)
		if err == nil && server.Command != "" {
			servers++
		}
	}

	return servers, nil
}

// checkUpstreamProxy quotes nothing, because the URL may contain a login.
func (c *config) checkUpstreamProxy() (err error) {
	if c.UpstreamProxy == "" {
		return nil
	}
	c.proxy, err = url.Parse(c.UpstreamProxy)
	isProxy := err == nil && c.proxy.Hostname() != "" &&
		(c.proxy.Scheme == "http" || c.proxy.Scheme == "https")
	if !isProxy {
		return errors.New("cannot use VM_UPSTREAM_PROXY: " +
			"give a URL such as http://user:password@gateway:3128")
	}
	return nil
}

// checkArgs rejects a shell's quotes: there is no shell, so they would be part of an
// argument.
func (c *config) checkArgs() error {
	for word := range strings.FieldsSeq(c.ClaudeArgs) {
		isQuoted := strings.Trim(word, `"'`) != word
		isQuoted = isQuoted || strings.Contains(word, `="`) || strings.Contains(word, `='`)
		isQuoted = isQuoted || strings.Count(word, `"`)%2 == 1 // there was a space between two
		if isQuoted {
			return errors.New("cannot use the quotes in VM_CLAUDE_ARGS: it is split at spaces, " +
				"without a shell; put long texts into a file, as for --append-system-prompt-file")
		}
	}

	return nil
}
