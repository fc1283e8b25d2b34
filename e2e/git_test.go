package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const gitToken = "ghp_real-0123456789"

// gitHost is `git http-backend` behind TLS, for who sends the token; the repositories
// team/main.git, which has team/sub.git for a submodule, team/sub.git, and at
// team/moved.git a redirect.
type gitHost struct {
	host, dir, certificate string
}

func newGitHost(t *testing.T) *gitHost {
	t.Helper()
	g := &gitHost{dir: t.TempDir()}
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: strings.TrimSpace(string(core)) + "/git-http-backend",
		Env:  []string{"GIT_PROJECT_ROOT=" + g.dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=somebody"},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		switch {
		case name != "x-access-token" || password != gitToken:
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/team/moved.git"):
			http.Redirect(w, r, strings.Replace(r.RequestURI, "moved", "main", 1), http.StatusMovedPermanently)
		case !strings.HasPrefix(r.URL.Path, "/team/"):
			fmt.Fprintln(w, "the API, with secrets")
		default:
			body, _ := io.ReadAll(r.Body) // as Go's CGI takes none that is chunked
			r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
			backend.ServeHTTP(w, r)
		}
	}))
	certificate, ca := authority(t, "localhost")
	g.certificate = g.dir + "/ca.pem"
	if err := os.WriteFile(g.certificate, []byte(ca), 0o644); err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	t.Cleanup(server.Close)
	g.host = "localhost" + server.URL[strings.LastIndex(server.URL, ":"):]

	g.git(t, "", "init", "-q", "-b", "main", "work")
	g.git(t, "work", "commit", "-q", "--allow-empty", "-m", "first")
	bare := func(name string) {
		g.git(t, "", "clone", "-q", "--bare", "work", "team/"+name+".git")
		g.git(t, "team/"+name+".git", "config", "http.receivepack", "true")
	}
	bare("sub")
	g.git(t, "work", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", g.dir+"/team/sub.git", "sub")
	g.git(t, "work", "config", "--file=.gitmodules", "submodule.sub.url", "https://"+g.host+"/team/sub.git")
	g.git(t, "work", "commit", "-q", "-a", "-m", "a submodule")
	bare("main")
	return g
}

// git runs git in one of the host's folders.
func (g *gitHost) git(t *testing.T, folder string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=x", "-c", "user.email=x@x"}, args...)...)
	cmd.Dir = g.dir + "/" + folder
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, output)
	}
	return strings.TrimSpace(string(output))
}

// start starts a server that has a token for the host.
func (g *gitHost) start(t *testing.T, token string, more ...string) *vm {
	t.Helper()
	env := []string{"VM_GIT_TOKEN=" + token, "VM_GIT_HOST=" + g.host, "SSL_CERT_FILE=" + g.certificate, "VM_TIMEOUT=5m",
		"GIT_AUTHOR_NAME=agent", "GIT_AUTHOR_EMAIL=a@localhost", "GIT_COMMITTER_NAME=agent", "GIT_COMMITTER_EMAIL=a@localhost"}
	if image != "" {
		env = append(env, "--volume="+g.certificate+":"+g.certificate+":ro")
	}
	return start(t, append(env, more...)...)
}

func TestTheAgentsGitWorksAsIfItWereLoggedIn(t *testing.T) {
	g := newGitHost(t)
	v := g.start(t, gitToken)
	said := v.bash("success", "set -e; git clone -q --recurse-submodules https://"+g.host+"/team/main.git a; cd a; git submodule status; git remote -v; cat .git/config; "+
		"echo pushed >file; git add file; git commit -q -m 'by the agent'; git push -q; git fetch -q; "+
		"git clone -q git@localhost:team/main.git ../b; git clone -q ssh://git@localhost/team/main.git ../c; cat ../b/file ../c/file; "+
		"git clone -q https://x-access-token@"+g.host+"/team/main.git ../d; cat ../d/file")
	v.want(said, "pushed\npushed\npushed", "\turl = https://"+g.host+"/team/main.git")
	if strings.Contains(said, "127.0.0.1") || strings.Contains(said, "placeholder") {
		t.Errorf("an address shows the proxy:\n%s", said)
	}
	if diff := cmp.Diff("by the agent", g.git(t, "team/main.git", "log", "-1", "--format=%s")); diff != "" {
		t.Errorf("what was pushed (-want +got):\n%s", diff)
	}
}

