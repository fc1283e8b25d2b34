#!/bin/sh
# Succeeds if both programs listen, Squid on port 3128 and socat on 3001. It does not
# connect: that would take one of their connections.
set -eu
for port in 0C38 0BB9; do
	grep -qE "^ *[0-9]+: [0-9A-F]{8}:$port 00000000:0000 0A " /proc/net/tcp
done
