package main

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
		if got := strings.Contains(s.stderr.String(), "the server is root"); got != warns {
			t.Errorf("%s: a warning: %v, want %v:\n%s", env, got, warns, s.stderr)
		}
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
