package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// workflow is what a test reads of a file of GitHub's.
type workflow struct {
	Jobs map[string]struct{ Steps []step }
}

type step struct {
	ID, Name, Run string
	With          map[string]string
}

var expression = regexp.MustCompile(`\$\{\{ *([\w.-]+) *\}\}`)

// run runs what a step says, as the host would, and returns what it handed on: its
// outputs, or else variables.
func (s step) run(t *testing.T, dir string) map[string]string {
	t.Helper()
	script := expression.ReplaceAllString(s.Run, "amd64") // the platform
	cmd := exec.Command("bash", "-e", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GITHUB_REPOSITORY=Owner/Name", "GITHUB_REF_NAME=v1.2.3",
		"GITHUB_OUTPUT=handed-on", "GITHUB_ENV=handed-on", "DIGEST=sha256:abc")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, output)
	}
	data, _ := os.ReadFile(filepath.Join(dir, "handed-on")) // where it handed anything on
	os.Remove(filepath.Join(dir, "handed-on"))
	handedOn := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		handedOn[name] = value
	}
	return handedOn
}

// What a release runs by itself, with neither a registry nor a signature, is run here:
// what later steps take from it is there, under the names that they use.
func TestTheStepsOfAReleaseHandOnWhatTheNextOnesTake(t *testing.T) {
	var release workflow
	if err := yaml.Unmarshal([]byte(read(t, ".github/workflows/release.yml")), &release); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "scripts"), os.DirFS("../scripts")); err != nil {
		t.Fatal(err)
	}
	needsAHost := regexp.MustCompile(`docker |cosign `)
	var left, taken []string
	handedOn := map[string]string{}
	for _, job := range []string{"build", "publish"} {
		for _, s := range release.Jobs[job].Steps {
			for _, match := range expression.FindAllStringSubmatch(s.With["build-args"], -1) {
				taken = append(taken, match[1])
			}
			switch {
			case s.Run == "":
			case needsAHost.MatchString(s.Run):
				left = append(left, s.Name)
			default:
				for name, value := range s.run(t, dir) {
					handedOn["steps."+s.ID+".outputs."+name] = value
				}
			}
		}
	}

	want := []string{"Test what was pushed", "Put both under one name", "Sign it and its parts", "Make it the latest"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("what needs a registry (-want +got):\n%s", diff)
	}
	for _, name := range taken {
		if _, isThere := handedOn[name]; !isThere {
			t.Errorf("a step takes %s, and there is %v", name, handedOn)
		}
	}
	digest, _ := os.ReadFile(filepath.Join(dir, "digests/amd64"))
	got := []string{handedOn["steps.about.outputs.version"], handedOn["steps..outputs.IMAGE"], string(digest)}
	if diff := cmp.Diff([]string{"1.2.3", "ghcr.io/owner/name", "sha256:abc\n"}, got); diff != "" {
		t.Errorf("version, image and digest (-want +got):\n%s", diff)
	}
}

// A tag can be moved, a commit can't.
func TestActionsArePinnedByCommit(t *testing.T) {
	pinned := regexp.MustCompile(`^[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	for _, name := range []string{".github/workflows/ci.yml", ".github/workflows/release.yml"} {
		for _, match := range regexp.MustCompile(`uses: (.*)`).FindAllStringSubmatch(read(t, name), -1) {
			if !pinned.MatchString(match[1]) {
				t.Errorf("%s uses %s", name, match[1])
			}
		}
	}
}
