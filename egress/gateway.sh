#!/bin/sh
# The gateway: Squid for the way out, socat for the way in. When one of them ends, so
# does the container.
#
#   INSIDE        this container's address on the network without a way out
#   VM            the address there of the container vm
#   EGRESS_ALLOW  names to let through, by spaces or commas; "default" is the list
#                 /etc/egress/allow, a leading dot also means every name below
set -eu

die() {
	echo "gateway: $*" >&2
	exit 1
}

: "${INSIDE:?}" "${VM:?}"

asked=$(echo "${EGRESS_ALLOW:-default}" | tr ',\t\n' '   ' | tr '[:upper:]' '[:lower:]')
names=
set -f
for name in $asked; do
	if [ "$name" = default ]; then
		names="$names $(sed 's/#.*//' /etc/egress/allow)"
		continue
	fi
	# The last label has a letter first, or it would be an address.
	echo "$name" | grep -qE '^\.?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?$' ||
		die "EGRESS_ALLOW has \"$name\", which is no host name: write names such as example.com, .example.com with all below it, or default; no address, URL, port or *"
	names="$names $name"
done
[ -n "$names" ] || names=$(sed 's/#.*//' /etc/egress/allow)

# Squid refuses a list that has a name twice, or one below another with a dot.
# shellcheck disable=SC2086 # a list
printf '%s\n' $names | sort -u | awk '
	{ name[NR] = $0; if (/^\./) above[$0] = 1 }
	END {
		for (i = 1; i <= NR; i++) {
			rest = name[i]; covered = (("." rest) in above)
			while (!covered && (dot = index(substr(rest, 2), "."))) {
				rest = substr(rest, dot + 1); covered = (rest in above)
			}
			if (!covered) print name[i]
		}
	}' >/tmp/names
echo "gateway: lets through $(tr '\n' ' ' </tmp/names | sed 's/ $//')"
echo "http_port $INSIDE:3128" >/tmp/port.conf

# Not on the inside, where the agent could take all the connections there may be.
outside=
for address in $(hostname -I); do
	case $address in
	"$INSIDE" | *:*) ;;
	*) outside=${outside:-$address} ;;
	esac
done
[ -n "$outside" ] || die "there is no network but the inside one: nothing could pass"

trap 'exit 1' TERM INT
(
	squid -N -f /etc/egress/squid.conf || :
	kill -TERM $$
) &
(
	socat "TCP-LISTEN:3001,bind=$outside,fork,reuseaddr,max-children=128,keepalive" "TCP:$VM:3001,connect-timeout=10,keepalive" || :
	kill -TERM $$
) &
wait
