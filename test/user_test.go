package test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestARootServerWithoutVMUSERWarns(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to be that server")
	for env, warns := range map[string]bool{"IS_SANDBOX=": true, "IS_SANDBOX=1": false} {
		s := startServer(t, env)
		if got := strings.Contains(s.stderr.String(), "the agent would be root"); got != warns {
			t.Errorf("%s: a warning: %v, want %v:\n%s", env, got, warns, s.stderr)
		}
	}
}

// Or the agent would keep the server's group without a word.
func TestAnOrdinaryServerDoesNotTakeAnotherGroupForItsAgent(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to become an ordinary user")
	claude := publicSelf(t)
	own := serverCommand(t, "VM_USER=65534:65534")
	asUser(t, own, claude, nobody)
	startCommand(t, own) // the control

	cmd := serverCommand(t, "VM_USER=65534:20")
	asUser(t, cmd, claude, nobody)
	output, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(output), `VM_USER="65534:20"`) {
		t.Errorf("it ended with %v: %s", err, output)
	}
}

// A mounted folder's owner needs no account: any ids do.
func TestVMUSERMayBeIdsThatNoAccountHas(t *testing.T) {
	t.Parallel()
	needsRoot(t, "to become another user")
	cmd := serverCommand(t, "VM_USER=54321:20", "VM_CLAUDE="+publicSelf(t))
	cmd.Dir = "/"
	got := startCommand(t, cmd).describe("")
	if diff := cmp.Diff([]int{54321, 20}, []int{got.UID, got.GID}); diff != "" {
		t.Errorf("uid and gid (-want +got):\n%s", diff)
	}
	for _, want := range []string{"HOME=/home/54321", "USER=54321", "LOGNAME=54321"} {
		if !slices.Contains(got.Env, want) {
			t.Errorf("%s is not in the agent's environment:\n%s", want, strings.Join(got.Env, "\n"))
		}
	}
}
