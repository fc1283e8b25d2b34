package main

import (
	"fmt"
	"maps"
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
		Outputs, Env map[string]string
		Steps        []step
	}
}

type step struct {
	ID, Name, Run, Uses string
	With, Env           map[string]string
}

func readRelease(t *testing.T) (w workflow) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, ".github/workflows/release.yml")), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

var expression = regexp.MustCompile(`\$\{\{ *([\w.-]+) *\}\}`)

// expressionsIn are the names that these values take.
func expressionsIn(fields ...map[string]string) (names []string) {
	for _, values := range fields {
		for _, text := range values {
			for _, match := range expression.FindAllStringSubmatch(text, -1) {
				names = append(names, match[1])
			}
		}
	}
	return names
}

// run runs what a step says, as the host would, and returns what it handed on, by the
// names that expressions have for it.
func (s step) run(t *testing.T, dir string, env ...string) (handedOn map[string]string, printed string, err error) {
	t.Helper()
	script := expression.ReplaceAllString(s.Run, "amd64") // the platform
	cmd := exec.Command("bash", "-e", "-c", script)
	cmd.Dir = dir
	cmd.Env = slices.Concat(os.Environ(), []string{"GITHUB_REPOSITORY=Owner/Name", "GITHUB_REF_NAME=v1.2.3",
		"GITHUB_OUTPUT=outputs", "GITHUB_ENV=env", "GITHUB_STEP_SUMMARY=summary", "DIGEST=sha256:abc"}, env)
	output, err := cmd.CombinedOutput()
	handedOn = map[string]string{}
	for file, prefix := range map[string]string{"outputs": "steps." + s.ID + ".outputs.", "env": "env."} {
		data, _ := os.ReadFile(filepath.Join(dir, file)) // where it handed anything on
		os.Remove(filepath.Join(dir, file))
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			handedOn[prefix+name] = value
		}
	}
	return handedOn, string(output), err
}

// What a release runs by itself, with neither a registry nor a signature, is run here:
// what later steps take from it is there, under the names that they use.
func TestTheStepsOfAReleaseHandOnWhatTheNextOnesTake(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "scripts"), os.DirFS("../scripts")); err != nil {
		t.Fatal(err)
	}
	const clone = `git init -q && git remote add origin https://github.com/Owner/Name &&
		git -c user.name=x -c user.email=x@localhost commit -q --allow-empty -m x`
	cmd := exec.Command("sh", "-c", clone)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}

	needsAHost := regexp.MustCompile(`docker |cosign `)
	var left, taken []string
	handedOn := map[string]string{"steps.build.outputs.digest": "of docker/build-push-action"}
	release := readRelease(t)
	for _, job := range []string{"build", "publish"} {
		for name, value := range release.Jobs[job].Outputs {
			handedOn["needs."+job+".outputs."+name] = value
		}
		taken = append(taken, expressionsIn(release.Jobs[job].Outputs, release.Jobs[job].Env)...)
		for _, s := range release.Jobs[job].Steps {
			taken = append(taken, expressionsIn(s.With, s.Env)...)
			switch {
			case s.Run == "":
			case needsAHost.MatchString(s.Run):
				left = append(left, s.Name)
			default:
				named, printed, err := s.run(t, dir)
				if err != nil {
					t.Fatalf("%s: %v: %s", s.Name, err, printed)
				}
				maps.Copy(handedOn, named)
			}
		}
	}

	want := []string{"Test what was pushed", "Put both together", "Sign it and its parts", "Name it, unless something else has the name"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("what needs a registry (-want +got):\n%s", diff)
	}
	for _, name := range taken {
		isOurs := strings.HasPrefix(name, "steps.") || strings.HasPrefix(name, "env.") || strings.HasPrefix(name, "needs.")
		if isOurs && handedOn[name] == "" {
			t.Errorf("a step takes %s, and there is %v", name, handedOn)
		}
	}
	digest, _ := os.ReadFile(filepath.Join(dir, "digests/amd64"))
	got := []string{handedOn["steps.about.outputs.version"], handedOn["steps.about.outputs.source"], handedOn["env.IMAGE"], string(digest)}
	if diff := cmp.Diff([]string{"1.2.3", "https://github.com/Owner/Name", "ghcr.io/owner/name", "sha256:abc\n"}, got); diff != "" {
		t.Errorf("version, source, image and digest (-want +got):\n%s", diff)
	}
}

// What the registry says stands for the registry: the step that asks it is the real one.
func TestAReleaseTakesNoNameThatIsTaken(t *testing.T) {
	steps := readRelease(t).Jobs["publish"].Steps
	naming := steps[len(steps)-1]
	for _, test := range []struct {
		name, says string
		code       int
		isNamed    bool
	}{
		{"nothing has the name", "ERROR: ghcr.io/owner/name:1.2.3: not found", 1, true},
		{"the same has it, from a run before", "sha256:abc", 0, true},
		{"something else has it", "sha256:def", 0, false},
		{"the registry is out of order", "ERROR: 503 Service Unavailable", 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			docker := fmt.Sprintf("#!/bin/sh\ncase $3 in\ninspect) echo '%s'; exit %d ;;\nesac\necho \"$@\" >>called\n", test.says, test.code)
			if err := os.WriteFile(dir+"/docker", []byte(docker), 0o755); err != nil {
				t.Fatal(err)
			}
			_, printed, err := naming.run(t, dir, "IMAGE=ghcr.io/owner/name", "PATH="+dir+":"+os.Getenv("PATH"))
			called, _ := os.ReadFile(dir + "/called")
			want := ""
			if test.isNamed {
				want = "buildx imagetools create -t ghcr.io/owner/name:1.2.3 -t ghcr.io/owner/name:latest ghcr.io/owner/name@sha256:abc\n"
			}
			if diff := cmp.Diff(want, string(called)); diff != "" || (err == nil) != test.isNamed {
				t.Errorf("it ended with %v and said %q; what it named (-want +got):\n%s", err, printed, diff)
			}
		})
	}
}

// A tag can be moved, a commit can't.
func TestActionsArePinnedByCommit(t *testing.T) {
	pinned := regexp.MustCompile(`^[\w-]+/[\w-]+(/[\w.-]+)*@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	names, err := filepath.Glob("../.github/workflows/*")
	if err != nil || len(names) < 2 {
		t.Fatalf("workflows: %q, %v", names, err)
	}
	for _, name := range names {
		for _, match := range regexp.MustCompile(`uses: (.*)`).FindAllStringSubmatch(read(t, strings.TrimPrefix(name, "../")), -1) {
			if !pinned.MatchString(match[1]) {
				t.Errorf("%s uses %s", name, match[1])
			}
		}
	}
}
