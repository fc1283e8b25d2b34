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
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		isOurs := strings.HasPrefix(name, "VM_")
		if isOurs && (value == "" || isKubernetes(name, value)) {
			os.Unsetenv(name)
		}
		if slices.Contains(secrets, name) {
			os.Setenv(name, strings.TrimSpace(value))
		}
	}

	err := checkNames()
	if err != nil {
		return err
	}
	return explain(envconfig.Process("vm", c))
}

// checkNames refuses a variable that there isn't.
func checkNames() error {
	var known bytes.Buffer
	err := envconfig.Usagef("vm", &config{}, &known, "{{range .}}{{usage_key .}} {{end}}")
	if err != nil {
		return fmt.Errorf("cannot list the variables: %w", err)
	}
	names := strings.Fields(known.String())

	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "VM_") && !slices.Contains(names, name) {
			return fmt.Errorf("cannot use %s: there is no such variable; "+
				"vm-server -h lists them", name)
		}
	}
	return nil
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
