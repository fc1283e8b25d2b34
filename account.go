package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Which user the agent is, and where that user's own files are.

// account is the agent's user.
type account struct {
	credential *syscall.Credential // nil where the agent runs as the server's own user
	home       string
	settings   string // the folder of Claude Code's own settings
}

// findUser decides which user the agent runs as: VM_USER or, without it, the
// server's own.
func (c *config) findUser(log *slog.Logger) (err error) {
	if c.User == "" {
		c.agent.home = os.Getenv("HOME")
		if os.Geteuid() == 0 && os.Getenv("IS_SANDBOX") != "1" {
			log.Warn("the server is root and VM_USER is not set: " +
				"Claude Code refuses to run as root; set VM_USER to an ordinary user " +
				"(or IS_SANDBOX=1 where a container is the sandbox)")
		}
	} else {
		err = c.becomeUser(log)
	}

	c.agent.settings = cmp.Or(os.Getenv("CLAUDE_CONFIG_DIR"), c.agent.home+"/.claude")
	return err
}

func (c *config) becomeUser(log *slog.Logger) error {
	named, err := user.Lookup(c.User)
	if err != nil {
		return fmt.Errorf("cannot use VM_USER=%q: %w; name a user of this machine", c.User, err)
	}
	credential, err := credentialOf(named)
	if err != nil {
		return fmt.Errorf("cannot read the ids of VM_USER=%q: %w", c.User, err)
	}
	c.agent.home = named.HomeDir

	self := os.Geteuid()
	if self == 0 {
		c.agent.credential = credential
		return nil
	}
	if self != int(credential.Uid) {
		return fmt.Errorf("cannot run the agent as VM_USER=%q: the server is not root; "+
			"start it as root or as that user, or set VM_USER to nothing", c.User)
	}
	log.Warn("server and agent are the same user: the agent can stop the server; " +
		"start the server as root to keep them apart")
	return nil
}

// credentialOf is the user's ids, with all of its groups.
func credentialOf(named *user.User) (*syscall.Credential, error) {
	texts, err := named.GroupIds()
	if err != nil {
		return nil, err
	}
	texts = append([]string{named.Uid, named.Gid}, texts...)

	var ids []uint32
	for _, text := range texts {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, err
		}
		ids = append(ids, uint32(id))
	}
	return &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, nil
}
