package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// workflow is what a test reads of a file of GitHub's.
type workflow struct {
	Jobs map[string]struct {
		Steps []struct {
			ID, Run string
			With    map[string]string
		}
	}
}

func readWorkflow(t *testing.T, name string) (w workflow) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, name)), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// What the release runs by itself, with neither a registry nor a signature, is run
// here: what later steps take from it is there, under the names that they use.
func TestTheStepsOfAReleaseHandOnWhatTheNextOnesTake(t *testing.T) {
	release := readWorkflow(t, ".github/workflows/release.yml")
	dir := t.TempDir()
	expression := regexp.MustCompile(`\$\{\{ *([\w.-]+) *\}\}`)
	var outputs []string
	for _, step := range release.Jobs["build"].Steps {
		if step.Run == "" {
			continue
		}
		script := expression.ReplaceAllStringFunc(step.Run, func(string) string { return "amd64" }) // the platform
		cmd := exec.Command("sh", "-eu", "-c", script)
		cmd.Dir = root(t)
		if step.ID == "" {
			cmd.Dir = dir
		}
		cmd.Env = append(os.Environ(), "GITHUB_REF_NAME=v1.2.3", "GITHUB_OUTPUT="+dir+"/"+step.ID, "DIGEST=sha256:abc")
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, output)
		}
		if step.ID == "" {
			continue
		}
		data, err := os.ReadFile(dir + "/" + step.ID)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			outputs = append(outputs, "steps."+step.ID+".outputs."+name)
			if name == "version" && value != "1.2.3" {
				t.Errorf("the tag v1.2.3 makes the version %q", value)
			}
		}
	}

	for _, step := range release.Jobs["build"].Steps {
		for _, match := range expression.FindAllStringSubmatch(step.With["build-args"], -1) {
			if strings.HasPrefix(match[1], "steps.") && !slices.Contains(outputs, match[1]) {
				t.Errorf("a step takes %s, and there is %q", match[1], outputs)
			}
		}
	}
	digest, err := os.ReadFile(filepath.Join(dir, "digests/amd64"))
	if diff := cmp.Diff("sha256:abc\n", string(digest)); diff != "" {
		t.Errorf("what the job publish takes (-want +got):\n%s%v", diff, err)
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
