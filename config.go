package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// The whole configuration, read once from the environment at the start. What can't
// work, or would let anybody on the network run an agent, is refused with the name
// of the variable and the remedy; never with a secret.

// config is not changed once loadConfig has returned it. The tags are the truth:
// -h and the table in README.md are printed from them.
type config struct {
	Addr          string        `default:"127.0.0.1:3001" desc:"listen address; the image sets :3001"`
	Token         string        `desc:"bearer token that POST /command asks for"`
	TokenFile     string        `split_words:"true" desc:"file to read the token from, such as a mounted secret"`
	AllowNoToken  bool          `split_words:"true" default:"false" desc:"serve a non-loopback address without a token; otherwise such a start is refused"`
	Claude        string        `default:"claude" desc:"the Claude Code CLI: a name on PATH or a path"`
	ClaudeArgs    string        `split_words:"true" desc:"further CLI arguments, split at spaces, such as --model opus --max-budget-usd 5"`
	Workspace     string        `default:"." desc:"working directory of every command; the image: /workspace"`
	MCPConfig     string        `split_words:"true" desc:"passed as --mcp-config FILE --strict-mcp-config; the image: its .mcp.json"`
	User          string        `desc:"user that the agent runs as, needs a root server; HOME, USER and groups follow it; the image: node"`
	Timeout       time.Duration `default:"10m" desc:"RuntimeMaxSec of one command, counted from its start, not from its place in the queue"`
	StopGrace     time.Duration `split_words:"true" default:"5s" desc:"TimeoutStopSec: between SIGINT and SIGTERM, and between SIGTERM and SIGKILL"`
	ExitGrace     time.Duration `split_words:"true" default:"2s" desc:"how long the CLI may stay silent after its result before it is stopped"`
	Queue         int           `default:"8" desc:"commands that may wait while one runs; first come, first served"`
	MaxBody       int64         `split_words:"true" default:"1048576" desc:"largest request body, bytes"`
	Heartbeat     time.Duration `default:"15s" desc:"how often a waiting client is sent a byte; 0 sends none"`
	ShutdownGrace time.Duration `split_words:"true" default:"30s" desc:"how long the running command may still take after SIGTERM to the server"`
	KeyProxy      bool          `split_words:"true" default:"true" desc:"with ANTHROPIC_API_KEY set: the agent gets a placeholder and a loopback base URL, the server alone holds the key"`
	Warm          bool          `default:"true" desc:"keeps the next CLI started and waiting, so that an answer does not pay for its start-up"`

	agent     account
	api       *url.URL // the model's; it may hold a login, so print its Host alone
	apiKey    string
	authToken string // a gateway's, which the CLI sends beside the key

	// KeyProxy is what was asked for; these are what is in effect.
	keyProxied  bool // the agent works by the key proxy
	keyWithheld bool // the agent doesn't get the key, whether it has a proxy for it or needs none
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
	// Neither error can hold the token, a string, which is never parsed.
	err := cmp.Or(envconfig.CheckDisallowed("vm", c), envconfig.Process("vm", c))
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w; "+
			"vm-server -h lists the variables and their defaults", err)
	}

	steps := []func(*slog.Logger) error{
		c.readToken,
		c.checkNumbers,
		c.checkAddr,
		c.findKey,
		c.findPaths,
		c.findUser,
	}
	for _, step := range steps {
		err := step(log)
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *config) readToken(*slog.Logger) error {
	if c.TokenFile == "" {
		return nil
	}

	data, err := os.ReadFile(c.TokenFile)
	token := strings.TrimSpace(string(data))
	if token == "" && err == nil {
		err = errors.New("it is empty")
	}
	if c.Token != "" {
		err = errors.New("VM_TOKEN is set too")
	}
	if err != nil {
		return fmt.Errorf("cannot use VM_TOKEN_FILE: %w; "+
			"put the token in it and unset VM_TOKEN", err)
	}
	c.Token = token
	return nil
}

func (c *config) checkNumbers(*slog.Logger) error {
	if min(c.Timeout, c.StopGrace, c.ExitGrace) <= 0 {
		return errors.New("cannot use a VM_TIMEOUT, VM_STOP_GRACE or VM_EXIT_GRACE of 0 or less: " +
			"give a duration such as 5s")
	}
	if min(c.Heartbeat, c.ShutdownGrace) < 0 || c.Queue < 0 {
		return errors.New("cannot use a VM_HEARTBEAT, VM_SHUTDOWN_GRACE or VM_QUEUE below 0: " +
			"give 0 or more")
	}
	if c.MaxBody < 1 || c.MaxBody > maxBody {
		return fmt.Errorf("cannot use VM_MAX_BODY=%d: give 1 to %d", c.MaxBody, maxBody)
	}
	return nil
}

// checkAddr refuses to let the network in without a token.
func (c *config) checkAddr(log *slog.Logger) error {
	host, _, err := net.SplitHostPort(c.Addr)
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

// findKey decides whether the agent works by the key proxy, and warns of
// credentials that the agent can read.
func (c *config) findKey(log *slog.Logger) (err error) {
	const readable = "the agent can read these credentials, " +
		"as only ANTHROPIC_API_KEY can be kept from it"

	usesCloud := false
	for _, name := range []string{"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"} {
		if isOn(os.Getenv(name)) {
			log.Warn(readable, "variable", name)
			usesCloud = true // which needs no key, and doesn't use ANTHROPIC_BASE_URL (measured)
		}
	}
	for _, name := range []string{"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"} {
		if os.Getenv(name) != "" {
			log.Warn(readable, "variable", name)
		}
	}

	c.apiKey = os.Getenv("ANTHROPIC_API_KEY")
	c.authToken = strings.TrimSpace(os.Getenv("ANTHROPIC_AUTH_TOKEN"))
	c.keyWithheld = c.KeyProxy
	c.keyProxied = c.KeyProxy && c.apiKey != "" && !usesCloud

	c.api, err = url.Parse(cmp.Or(os.Getenv("ANTHROPIC_BASE_URL"), "https://api.anthropic.com"))
	if err != nil || c.api.Host == "" {
		return errors.New("cannot use ANTHROPIC_BASE_URL: " +
			"give a URL such as https://api.anthropic.com")
	}
	return nil
}

// isOn reads a switch as the CLI does (measured).
func isOn(value string) bool {
	switch strings.ToLower(value) {
	case "1", "true", "yes", "on":
		return true
	default:
		return false
	}
}

// findPaths makes paths absolute, as the agent starts in the workspace.
func (c *config) findPaths(*slog.Logger) (err error) {
	c.Claude, err = exec.LookPath(c.Claude)
	if err != nil {
		return fmt.Errorf("cannot find Claude Code (VM_CLAUDE): %w; "+
			"install it: npm install -g @anthropic-ai/claude-code", err)
	}

	paths := map[string]*string{
		"VM_CLAUDE":     &c.Claude,
		"VM_WORKSPACE":  &c.Workspace,
		"VM_MCP_CONFIG": &c.MCPConfig,
	}
	for name, path := range paths {
		if *path == "" {
			continue
		}
		*path, err = filepath.Abs(*path)
		if err == nil {
			_, err = os.Stat(*path)
		}
		if err != nil {
			return fmt.Errorf("cannot use %s: %w; create it or name another", name, err)
		}
	}
	return nil
}
