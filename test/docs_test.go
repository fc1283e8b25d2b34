package test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// source is the folder of the project.
var source = os.DirFS("..")

var testName = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`)

// SECURITY.md names a test for each promise; a name that is no test is a lie.
func TestSecurityNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	security, err := fs.ReadFile(source, "SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, pattern := range []string{"*_test.go", "test/*_test.go", "e2e/*_test.go"} {
		files, err := fs.Glob(source, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			data, _ := fs.ReadFile(source, name)
			tests.Write(data)
		}
	}
	names := testName.FindAllString(string(security), -1)
	if len(names) < 10 {
		t.Errorf("SECURITY.md names %d tests", len(names))
	}
	for _, name := range names {
		if !strings.Contains(tests.String(), "func "+name+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}

// What the documents name is there: files that they link to, targets of make, scripts.
func TestDocumentsNameWhatIsThere(t *testing.T) {
	t.Parallel()
	makefile, err := fs.ReadFile(source, "Makefile")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := fs.Glob(source, "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/whatsapp-relay/README.md")

	exists := func(path string) bool {
		_, err := fs.Stat(source, path)
		return err == nil
	}
	kinds := []struct {
		what    string
		pattern *regexp.Regexp
		isThere func(document, name string) bool
	}{
		{"a link", regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`),
			func(document, name string) bool { return exists(filepath.Join(filepath.Dir(document), name)) }},
		{"a script", regexp.MustCompile(`\b(scripts/[a-z-]+)`),
			func(_, name string) bool { return exists(name) }},
		{"a target", regexp.MustCompile("(?m)(?:^|`|&& |scripts/linux |=\\S+ )make ([a-z-]+)"),
			func(_, name string) bool { return strings.Contains(string(makefile), "\n"+name+":") }},
	}
	for _, kind := range kinds {
		found := 0
		for _, document := range documents {
			text, err := fs.ReadFile(source, document)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range kind.pattern.FindAllStringSubmatch(string(text), -1) {
				found++
				if !kind.isThere(document, match[1]) {
					t.Errorf("%s names %s %s, which is not there", document, kind.what, match[1])
				}
			}
		}
		if found == 0 {
			t.Errorf("the documents don't name %s", kind.what)
		}
	}
}

// A process that the engine's exec starts with -u has the container's secrets in its
// environment, which the agent can read: image/as-agent gives it a clean one.
func TestNoDocumentStartsAProcessWithTheContainersSecrets(t *testing.T) {
	t.Parallel()
	list := exec.Command("git", "ls-files", "--", "*.md", "*.yaml", "*.toml", "Dockerfile")
	list.Dir = ".."
	files, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	asUser := regexp.MustCompile(`exec\b.*(-u|--user)[ =]\w+ .*\bclaude\b`)
	found := 0
	for name := range strings.Lines(string(files)) {
		text, err := fs.ReadFile(source, strings.TrimSpace(name))
		if err != nil {
			t.Fatal(err)
		}
		if line := asUser.Find(text); line != nil {
			t.Errorf("%s: %s", name, line)
		}
		found += strings.Count(string(text), "as-agent claude")
	}
	if found == 0 || !asUser.MatchString("docker exec -it -u node cockpit-vm claude") {
		t.Error("no document says how to log in, or the control passes")
	}
}

// Docker 28.1 and newer gives a folder that COPY --chmod makes the mode of the file, so
// nobody but root can enter it (moby/moby#49851).
func TestNoCopyOfADockerfileMakesAFolderThatNobodyCanEnter(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Dockerfile", "egress/Dockerfile", "scripts/linux.Dockerfile"} {
		data, err := fs.ReadFile(source, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, folder := range closedFolders(string(data)) {
			t.Errorf("%s copies files into %s, which no RUN has made: install -d %[2]s before", name, folder)
		}
	}

	const broken = "FROM x\nRUN install -d /made /made/deep\n" +
		"COPY --chmod=644 a b /new/\nCOPY --chmod=0600 a /new/deep/a\nCOPY --chmod=644 a /made/deep/\nCOPY --chmod=755 a /bin/\n"
	if diff := cmp.Diff([]string{"/new", "/new/deep"}, closedFolders(broken)); diff != "" {
		t.Errorf("the control (-want +got):\n%s", diff)
	}
}

// closedFolders are those into which a Dockerfile copies with the mode of a file, and
// which none of its RUN instructions has made before.
func closedFolders(dockerfile string) (folders []string) {
	made := map[string]bool{"/usr/local/lib": true, "/usr/local/bin": true} // of every Debian
	joined := strings.ReplaceAll(dockerfile, "\\\n", " ")
	for line := range strings.Lines(joined) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "RUN":
			isMaking := false
			for i, word := range words {
				switch {
				case word == "&&":
					isMaking = false
				case word == "-d" && words[i-1] == "install":
					isMaking = true
				case isMaking && strings.HasPrefix(word, "/"):
					for folder := word; folder != "/"; folder = filepath.Dir(folder) {
						made[folder] = true
					}
				}
			}
		case words[0] == "COPY":
			mode, hasMode := "", false
			for _, word := range words {
				if value, isIt := strings.CutPrefix(word, "--chmod="); isIt {
					mode, hasMode = value, true
				}
			}
			bits, _ := strconv.ParseUint(mode, 8, 32)
			to := words[len(words)-1]
			if !strings.HasSuffix(to, "/") {
				to = filepath.Dir(to)
			}
			if hasMode && bits&0o001 == 0 && !made[filepath.Clean(to)] {
				folders = append(folders, filepath.Clean(to))
			}
		}
	}
	return folders
}
