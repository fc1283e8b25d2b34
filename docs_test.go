package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kelseyhightower/envconfig"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the configuration table into docs/configuration.md")

var testName = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`)

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

// SECURITY.md names a test for each promise; a name that is no test is a lie.
func TestSecurityNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	security, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, pattern := range []string{".", "e2e"} {
		entries, err := os.ReadDir(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if strings.HasSuffix(entry.Name(), "_test.go") {
				data, _ := os.ReadFile(pattern + "/" + entry.Name())
				source.Write(data)
			}
		}
	}
	names := testName.FindAllString(string(security), -1)
	if len(names) < 10 {
		t.Errorf("SECURITY.md names %d tests", len(names))
	}
	for _, name := range names {
		if !strings.Contains(source.String(), "func "+name+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}

// What the documents name is there: files that they link to, targets of make, scripts.
func TestDocumentsNameWhatIsThere(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/whatsapp-relay/README.md")

	exists := func(path string) bool {
		_, err := os.Stat(path)
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
			text, err := os.ReadFile(document)
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
	files, err := exec.Command("git", "ls-files", "--", "*.md", "*.yaml", "*.toml", "Dockerfile").Output()
	if err != nil {
		t.Fatal(err)
	}
	asUser := regexp.MustCompile(`exec\b.*(-u|--user)[ =]\w+ .*\bclaude\b`)
	found := 0
	for name := range strings.Lines(string(files)) {
		text, err := os.ReadFile(strings.TrimSpace(name))
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

// openapi.yaml says what the server answers: every status with its error codes,
// and every field of an answer.
func TestOpenAPISaysWhatTheServerAnswers(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Properties map[string]struct {
			Enum []string `yaml:"enum"`
		} `yaml:"properties"`
		Required []string `yaml:"required"`
	}
	var api struct {
		Paths map[string]map[string]struct {
			Responses map[int]struct {
				Codes []string `yaml:"x-error-codes"`
			} `yaml:"responses"`
		} `yaml:"paths"`
		Components struct {
			Schemas map[string]schema `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(data, &api); err != nil {
		t.Fatal(err)
	}
	type codes map[string]map[int]map[string]bool // of each method and status
	add := func(in codes, method string, status int, found ...string) {
		if in[method] == nil {
			in[method] = map[int]map[string]bool{}
		}
		if in[method][status] == nil {
			in[method][status] = map[string]bool{}
		}
		for _, code := range found {
			in[method][status][code] = true
		}
	}
	documented := codes{}
	failures := map[string]bool{"client_gone": true} // which only a half-closed client reads
	refusals := map[string]bool{}
	for _, method := range []string{"POST", "DELETE"} {
		path := api.Paths["/command"][strings.ToLower(method)]
		for status, response := range path.Responses {
			add(documented, method, status, response.Codes...)
			schema := refusals
			if status == 200 {
				schema = failures
			}
			for _, code := range response.Codes {
				schema[code] = true
			}
		}
	}
	for name, want := range map[string]map[string]bool{"AnswerError": failures, "Refusal": refusals} {
		enum := map[string]bool{}
		for _, code := range api.Components.Schemas[name].Properties["code"].Enum {
			enum[code] = true
		}
		if diff := cmp.Diff(want, enum); diff != "" {
			t.Errorf("the codes of %s (-of the responses +enum):\n%s", name, diff)
		}
	}

	s := startServer(t, "VM_QUEUE=0", "VM_TOKEN=correct", "VM_MAX_BODY=200",
		"VM_SHUTDOWN_GRACE=1h")
	withToken := and(asJSON, "Authorization", "Bearer correct")
	got := codes{}
	answers := api.Components.Schemas["Answer"]
	note := func(method string, response *http.Response, body string) {
		t.Helper()
		var fields map[string]any
		if err := json.Unmarshal([]byte(body), &fields); err != nil {
			t.Fatalf("%v: %q", err, body)
		}
		status := response.StatusCode
		add(got, method, status)
		if apiError, isThere := fields["error"].(map[string]any); isThere {
			add(got, method, status, apiError["code"].(string))
		}
		if status != 200 {
			return
		}
		for name := range fields {
			if _, isThere := answers.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of an answer", name)
			}
		}
		for _, name := range answers.Required {
			if _, isThere := fields[name]; !isThere {
				t.Errorf("the required field %q is not in %s", name, body)
			}
		}
	}
	try := func(method, body string, header ...string) {
		t.Helper()
		response, text, err := s.send(context.Background(), method, "/command", body, header...)
		if err != nil {
			t.Fatal(err)
		}
		if method == "PUT" {
			method = "POST" // where other methods are documented
		}
		note(method, response, text)
	}
	for _, command := range []string{
		"hello", "hits-a-limit 1795707601", "is-overloaded 529", "reports-an-error", "not-logged-in", "gives-up-on-its-key", "unknown-session", "exits",
	} {
		try("POST", `{"command":"`+command+`"}`, withToken...)
	}
	late, words, err := startServer(t, "VM_TIMEOUT=1s").post(context.Background(), "waits")
	if err != nil {
		t.Fatal(err)
	}
	note("POST", late, words)
	try("PUT", "", withToken...)
	try("DELETE", "")
	try("DELETE", "", withToken...)
	try("DELETE", "", and(withToken, "Sec-Fetch-Site", "cross-site")...)
	keyed := and(withToken, "Idempotency-Key", "a")
	try("DELETE", "", keyed...)
	stopped := make(chan reply, 1)
	s.background(context.Background(), "waits", stopped, keyed...)
	s.queued(0)
	try("DELETE", "", keyed...)
	if diff := cmp.Diff("canceled stopped", inShort((<-stopped).answer)); diff != "" {
		t.Errorf("the stopped command (-want +got):\n%s", diff)
	}
	try("POST", `{"command":"waits"}`, keyed...)
	try("POST", hello, keyed...)
	short := startServer(t, "VM_TOKEN=correct", "TEST_SERVER=short lives")
	eventually(t, "the key's answer is forgotten", func() bool {
		response, text, err := short.send(context.Background(), "POST", "/command", hello, keyed...)
		if err != nil {
			t.Fatal(err)
		}
		note("POST", response, text)
		return response.StatusCode == 410
	})
	try("POST", "{}", withToken...)
	try("POST", strings.Repeat("x", 300), withToken...)
	try("POST", "{}", "Authorization", "Bearer correct")
	try("POST", "{}", asJSON...)
	try("POST", "{}", and(withToken, "Sec-Fetch-Site", "cross-site")...)
	var response *http.Response
	var text string
	reply := make(chan error, 1)
	go func() {
		var err error
		response, text, err = s.post(context.Background(), "waits", withToken...)
		reply <- err
	}()
	s.queued(0)
	try("POST", `{"command":"one too many"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	var stopping map[string]any
	eventually(t, "it is stopping", func() bool {
		var status int
		status, stopping = s.state()
		return status == 503
	})
	try("POST", `{"command":"late"}`, withToken...)
	s.cmd.Process.Signal(os.Interrupt)
	if err := <-reply; err != nil {
		t.Fatal(err)
	}
	note("POST", response, text)

	health := api.Components.Schemas["Health"]
	status, healthy := startServer(t).state()
	for _, status := range []int{status, 503} {
		if _, isDocumented := api.Paths["/healthz"]["get"].Responses[status]; !isDocumented {
			t.Errorf("openapi.yaml doesn't know the status %d of /healthz", status)
		}
	}
	for _, state := range []map[string]any{healthy, stopping} {
		for name := range state {
			if _, isThere := health.Properties[name]; !isThere {
				t.Errorf("openapi.yaml doesn't know the field %q of /healthz", name)
			}
		}
	}
	if diff := cmp.Diff(documented, got); diff != "" {
		t.Errorf("openapi.yaml and the server (-documented +answered):\n%s", diff)
	}
}

// Docker 28.1 and newer gives a folder that COPY --chmod makes the mode of the file, so
// nobody but root can enter it (moby/moby#49851).
func TestNoCopyOfADockerfileMakesAFolderThatNobodyCanEnter(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Dockerfile", "egress/Dockerfile", "scripts/linux.Dockerfile"} {
		data, err := os.ReadFile(name)
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

// main.go names each file, first those of the core, in reading order, and how long the
// core is.
func TestMainNamesTheCoreAndEveryOtherFile(t *testing.T) {
	t.Parallel()
	source := readFile(t, "main.go")
	comment, _, _ := strings.Cut(source, "\npackage main")
	coreText, _, found := strings.Cut(comment, "A mistake in any other file")
	if !found {
		t.Fatal("main.go does not end the list of the core")
	}
	goFile := regexp.MustCompile(`\b[a-z_]+\.go\b`)
	stated := regexp.MustCompile(`about ([0-9,]+) lines`).FindStringSubmatch(strings.ReplaceAll(coreText, "\n// ", " "))
	if stated == nil {
		t.Fatal("main.go does not state the lines of the core")
	}
	limit, _ := strconv.Atoi(strings.ReplaceAll(stated[1], ",", ""))
	core, lines := "", 0
	for _, name := range goFile.FindAllString(coreText, -1) {
		text := readFile(t, name)
		core += text
		lines += strings.Count(text, "\n")
	}
	if lines > limit+limit/20 || lines < limit-limit/20 {
		t.Errorf("the core has %d lines, main.go states %d", lines, limit)
	}

	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	for _, name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			want[name] = 1
		}
	}
	got := map[string]int{}
	for _, name := range goFile.FindAllString(comment, -1) {
		got[name]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("how often main.go names each file (-want +got):\n%s", diff)
	}

	// The promises about who may ask, one true answer, and nothing left behind.
	security := readFile(t, "SECURITY.md")
	for _, promise := range []string{
		"no command without the token", "no web page can send a command", "one command at a time",
		"a key is no way around", "a command with a key runs at most once", "a client that does not read delays nobody",
		"no process outlives its command", "if one can't be killed",
	} {
		row := regexp.MustCompile(`(?m)^\| ` + promise + `[^|]*\|([^|]*)\|`).FindStringSubmatch(security)
		if row == nil {
			t.Errorf("SECURITY.md has no promise %q", promise)
			continue
		}
		for _, keeper := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			name := keeper[1][strings.LastIndex(keeper[1], ".")+1:]
			isDefined := regexp.MustCompile(`(?m)^(type ` + name + ` |func (\([^)]*\) )?` + name + `\()`).MatchString(core)
			if !isDefined && name != "hardenProcess" { // a system call, which main.go makes
				t.Errorf("%q is kept by %s, which no file of the core defines", promise, keeper[1])
			}
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
