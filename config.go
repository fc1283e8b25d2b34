package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"
)

// The whole configuration, read once from the environment at the start. What can't
// work, or would let anybody on the network run an agent, is refused with the name
// of the variable and the remedy; never with a secret.

// config is not changed once loadConfig has returned it. The tags are the truth:
// -h and the table in docs/configuration.md are printed from them.
type config struct {
	Addr          string        `default:"127.0.0.1:3001" desc:"listen address; the image sets :3001"`
	Token         string        `desc:"bearer token that POST /command asks for; white space around it is taken off"`
	TokenFile     string        `split_words:"true" desc:"file to read the token from, such as a mounted secret"`
	AllowNoToken  bool          `split_words:"true" default:"false" desc:"serve a non-loopback address without a token; otherwise such a start is refused"`
	Claude        string        `default:"claude" desc:"the Claude Code CLI: a name on PATH or a path"`
	ClaudeArgs    string        `split_words:"true" desc:"further CLI arguments, split at spaces, such as --model opus --max-budget-usd 5"`
	Workspace     string        `default:"." desc:"working directory of every command; the image: /workspace"`
	MCPConfig     string        `split_words:"true" desc:"passed as --mcp-config FILE --strict-mcp-config; the image: its .mcp.json"`
	User          string        `desc:"user that the agent runs as, a name or uid:gid, needs a root server; HOME, USER and groups follow it; the image: node"`
	Timeout       time.Duration `default:"10m" desc:"RuntimeMaxSec of one command, counted from its start, not from its place in the queue"`
	StopGrace     time.Duration `split_words:"true" default:"5s" desc:"TimeoutStopSec: between SIGINT and SIGTERM, and between SIGTERM and SIGKILL"`
	ExitGrace     time.Duration `split_words:"true" default:"2s" desc:"how long the CLI may stay silent after its result before it is stopped"`
	Queue         int           `default:"8" desc:"commands that may wait while one runs; first come, first served"`
	MaxBody       int64         `split_words:"true" default:"8388608" desc:"largest request body, bytes (photos come as base64)"`
	Heartbeat     time.Duration `default:"15s" desc:"how often a waiting client is sent a byte; 0 sends none"`
	ShutdownGrace time.Duration `split_words:"true" default:"30s" desc:"how long the running command may still take after SIGTERM to the server"`
	KeyProxy      bool          `split_words:"true" default:"true" desc:"with ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN or ANTHROPIC_AUTH_TOKEN set: the agent gets a placeholder and a loopback base URL, the server alone holds the secret"`
	GitToken      string        `split_words:"true" desc:"token, or user:token, for git over https at VM_GIT_HOST, which the server uses in the agent's stead"`
	GitTokenFile  string        `split_words:"true" desc:"file to read that token from"`
	GitHost       string        `split_words:"true" default:"github.com" desc:"host that VM_GIT_TOKEN is for"`
	Warm          bool          `default:"true" desc:"keeps the next CLI started and waiting, so that an answer does not pay for its start-up"`

	agent  account
	api    *url.URL // the model's; it may hold a login, so print its Host alone
	apiKey string
	bearer string // a subscription's or a gateway's token, which the CLI may send beside the key

	// With KeyProxy the agent doesn't get the secrets; keyProxied says whether it has a
	// proxy for them, or needs none.
	keyProxied bool
}

// maxBody is what the CLI surely takes: it refuses more than 10 MB (measured),
// and JSON can make a prompt longer than its body was.
const maxBody = 8 << 20

// usage is the format of what -h prints.
const usage = "vm-server answers POST /command by running Claude Code. " +
	"It is set by environment variables:\n" +
	"{{range .}}\n{{usage_key .}}{{with usage_default .}} (default {{.}}){{end}}\n" +
	"  {{usage_description .}}\n{{end}}"

// loadConfig reads and completes the configuration. It warns of what works but is
// weaker than it could be.
func loadConfig(log *slog.Logger) (*config, error) {
	c := &config{}
	err := readEnvironment(c)
	if err != nil {
		return nil, err
	}

	steps := []func(*slog.Logger) error{
		c.readTokens,
		c.checkGit,
		c.checkNumbers,
		c.checkAddr,
		c.findUser,
		c.findAPI,
		c.findKey,
		c.findPrograms,
		c.checkArgs,
	}
	for _, step := range steps {
		err := step(log)
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *config) readTokens(*slog.Logger) (err error) {
	c.Token, err = readToken("VM_TOKEN", c.Token, c.TokenFile)
	if err == nil {
		c.GitToken, err = readToken("VM_GIT_TOKEN", c.GitToken, c.GitTokenFile)
	}
	return err
}

// readToken takes a token from its file, if it has one, and the white space off that
// such files end with. A blank token is none, and a mistake.
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
	if strings.ContainsFunc(token, unicode.IsControl) {
		return "", fmt.Errorf("cannot use %s: no client can send a token with a control character; "+
			"put it on one line", source)
	}
	return token, nil
}

// withoutPath is what the system says of a file, without its name: some put the secret
// itself where the name of its file belongs.
func withoutPath(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Err
	}
	return err
}

// longest is so long that no sum of durations overflows.
const longest = 1000 * time.Hour

func (c *config) checkNumbers(*slog.Logger) error {
	durations := []struct {
		name   string
		value  time.Duration
		mayBe0 bool
	}{
		{"VM_TIMEOUT", c.Timeout, false},
		{"VM_STOP_GRACE", c.StopGrace, false},
		{"VM_EXIT_GRACE", c.ExitGrace, false},
		{"VM_HEARTBEAT", c.Heartbeat, true},
		{"VM_SHUTDOWN_GRACE", c.ShutdownGrace, true},
	}
	for _, d := range durations {
		isTooShort := d.value < 0 || d.value == 0 && !d.mayBe0
		if isTooShort || d.value > longest {
			return fmt.Errorf("cannot use %s=%v: give a duration such as 5s, %v at most",
				d.name, d.value, longest)
		}
	}

	if c.Queue < 0 {
		return fmt.Errorf("cannot use VM_QUEUE=%d: give 0 or more", c.Queue)
	}
	if c.MaxBody < 1 || c.MaxBody > maxBody {
		return fmt.Errorf("cannot use VM_MAX_BODY=%d: give 1 to %d", c.MaxBody, maxBody)
	}
	return nil
}

// checkAddr refuses to let the network in without a token.
func (c *config) checkAddr(log *slog.Logger) error {
	host, port, err := net.SplitHostPort(c.Addr)
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
			"as whoever reaches it could run anything: "+
			"set VM_TOKEN or VM_TOKEN_FILE (or VM_ALLOW_NO_TOKEN=true, if you mean it)", c.Addr)
	}
	log.Warn("no token is set: whoever reaches the port and names a loopback Host can run anything")
	return nil
}

// isLoopback says whether a host, without its port, can only mean this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
