package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"unicode"
)

// The model's API: where it is, by which credentials it is asked, and which of them
// the agent can read.

// findAPI reads where the API is.
func (c *config) findAPI(*slog.Logger) (err error) {
	c.api, err = url.Parse(cmp.Or(os.Getenv("ANTHROPIC_BASE_URL"), "https://api.anthropic.com"))
	if err == nil {
		_, err = net.LookupPort("tcp", c.api.Port())
	}
	// It may hold a login, so neither it nor its error is quoted.
	refused := errors.New("cannot use ANTHROPIC_BASE_URL: " +
		"give a URL such as https://api.anthropic.com")
	if err != nil || c.api.Hostname() == "" {
		return refused
	}
	if c.api.Scheme != "https" && c.api.Scheme != "http" {
		return refused
	}
	return nil
}

// findKey decides whether the agent works by the key proxy, and warns of
// credentials that the agent can read, and of none at all.
func (c *config) findKey(log *slog.Logger) error {
	for _, name := range secrets {
		if strings.ContainsFunc(os.Getenv(name), unicode.IsControl) {
			return fmt.Errorf("cannot use %s: it holds a control character; "+
				"put it on one line", name)
		}
	}

	readable := c.readableCredentials()
	for _, name := range readable {
		log.Warn("the agent can read these credentials: a cloud's can't be kept from it, "+
			"others are with VM_KEY_PROXY on", "variable", name)
	}

	c.apiKey = os.Getenv("ANTHROPIC_API_KEY")
	// The CLI prefers a gateway's token to a subscription's (measured).
	c.bearer = cmp.Or(os.Getenv("ANTHROPIC_AUTH_TOKEN"), os.Getenv("CLAUDE_CODE_OAUTH_TOKEN"))
	hasSecret := c.apiKey != "" || c.bearer != "" || c.api.User != nil
	c.keyProxied = c.KeyProxy && hasSecret && !usesCloud()

	_, err := os.Stat(c.agent.settings + "/.credentials.json")
	mayHaveLogin := !errors.Is(err, fs.ErrNotExist) // the folder may be closed to the server
	if !hasSecret && len(readable) == 0 && !mayHaveLogin {
		log.Warn("no credentials are set: commands fail, " +
			"unless Claude Code's settings have another way to them; " +
			"set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN), or log in as the agent's user")
	}
	return nil
}

// clouds switch the CLI to an API with credentials of its own (measured).
var clouds = []string{
	"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY",
	"CLAUDE_CODE_USE_MANTLE", "CLAUDE_CODE_USE_ANTHROPIC_AWS",
	"CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",
}

func (c *config) readableCredentials() (names []string) {
	for _, name := range clouds {
		if isOn(os.Getenv(name)) {
			names = append(names, name)
		}
	}
	for _, name := range secrets {
		if !c.KeyProxy && os.Getenv(name) != "" {
			names = append(names, name)
		}
	}
	if !c.KeyProxy && c.api.User != nil {
		names = append(names, "ANTHROPIC_BASE_URL")
	}
	return names
}

// hasLoginOnly reports whether the login of ANTHROPIC_BASE_URL is the only secret. The
// CLI uses such a login beside a key, never without one (measured), so the agent then
// asks the proxy by a token.
func (c *config) hasLoginOnly() bool {
	return c.api.User != nil && c.apiKey == "" && c.bearer == ""
}

// usesCloud says whether the CLI asks a cloud's API, which needs no key and doesn't
// use ANTHROPIC_BASE_URL (measured).
func usesCloud() bool {
	return isOn(os.Getenv("CLAUDE_CODE_USE_BEDROCK")) || isOn(os.Getenv("CLAUDE_CODE_USE_VERTEX"))
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
