#!/bin/sh
# Succeeds if the server answers that it is well, at the address that it listens on.
set -eu
addr=${VM_ADDR:-127.0.0.1:3001}
host=${addr%:*}
case $host in
"" | 0.0.0.0 | "[::]") host=localhost ;; # every address: curl tries IPv6 and IPv4
esac
# Never by a proxy of the network.
exec curl --noproxy '*' --globoff -fsS -m 4 -o /dev/null "http://$host:${addr##*:}/healthz"
