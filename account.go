package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// Which user the agent is, and where that user's own files are.

// account is the agent's user.
type account struct {
	credential *syscall.Credential // nil where the agent runs as the server's own user
	name       string              // "" for the server's own
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

func (c *config) becomeUser(log *slog.Logger) (err error) {
	c.agent, err = findAccount(c.User)
	if err != nil {
		return fmt.Errorf("cannot use VM_USER=%q: %w; "+
			"name a user of this machine, or give uid:gid", c.User, err)
	}
	uid := int(c.agent.credential.Uid)
	if uid == 0 && os.Getenv("IS_SANDBOX") != "1" {
		log.Warn("VM_USER is root: Claude Code refuses to run as root; name another user " +
			"(or set IS_SANDBOX=1 where a container is the sandbox)")
	}

	self := os.Geteuid()
	if self == 0 {
		return nil
	}
	isPair := strings.Contains(c.User, ":")
	hasGroup := !isPair || os.Getegid() == int(c.agent.credential.Gid)
	if self != uid || !hasGroup {
		return fmt.Errorf("cannot run the agent as VM_USER=%q: the server is not root; "+
			"start it as root or as that user and group, or set VM_USER to nothing", c.User)
	}
	c.agent.credential = nil
	log.Warn("server and agent are the same user: the agent can stop the server; " +
		"start the server as root to keep them apart")
	return nil
}

// findAccount is the named user's account, or for uid:gid one that needs no entry
// anywhere: its home is /home/UID, its only group gid. Where the uid has an entry,
// that gives its name and its further groups.
func findAccount(name string) (account, error) {
	uid, gid, isPair := strings.Cut(name, ":")
	if isPair {
		credential, err := idsOf(uid, gid)
		a := account{credential: credential, name: uid, home: "/home/" + uid}
		named, unknown := user.LookupId(uid)
		if err != nil || unknown != nil {
			return a, err
		}

		groups, err := named.GroupIds()
		if err != nil {
			return a, err
		}
		a.name = named.Username
		a.credential, err = idsOf(uid, gid, groups...)
		return a, err
	}

	named, err := user.Lookup(name)
	if err != nil {
		return account{}, err
	}
	credential, err := credentialOf(named)
	return account{credential: credential, name: name, home: named.HomeDir}, err
}

// credentialOf is the user's ids, with all of its groups.
func credentialOf(named *user.User) (*syscall.Credential, error) {
	groups, err := named.GroupIds()
	if err != nil {
		return nil, err
	}
	return idsOf(named.Uid, named.Gid, groups...)
}

// noID is what the kernel takes for no id at all.
const noID = math.MaxUint32

func idsOf(uid, gid string, groups ...string) (*syscall.Credential, error) {
	var ids []uint32
	for _, text := range append([]string{uid, gid}, groups...) {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil || id == noID {
			return nil, fmt.Errorf("%q is no id", text)
		}
		ids = append(ids, uint32(id))
	}
	return &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, nil
}
