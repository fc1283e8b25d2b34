package main

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A person's own process in the running container, such as a claude to log in with.

// person starts what a person types behind the engine's exec, and returns once it runs.
func (v *vm) person(t *testing.T, options ...string) {
	t.Helper()
	args := append([]string{"exec"}, options...)
	args = append(args, "sh", "-c", "env >/tmp/environment; pwd >/tmp/folder; echo $$ >/tmp/person; exec sleep 1006")
	cmd := exec.Command(engine, args...)
	var printed buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		v.inside("sh", "-c", "kill $(cat /tmp/person)")
		<-done
	})
	eventually(t, "the person's process runs", func() bool {
		_, err := v.inside("sh", "-c", "grep -q sleep /proc/$(cat /tmp/person)/cmdline")
		return err == nil
	}, printed.String)
}

// fact reads something of the person's process, as root.
func (v *vm) fact(t *testing.T, script string) string {
	t.Helper()
	got, err := v.inside("sh", "-c", "pid=$(cat /tmp/person); "+script)
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, got)
	}
	return got
}

// As README.md has it: docker exec … as-agent claude. A command that runs meanwhile finds
// no secret in its environment; the control is the line that README.md had before.
func TestImageAPersonsOwnProcessShowsTheAgentNoSecret(t *testing.T) {
	needImage(t)
	for _, test := range []struct {
		name    string
		options func(container string) []string
		want    string
	}{
		{"as-agent", func(c string) []string { return []string{c, "as-agent"} }, "found 0"},
		{"the control: the engine's own user option",
			func(c string) []string { return []string{"--user=node", c} }, "found 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := start(t, "VM_TOKEN=sesame-token", "ANTHROPIC_API_KEY=sesame-key")
			v.token = "sesame-token"
			v.person(t, test.options(v.container)...)
			got, body, err := v.post(t.Context(), `bash: cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | `+
				`grep -c -e '=[s]esame-token' -e '=[s]esame-key' | sed 's/^/found /'`, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Result); diff != "" {
				t.Errorf("secrets (-want +got):\n%s%s", diff, body)
			}
		})
	}
}

func TestImageAPersonsOwnProcessIsTheAgentsUserAndNoMore(t *testing.T) {
	needImage(t)
	for _, test := range []struct {
		name string
		env  []string
		ids  string
		want []string
	}{
		{"node", []string{"EDITOR=vi", "HTTPS_PROXY=http://gateway:3128", "TZ="}, "1000 1000",
			[]string{"HOME=/home/node", "HTTPS_PROXY=http://gateway:3128", "LANG=C.UTF-8", "LOGNAME=node", "USER=node"}},
		{"the owner of a folder", []string{"VM_USER=501:20"}, "501 20",
			[]string{"HOME=/home/501", "LANG=C.UTF-8", "LOGNAME=501", "USER=501"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := start(t, append(test.env, "VM_TOKEN=sesame-token")...)
			v.token = "sesame-token"
			v.person(t, v.container, "as-agent")
			status := v.fact(t, "cat /proc/$pid/status")
			uid, gid, _ := strings.Cut(test.ids, " ")
			v.want(status, `Uid:\s`+uid+`\s.*`, `Gid:\s`+gid+`\s.*`, `CapInh:\s0{16}`, `CapPrm:\s0{16}`,
				`CapEff:\s0{16}`, `CapAmb:\s0{16}`, `NoNewPrivs:\s1`)
			var env []string
			for line := range strings.Lines(v.fact(t, "sort /tmp/environment")) {
				line = strings.TrimSpace(line)
				if !regexp.MustCompile(`^(PATH|PWD|OLDPWD|SHLVL|_|TERM|NODE_EXTRA_CA_CERTS)=`).MatchString(line) {
					env = append(env, line)
				}
			}
			if diff := cmp.Diff(test.want, env); diff != "" {
				t.Errorf("its environment (-want +got):\n%s", diff)
			}
			if got := v.fact(t, "cat /tmp/folder"); got != "/workspace" {
				t.Errorf("it is in %s", got)
			}
		})
	}
}

// The line itself: Claude Code starts there, and what has no sense is told.
func TestImageAPersonMayStartClaude(t *testing.T) {
	needImage(t)
	v := start(t)
	if got, err := v.inside("as-agent", "claude", "--version"); err != nil || !strings.Contains(got, "Claude Code") {
		t.Errorf("%v: %s", err, got)
	}
	for _, test := range []struct{ want, script string }{
		{"no command was given", "as-agent"},
		{"neither a user nor uid:gid", "VM_USER=nobody:nothing as-agent true"},
		{"leave out the option -u", "setpriv --reuid=4711 --clear-groups as-agent true"},
	} {
		got, err := v.inside("sh", "-c", test.script)
		if err == nil || !strings.Contains(got, "as-agent: ") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %v: it says %q, want %q", test.script, err, got, test.want)
		}
	}
}
