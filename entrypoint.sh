#!/bin/sh
# Prepares the container and becomes the command (vm-server), which is PID 1.
# Nothing here gains privileges; what can't be done is said and left.
set -eu

say() { echo "entrypoint: $*" >&2; }

# A flag is for the server: docker run IMAGE -h
case ${1:-} in
-*) set -- vm-server "$@" ;;
esac

workspace=${VM_WORKSPACE:-/workspace}
user=${VM_USER:-}

# An identity from the environment serves for both of git's roles.
if [ -n "${GIT_AUTHOR_NAME:-}" ]; then export GIT_COMMITTER_NAME="${GIT_COMMITTER_NAME:-$GIT_AUTHOR_NAME}"; fi
if [ -n "${GIT_AUTHOR_EMAIL:-}" ]; then export GIT_COMMITTER_EMAIL="${GIT_COMMITTER_EMAIL:-$GIT_AUTHOR_EMAIL}"; fi

if [ "$(id -u)" != 0 ]; then
	# What engines give as a home to an id without an account.
	case ${HOME:-/} in
	/ | /workspace | "$workspace") HOME=/home/$(id -u) && export HOME ;;
	esac
	[ -d "$HOME" ] || mkdir -m 0700 "$HOME" 2>/dev/null || :
	for dir in "$workspace" "$HOME"; do
		[ -w "$dir" ] || say "$dir is not writable for uid $(id -u): make it so, or start the container as root"
	done
	# Some engines hand capabilities that were added to a user who is not root.
	exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all -- "$@"
fi

as_agent() { setpriv --reuid="$uid" --regid="$gid" "$groups" -- "$@" 2>/dev/null; }

# Nobody's yet: root's, and empty but for what mkfs makes. Never through a link,
# which the agent may have laid to what is root's.
is_fresh() {
	[ "$(readlink -f "$1")" = "$1" ] && [ "$(stat -c %u "$1")" = 0 ] &&
		entries=$(cd "$1" && find . -mindepth 1 -maxdepth 1 ! -name lost+found) && [ -z "$entries" ]
}

# advise FOLDER: why the agent can't write there, and what to do.
advise() {
	if [ ! -d "$1" ]; then
		parent=$(dirname "$1")
		say "$1 is not there, and $user may not make it: make $parent writable for $uid:$gid (chmod 1777 /home, for the volume of homes)"
		return
	fi
	owner=$(stat -c %u:%g "$1")
	case $owner in
	0:*) say "$1 is not writable for $user: it is root's; give it to $uid:$gid where it comes from, or, while it is empty, add the capability CHOWN" ;;
	*) say "$1 is not writable for $user: it belongs to $owner, and stays so; set VM_USER=$owner to run the agent as its owner, or give it to $uid:$gid where it comes from" ;;
	esac
}

# shellcheck source=image/agent-user.sh
. /usr/local/lib/agent-user.sh
if find_agent "$user"; then
	case $groups in
	--init-groups) mode=0755 ;;
	*) mode=0700 ;; # an id without an account
	esac
	as_agent true || say "cannot become $user: the container needs the capabilities SETUID and SETGID"
	# A volume of homes that the image did not fill, as on Fly.
	if [ ! -d "$home" ] && ! as_agent test -w /home && is_fresh /home; then chmod 1777 /home 2>/dev/null || :; fi
	[ -d "$home" ] || as_agent mkdir -m "$mode" "$home" || :
	[ -d "$workspace" ] || as_agent mkdir -p "$workspace" || :
	for dir in "$home" "$workspace"; do
		if [ -d "$dir" ] && ! as_agent test -w "$dir" && is_fresh "$dir" && chown -h "$uid:$gid" "$dir" 2>/dev/null; then
			say "$dir was empty and root's: it is $user's now"
		fi
		as_agent test -w "$dir" || advise "$dir"
	done
	if [ -d /home/.claude ] && [ ! -d "$home/.claude" ]; then
		say "/home holds what was in /home/node: mount that volume at /home/node, as before, or move all that is node's into a folder node in it"
	fi
	for name in VM_TOKEN_FILE VM_GIT_TOKEN_FILE; do
		eval "file=\${$name:-}"
		if [ -n "$file" ] && as_agent test -r "$file"; then
			say "the agent can read $name: make it root's with mode 0400"
		fi
	done
fi

# Three capabilities are enough: to become the agent's user, and to end its
# processes. Dropping the others takes SETPCAP; without it there are most often
# no others to drop.
if setpriv --bounding-set=-all,+setuid,+setgid,+kill --inh-caps=-all true 2>/dev/null; then
	exec setpriv --no-new-privs --bounding-set=-all,+setuid,+setgid,+kill --inh-caps=-all -- "$@"
fi
exec setpriv --no-new-privs -- "$@"
