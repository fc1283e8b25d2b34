#!/bin/sh
# shellcheck disable=SC2034 # the variables are for who sources this

# find_agent USER finds the agent's user as the server does (account.go). USER is a name
# or uid:gid. It sets uid, gid, name, home, and groups, which is setpriv's option, and
# fails where USER is neither.
find_agent() {
	if uid=$(id -u "$1" 2>/dev/null); then
		gid=$(id -g "$1") groups=--init-groups
		name=$(id -un "$1") home=$(getent passwd "$1" | cut -d: -f6)
		return 0
	fi

	case $1 in
	*[!0-9:]* | *:*:* | :* | *:) return 1 ;;
	*:*) ;;
	*) return 1 ;;
	esac
	uid=${1%%:*} gid=${1#*:} groups=--clear-groups
	name=$(id -un "$uid" 2>/dev/null) || name=$uid
	home=/home/$uid
}