func TestTheAgentsGitPushesAHundredMegabytes(t *testing.T) {
	t.Parallel()
	g := newGitHost(t)
	file := g.dir + "/token"
	if err := os.WriteFile(file, []byte(gitToken+"\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	env := []string{"VM_GIT_TOKEN_FILE=" + file}
	if image != "" {
		env = append(env, "--volume="+file+":"+file+":ro")
	}
	v := g.start(t, "", env...)
	said := v.bash("success", "set -e; git clone -q https://"+g.host+"/team/main.git a; cd a; "+
		"head -c 100M /dev/urandom >large; git add large; git commit -q -m large; git push 2>&1")
	t.Logf("%s", said)
	if diff := cmp.Diff("104857600", g.git(t, "team/main.git", "cat-file", "-s", "main:large")); diff != "" {
		t.Errorf("the size of what was pushed (-want +got):\n%s", diff)
	}
}

// One that has waited was started before the command, and has the right to git with it.
func TestAWaitingAgentsGitWorksInItsCommand(t *testing.T) {
	g := newGitHost(t)
	v := g.start(t, gitToken, "VM_WARM=true")
	const hook = `{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"cat >/dev/null; git ls-remote https://HOST/team/main.git >>hook 2>&1 || :"}]}]}}`
	v.say("bash: mkdir .claude; echo '"+strings.Replace(hook, "HOST", g.host, 1)+"' >.claude/settings.json", "")
	v.eventually("the waiting one's hook has tried", func() bool {
		said, _ := os.ReadFile(v.dir + "/workspace/hook")
		return strings.Contains(string(said), "403")
	})
	a := v.say("bash: git clone -q https://"+g.host+"/team/main.git a && ls -A a && cat hook", "")
	v.want(a.Result, ".gitmodules", "remote: vm-server serves only the agent whose command runs, with its own placeholder")
}

func TestAWrongGitTokenIsToldInWords(t *testing.T) {
	g := newGitHost(t)
	v := g.start(t, "wrong")
	said := v.bash("success", "git clone https://"+g.host+"/team/main.git 2>&1 || :")
	v.want(said, "remote: vm-server is told by "+g.host+" that VM_GIT_TOKEN is wrong.*")
	v.want(v.log.String(), ".*the git host refuses VM_GIT_TOKEN.*")
}

// What the token could be used for beside git is out of the agent's reach, and so is
// the token, once and for all, and git itself after the command.
func TestTheAgentCanDoNothingElseWithTheGitToken(t *testing.T) {
	g := newGitHost(t)
	v := g.start(t, gitToken)
	// The agent's way, without git: its name and port, and what it is let in by.
	ask := `at=$(env | sed -n 's/.*=url.\(http:.*\)\/.insteadOf/\1/p' | head -1); login=$(env | sed -n 's/.*=\(Authorization: .*\)/\1/p'); ` +
		`ask() { curl -s -o /dev/null -w '%{http_code} ' --noproxy '*' --resolve "${at#http://}:127.0.0.1" -H "$login" "$@"; }; `
	said := v.bash("success", ask+`ask "$at/team/main.git/info/refs?service=git-upload-pack"; `+ // the control
		`ask "$at/user"; ask "$at/team/main.git/info/lfs/objects/batch" -d {}; ask "$at/team/main.git/info/refs?service=git-upload-archive"; `+
		`ask "$at/team/main.git/info/refs?service=git-upload-pack&x"; ask "$at/team/main.git/git-upload-pack" -d x; `+
		`ask --path-as-is "$at/team/../team/main.git/info/refs?service=git-upload-pack"; ask "$at/team/main%2egit/info/refs?service=git-upload-pack"; `+
		`ask "$at/info/refs?service=git-upload-pack"; echo; echo "$at"; echo "$login"`)
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if diff := cmp.Diff("200 404 404 404 404 404 404 404 404", strings.TrimSpace(lines[0])); diff != "" || len(lines) != 3 {
		t.Fatalf("what is forwarded (-want +got):\n%s%s", diff, said)
	}
	v.want(v.bash("success", "git clone https://"+g.host+"/team/moved.git 2>&1 || :"), `.* follows no redirect of .*: use the repository's new address: .*/team/main.git"`)

	port := lines[1][strings.LastIndex(lines[1], ":"):]
	request, _ := http.NewRequest("GET", "http://127.0.0.1"+port+"/team/main.git/info/refs?service=git-upload-pack", nil)
	request.Host = "localhost" + port
	request.Header.Set("Authorization", strings.TrimPrefix(lines[2], "Authorization: "))
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("after the command: %v %v", response, err)
	}
	if image == "" && os.Getuid() == 0 {
		return // the agent is root, as the server is
	}
	v.bash("success", "git clone -q https://"+g.host+"/team/main.git kept")
	if found := v.bash("success", search("token", gitToken)+"echo searched"); found != "searched" {
		t.Errorf("the agent found:\n%s", found)
	}
}

// Wherever the operator's proxies and exceptions would lead git, it goes to the server.
func TestNoProxyLeadsTheAgentsGitPastTheServer(t *testing.T) {
	g := newGitHost(t)
	for _, env := range [][]string{
		{"NO_PROXY=localhost", "no_proxy=localhost"}, {"NO_PROXY=*", "no_proxy=*"}, {"ALL_PROXY=http://127.0.0.1:9", "http_proxy=http://127.0.0.1:9"},
	} {
		v := g.start(t, gitToken, env...)
		v.want(v.bash("success", "git ls-remote https://"+g.host+"/team/main.git main 2>&1"), "[0-9a-f]{40}\trefs/heads/main")
	}
}

// The control: without the server's token git has no way in.
func TestWithoutAGitTokenTheAgentsGitIsNobody(t *testing.T) {
	g := newGitHost(t)
	v := g.start(t, "")
	v.want(v.bash("success", "GIT_TERMINAL_PROMPT=0 GIT_SSL_CAINFO=$SSL_CERT_FILE git clone https://"+g.host+"/team/main.git 2>&1 || :"), ".*terminal prompts disabled")
}

// Large files of Git LFS don't come through the server. The agent is told, and gets no file
// with a pointer for its content. The control is a git without LFS.
func TestAPointerOfGitLFSIsNoFile(t *testing.T) {
	if _, err := exec.LookPath("git-lfs"); err != nil && image == "" {
		t.Skip("no git-lfs: make test installs it as root")
	}
	g := newGitHost(t)
	for name, text := range map[string]string{
		".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
		"large.bin":      "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 5\n",
	} {
		if err := os.WriteFile(g.dir+"/work/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.git(t, "work", "add", ".")
	g.git(t, "work", "commit", "-q", "-m", "a large file")
	g.git(t, "", "clone", "-q", "--bare", "work", "team/large.git")

	v := g.start(t, gitToken)
	said := v.bash("success", "git clone https://"+g.host+"/team/large.git l 2>&1 || echo failed; cat l/large.bin 2>&1; cat l/.git/lfs/logs/* 2>/dev/null; :")
	v.want(said, ".*vm-server forwards no Git LFS.*", "failed", ".*large.bin: No such file or directory")
	said = v.bash("success", "GIT_CONFIG_NOSYSTEM=1 git clone -q https://"+g.host+"/team/large.git m; cat m/large.bin")
	v.want(said, "version https://git-lfs.*")
}
