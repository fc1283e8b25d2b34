package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The compose files, of which the tests make containers by the engine's own commands.

// composeFile is a compose file with an environment.
type composeFile struct {
	Services map[string]map[string]any
	Networks map[string]struct {
		Internal   bool
		DriverOpts map[string]string `yaml:"driver_opts"`
		IPAM       struct{ Config []struct{ Subnet string } }
	}
}

func readCompose(t testing.TB, name string, env map[string]string) (file composeFile) {
	t.Helper()
	variable := regexp.MustCompile(`\$\{(\w+):([-?])([^}]*)\}`)
	text := variable.ReplaceAllStringFunc(read(t, name), func(found string) string {
		match := variable.FindStringSubmatch(found)
		value, isSet := env[match[1]]
		if !isSet && match[2] == "?" {
			t.Fatalf("%s needs %s", name, match[1])
		}
		if !isSet {
			value = match[3]
		}
		return value
	})
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return file
}

// flagsOf are a service's keys as flags of `create`, but for networks and volumes. A key
// that it doesn't know ends the test, so that none is forgotten.
func flagsOf(t testing.TB, service map[string]any) (flags []string) {
	t.Helper()
	option := map[string]string{
		"tmpfs": "--tmpfs=", "cap_drop": "--cap-drop=", "cap_add": "--cap-add=", "security_opt": "--security-opt=", "sysctls": "--sysctl=",
		"pids_limit": "--pids-limit=", "mem_limit": "--memory=", "shm_size": "--shm-size=", "stop_grace_period": "--stop-timeout=",
		"read_only": "--read-only=", "dns": "--dns=", "extra_hosts": "--add-host=", "environment": "--env=",
	}
	for _, name := range slices.Sorted(maps.Keys(service)) {
		if slices.Contains([]string{"build", "image", "ports", "volumes", "restart", "networks", "depends_on", "logging"}, name) {
			continue
		}
		if option[name] == "" {
			t.Fatalf("the compose file has %q, which this test can't make a flag of", name)
		}
		var values []string
		switch value := service[name].(type) {
		case []any:
			for _, entry := range value {
				values = append(values, fmt.Sprint(entry))
			}
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(value)) {
				entry := ""
				if value[key] != nil {
					entry = fmt.Sprint(value[key])
				}
				values = append(values, key+"="+entry)
			}
		default:
			values = []string{fmt.Sprint(value)}
		}
		for _, value := range values {
			switch name {
			case "security_opt":
				value = strings.TrimSuffix(value, ":true")
			case "stop_grace_period":
				value = strings.TrimSuffix(value, "s")
			}
			flags = append(flags, option[name]+value)
		}
	}
	return flags
}

// composeFlags is compose.yaml as flags of `run`, but for its environment, ports and
// volumes.
func composeFlags(t testing.TB) (flags []string) {
	t.Helper()
	vm := readCompose(t, "compose.yaml", map[string]string{"VM_TOKEN": "x"}).Services["vm"]
	delete(vm, "environment")
	return flagsOf(t, vm)
}
