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
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// config is the whole configuration. The tags are the truth: -h and the table
// in README.md are printed from them.
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

	api        *url.URL            // the model's
	credential *syscall.Credential // of VM_USER; nil where the agent runs as the server's own user
	home       string              // the agent's
	keyless    bool                // the agent doesn't get ANTHROPIC_API_KEY, whether it gets a proxy for it or needs none
}

// maxBody is what the CLI surely takes: it refuses more than 10 MB (measured),
// and JSON can make a prompt longer than its body was.
const maxBody = 8 << 20

// usage is the format of what -h prints.
const usage = "vm-server answers POST /command by running Claude Code. It is set by environment variables:\n" +
	"{{range .}}\n{{usage_key .}}{{with usage_default .}} (default {{.}}){{end}}\n  {{usage_description .}}\n{{end}}"

// loadConfig reads the environment, and refuses what can't work or would let
// anybody on the network run an agent. Its errors name the variable and the
// remedy and never hold the token, which is a string and so can't fail to parse.
func loadConfig(log *slog.Logger) (*config, error) {
	c := &config{}
	if err := cmp.Or(envconfig.CheckDisallowed("vm", c), envconfig.Process("vm", c)); err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w; vm-server -h lists the variables and their defaults", err)
	}
	if c.TokenFile != "" {
		data, err := os.ReadFile(c.TokenFile)
		token := strings.TrimSpace(string(data))
		if token == "" || c.Token != "" {
			return nil, fmt.Errorf("cannot use VM_TOKEN_FILE: %w; put the token in it and unset VM_TOKEN", cmp.Or(err, errors.New("it is empty, or VM_TOKEN is set too")))
		}
		c.Token = token
	}
	host, _, err := net.SplitHostPort(c.Addr)
	open := c.Token == "" && !isLoopback(host)
	switch {
	case min(c.Timeout, c.StopGrace, c.ExitGrace) <= 0:
		return nil, errors.New("cannot use a VM_TIMEOUT, VM_STOP_GRACE or VM_EXIT_GRACE of 0 or less: give a duration such as 5s")
	case min(c.Heartbeat, c.ShutdownGrace) < 0 || c.Queue < 0:
		return nil, errors.New("cannot use a VM_HEARTBEAT, VM_SHUTDOWN_GRACE or VM_QUEUE below 0: give 0 or more")
	case c.MaxBody < 1 || c.MaxBody > maxBody:
		return nil, fmt.Errorf("cannot use VM_MAX_BODY=%d: give 1 to %d", c.MaxBody, maxBody)
	case err != nil:
		return nil, fmt.Errorf("cannot use VM_ADDR=%q: %w; give HOST:PORT such as 127.0.0.1:3001", c.Addr, err)
	case open && !c.AllowNoToken:
		return nil, fmt.Errorf("cannot serve VM_ADDR=%q without a token, as whoever reaches it could run anything: set VM_TOKEN or VM_TOKEN_FILE (or VM_ALLOW_NO_TOKEN=true, if you mean it)", c.Addr)
	case open:
		log.Warn("no token is set: whoever reaches the port and names a loopback Host can run anything")
	}
	c.keyless = c.KeyProxy
	for _, name := range []string{"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"} {
		value, cloud := strings.ToLower(os.Getenv(name)), strings.HasPrefix(name, "CLAUDE_CODE_USE_")
		if value == "" || cloud && !slices.Contains([]string{"1", "true", "yes", "on"}, value) { // as the CLI reads it (measured)
			continue
		}
		log.Warn("the agent can read these credentials, as only ANTHROPIC_API_KEY can be kept from it", "variable", name)
		c.KeyProxy = c.KeyProxy && !cloud
	}
	c.KeyProxy = c.KeyProxy && os.Getenv("ANTHROPIC_API_KEY") != ""
	if c.api, err = url.Parse(cmp.Or(os.Getenv("ANTHROPIC_BASE_URL"), "https://api.anthropic.com")); err != nil || c.api.Host == "" {
		return nil, errors.New("cannot use ANTHROPIC_BASE_URL: give a URL such as https://api.anthropic.com")
	}
	return c, cmp.Or(c.findPaths(), c.findUser(log))
}

// isLoopback says whether a host, without its port, can only mean this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// findPaths makes paths absolute, as the agent starts in the workspace.
func (c *config) findPaths() (err error) {
	if c.Claude, err = exec.LookPath(c.Claude); err != nil {
		return fmt.Errorf("cannot find Claude Code (VM_CLAUDE): %w; install it: npm install -g @anthropic-ai/claude-code", err)
	}
	for name, path := range map[string]*string{"VM_CLAUDE": &c.Claude, "VM_WORKSPACE": &c.Workspace, "VM_MCP_CONFIG": &c.MCPConfig} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err == nil {
			_, err = os.Stat(*path)
		}
		if err != nil {
			return fmt.Errorf("cannot use %s: %w; create it or name another", name, err)
		}
	}
	return nil
}

// findUser decides which user the agent runs as.
func (c *config) findUser(log *slog.Logger) error {
	self := os.Geteuid()
	c.home = os.Getenv("HOME")
	if c.User == "" {
		if self == 0 && os.Getenv("IS_SANDBOX") != "1" {
			log.Warn("the server is root and VM_USER is not set: Claude Code refuses to run as root; set VM_USER to an ordinary user (or IS_SANDBOX=1 where a container is the sandbox)")
		}
		return nil
	}
	account, err := user.Lookup(c.User)
	if err != nil {
		return fmt.Errorf("cannot use VM_USER=%q: %w; name a user of this machine", c.User, err)
	}
	groups, err := account.GroupIds()
	var ids []uint32
	for _, text := range append([]string{account.Uid, account.Gid}, groups...) {
		id, bad := strconv.ParseUint(text, 10, 32)
		ids, err = append(ids, uint32(id)), cmp.Or(err, bad)
	}
	c.home = account.HomeDir
	switch {
	case err != nil:
		return fmt.Errorf("cannot read the ids of VM_USER=%q: %w", c.User, err)
	case self == 0:
		c.credential = &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}
	case self != int(ids[0]):
		return fmt.Errorf("cannot run the agent as VM_USER=%q: the server is not root; start it as root or as that user, or set VM_USER to nothing", c.User)
	default:
		log.Warn("server and agent are the same user: the agent can stop the server; start the server as root to keep them apart")
	}
	return nil
}

// agentEnv is the agent's environment: the server's without its configuration,
// which holds the token. Of a variable that is there twice the last counts.
func (c *config) agentEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "VM_") || c.keyless && strings.HasPrefix(entry, "ANTHROPIC_API_KEY=")
	})
	if c.User != "" {
		env = append(env, "HOME="+c.home, "USER="+c.User, "LOGNAME="+c.User)
	}
	return env
}
