package main

import (
	"bytes"
	"flag"
	"os"
	"os/user"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kelseyhightower/envconfig"
)

func TestIdsHaveTheFurtherGroupsOfTheirAccount(t *testing.T) {
	t.Parallel()
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	texts, err := root.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	var groups []uint32
	for _, text := range texts {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, uint32(id))
	}

	got, err := lookupUser("0:54321")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(groups, got.credential.Groups); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if got.name != root.Username || got.home != "/home/0" || got.credential.Gid != 54321 {
		t.Errorf("%+v %+v", got, got.credential)
	}
}

var update = flag.Bool("update", false, "write the configuration table into docs/configuration.md")

// The table in docs/configuration.md is printed from the tags of config.
func TestTheDocsShowTheConfiguration(t *testing.T) {
	var table bytes.Buffer
	format := "| variable | default | meaning |\n|---|---|---|\n{{range .}}| `{{usage_key .}}` | " +
		"{{with usage_default .}}`{{.}}`{{else}}none{{end}} | {{usage_description .}} |\n{{end}}"
	if err := envconfig.Usagef("vm", &config{}, &table, format); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin = "<!-- configuration: go test -run Configuration -update -->\n"
	const end = "<!-- end of configuration -->"
	before, rest, found1 := strings.Cut(string(readme), begin)
	got, after, found2 := strings.Cut(rest, end)
	if !found1 || !found2 {
		t.Fatalf("configuration.md has no %q … %q", begin, end)
	}
	if *update {
		written := before + begin + table.String() + end + after
		if err := os.WriteFile("docs/configuration.md", []byte(written), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table.String(), got); diff != "" {
		t.Errorf("docs/configuration.md (-want +got), rewrite it with go test -run Configuration -update:\n%s", diff)
	}
}

func TestTheGitHostsOrdinaryPortIsNone(t *testing.T) {
	t.Parallel()
	c := &config{GitHost: "git.example:443"}
	err := c.checkGit()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("git.example", c.GitHost); diff != "" {
		t.Errorf("the host in addresses (-want +got):\n%s", diff)
	}
}
