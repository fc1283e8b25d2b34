package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// agentUser is the user that the agent runs as.
type agentUser struct {
	credential *syscall.Credential // nil for the server's own user
	name       string              // "" for the server's own user
	home       string
	configDir  string // of Claude Code's own settings
}

// resolveUser finds the user that VM_USER names: the server's own one if it is empty.
func resolveUser(name string, log *slog.Logger) (u agentUser, err error) {
	isRoot := os.Geteuid() == 0
	if name == "" {
		u.home = os.Getenv("HOME")
	} else {
		u, err = lookupUser(name)
		if err != nil {
			return u, fmt.Errorf("cannot use VM_USER=%q: %w; "+
				"name a user of this machine, or give uid:gid", name, err)
		}

		isRoot = u.credential.Uid == 0
	}

	u.configDir = cmp.Or(os.Getenv("CLAUDE_CONFIG_DIR"), u.home+"/.claude")

	if isRoot && os.Getenv("IS_SANDBOX") != "1" {
		if name != "" {
			return u, fmt.Errorf("cannot run the agent as VM_USER=%q: "+
				"Claude Code refuses to run as root; name another user "+
				"(or set IS_SANDBOX=1 where a container is the sandbox)", name)
		}

		log.Warn("the agent would be root, which Claude Code refuses: " +
			"set VM_USER to another user (or IS_SANDBOX=1 where a container is the sandbox)")
	}

	if name != "" && os.Geteuid() == 0 {
		return u, nil
	}

	// An ordinary server can only be that user already.
	if name != "" {
		isPair := strings.Contains(name, ":")
		hasGroup := !isPair || os.Getegid() == int(u.credential.Gid)
		if os.Geteuid() != int(u.credential.Uid) || !hasGroup {
			return u, fmt.Errorf("cannot run the agent as VM_USER=%q: the server is not root; "+
				"start it as root or as that user and group, or unset VM_USER", name)
		}

		u.credential = nil
	}

	log.Warn("server and agent are the same user: the agent can stop the server; " +
		"start the server as root, with VM_USER, to keep them apart")
	return u, nil
}

// canRead reports whether a file's mode lets the agent read it.
func (u agentUser) canRead(path string) bool {
	info, err := os.Stat(path)
	if err != nil || u.credential == nil { // as the server's own user
		return err == nil
	}

	stat := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	switch {
	case stat.Uid == u.credential.Uid:
		return mode&0o400 != 0
	case stat.Gid == u.credential.Gid || slices.Contains(u.credential.Groups, stat.Gid):
		return mode&0o040 != 0
	default:
		return mode&0o004 != 0
	}
}

// lookupUser finds a name's account. A pair uid:gid needs none: its home is /home/UID and
// its only group gid. If the uid has an account, that gives its name and further groups.
func lookupUser(name string) (agentUser, error) {
	uid, gid, isPair := strings.Cut(name, ":")
	if !isPair {
		account, err := user.Lookup(name)
		if err != nil {
			return agentUser{}, err
		}
		groups, err := account.GroupIds()
		if err != nil {
			return agentUser{}, err
		}
		credential, err := parseCredential(account.Uid, account.Gid, groups)
		return agentUser{credential: credential, name: name, home: account.HomeDir}, err
	}

	u := agentUser{name: uid, home: "/home/" + uid}
	var groups []string
	account, unknown := user.LookupId(uid)
	if unknown == nil {
		var err error
		groups, err = account.GroupIds()
		if err != nil {
			return u, err
		}
		u.name = account.Username
	}

	var err error
	u.credential, err = parseCredential(uid, gid, groups)
	return u, err
}

func parseCredential(uid, gid string, groups []string) (*syscall.Credential, error) {
	const invalidID = math.MaxUint32 // the kernel takes it for no id at all
	var ids []uint32
	for _, text := range append([]string{uid, gid}, groups...) {
		id, err := strconv.ParseUint(text, 10, 32)
		if err != nil || id == invalidID {
			return nil, fmt.Errorf("%q is not an id", text)
		}
		ids = append(ids, uint32(id))
	}

	return &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, nil
}

// resolveClaude makes the path absolute, since the agent starts in the workspace.
func (c *config) resolveClaude() error {
	path, err := exec.LookPath(c.Claude)
	if err == nil {
		c.Claude, err = filepath.Abs(path)
	}
	if err != nil {
		return fmt.Errorf("cannot find Claude Code (VM_CLAUDE): %w; "+
			"install it: npm install -g @anthropic-ai/claude-code", err)
	}

	return nil
}

func (c *config) resolveWorkspace() (err error) {
	c.Workspace, err = filepath.Abs(c.Workspace)
	if err == nil {
		var info fs.FileInfo
		info, err = os.Stat(c.Workspace)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a folder", c.Workspace)
		}
	}

	if err != nil {
		return fmt.Errorf("cannot use VM_WORKSPACE: %w; create it or name another folder", err)
	}
	return nil
}

// checkStart wants Claude Code to start in the workspace as the agent's user. It does not
// wait for what that prints.
func (c *config) checkStart() error {
	start := func(dir string) error {
		cmd := exec.Command(c.Claude, "--version")
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.agent.home}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: c.agent.credential}
		err := cmd.Start()
		if err == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}

		return err
	}

	err := start(c.Workspace)
	switch {
	case err == nil:
		return nil
	case start("/") == nil:
		return fmt.Errorf("cannot use VM_WORKSPACE: %w; "+
			"let the agent's user (VM_USER) enter it, with chown or chmod", errors.Unwrap(err))
	default:
		return fmt.Errorf("cannot start Claude Code (VM_CLAUDE): %w; "+
			"name its program, and let the agent's user (VM_USER) execute it", err)
	}
}
