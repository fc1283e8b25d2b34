#!/bin/sh
# Prepares the container and becomes the command (vm-server), which is PID 1.
# Nothing here gains privileges; what can't be done is said and left.
set -eu

say() { echo "entrypoint: $*" >&2; }

workspace=${VM_WORKSPACE:-/workspace}
user=${VM_USER:-}

# An identity from the environment serves for both of git's roles.
if [ -n "${GIT_AUTHOR_NAME:-}" ]; then export GIT_COMMITTER_NAME="${GIT_COMMITTER_NAME:-$GIT_AUTHOR_NAME}"; fi
if [ -n "${GIT_AUTHOR_EMAIL:-}" ]; then export GIT_COMMITTER_EMAIL="${GIT_COMMITTER_EMAIL:-$GIT_AUTHOR_EMAIL}"; fi

if [ "$(id -u)" != 0 ]; then
	for dir in "$workspace" "${HOME:-/}"; do
		[ -w "$dir" ] || say "$dir is not writable for uid $(id -u): make it so, or start the container as root"
	done
	# Some engines hand capabilities that were added to a user who is not root.
	exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all -- "$@"
fi

if [ -n "$user" ]; then
	as_agent() { setpriv --reuid="$user" --regid="$user" --clear-groups -- "$@" 2>/dev/null; }
	home=$(getent passwd "$user" | cut -d: -f6)
	as_agent true || say "cannot become $user: the container needs the capabilities SETUID and SETGID"
	# Fly, for one, mounts volumes as root; the workspace may be a new folder in one.
	for dir in "$home" "$workspace"; do
		[ -d "$dir" ] || as_agent mkdir -p "$dir" || :
		# Never through a link, which the agent may have laid to what is root's.
		if ! as_agent test -w "$dir" && [ "$(readlink -f "$dir")" = "$dir" ]; then
			chown -h "$user:" "$dir" 2>/dev/null || :
		fi
		as_agent test -w "$dir" || say "$dir is not writable for $user, and may not be changed from inside: give it to uid $(id -u "$user") where it comes from, or add the capability CHOWN"
	done
	if [ -n "${VM_TOKEN_FILE:-}" ] && as_agent test -r "$VM_TOKEN_FILE"; then
		say "the agent can read VM_TOKEN_FILE: make it root's with mode 0400"
	fi
fi

# Three capabilities are enough: to become the agent's user, and to end its
# processes. Dropping the others takes SETPCAP; without it there are most often
# no others to drop.
if setpriv --bounding-set=-all,+setuid,+setgid,+kill --inh-caps=-all true 2>/dev/null; then
	exec setpriv --no-new-privs --bounding-set=-all,+setuid,+setgid,+kill --inh-caps=-all -- "$@"
fi
exec setpriv --no-new-privs -- "$@"
