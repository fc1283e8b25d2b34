package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
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
	if err == nil && c.api.Host != "" {
		if c.api.Scheme == "https" || c.api.Scheme == "http" {
			return nil
		}
	}
	// It may hold a login, so it is not quoted.
	return errors.New("cannot use ANTHROPIC_BASE_URL: give a URL such as https://api.anthropic.com")
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
		log.Warn("the agent can read these credentials, "+
			"as only ANTHROPIC_API_KEY can be kept from it", "variable", name)
	}
	c.apiKey = os.Getenv("ANTHROPIC_API_KEY")
	c.authToken = os.Getenv("ANTHROPIC_AUTH_TOKEN")
	c.keyWithheld = c.KeyProxy
	c.keyProxied = c.KeyProxy && c.apiKey != "" && !usesCloud()

	_, err := os.Stat(c.agent.settings + "/.credentials.json")
	hasLogin := err == nil
	if c.apiKey == "" && len(readable) == 0 && !hasLogin {
		log.Warn("no credentials are set: commands will fail; " +
			"set ANTHROPIC_API_KEY, or log in as the agent's user")
	}
	return nil
}

func (c *config) readableCredentials() (names []string) {
	for _, name := range []string{"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"} {
		if isOn(os.Getenv(name)) {
			names = append(names, name)
		}
	}
	for _, name := range []string{"CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"} {
		if os.Getenv(name) != "" {
			names = append(names, name)
		}
	}
	return names
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
