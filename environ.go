package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/kelseyhightower/envconfig"
)

// The environment as it comes: what is empty is as if it were not set, what
// Kubernetes adds is nobody's, secrets lose the white space that files leave, and
// what is misspelt is refused. The agent's environment is this one too.

// secrets are the model's credentials.
var secrets = []string{"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"}

// kubernetes are the names of variables that a Service named vm, or vm-…, sets for
// every container; and its VM_PORT, whose value is a URL.
var kubernetes = regexp.MustCompile(
	`^VM(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_TCP(_(PROTO|PORT|ADDR))?)$`)

func isKubernetes(name, value string) bool {
	isPort := strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
	return isPort || kubernetes.MatchString(name)
}

// readEnvironment fills c, once, before anything else looks at the environment.
// Its errors can't hold a secret: those are strings, which are never parsed.
func readEnvironment(c *config) error {
	known, err := variables()
	if err != nil {
		return err
	}

	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		isKnown := slices.Contains(known, name)
		switch {
		case slices.Contains(secrets, name):
			os.Setenv(name, strings.TrimSpace(value))
		case !strings.HasPrefix(name, "VM_"):
		case !isKnown && !isKubernetes(name, value):
			return fmt.Errorf("cannot use %s: there is no such variable; "+
				"vm-server -h lists them", name)
		case !isKnown || value == "":
			os.Unsetenv(name)
		}
	}
	return explain(envconfig.Process("vm", c))
}

// variables are the names of those that there are.
func variables() ([]string, error) {
	var names bytes.Buffer
	err := envconfig.Usagef("vm", &config{}, &names, "{{range .}}{{usage_key .}} {{end}}")
	if err != nil {
		return nil, fmt.Errorf("cannot list the variables: %w", err)
	}
	return strings.Fields(names.String()), nil
}

// explain says what would be right instead of a value that can't be parsed.
func explain(err error) error {
	var wrong *envconfig.ParseError
	if !errors.As(err, &wrong) {
		return err
	}

	right := "a number such as 8"
	switch wrong.TypeName {
	case "time.Duration":
		right = "a duration such as 10m"
	case "bool":
		right = "true or false"
	}
	return fmt.Errorf("cannot use %s=%q: give %s", wrong.KeyName, wrong.Value, right)
}
