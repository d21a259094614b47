#!/usr/bin/env bash
# Prints what happens to the requests of an account as it happens, with the nats command line.
# It begins with the last event of each kind and request that is stored:
#
#   NATS_URL=nats://127.0.0.1:4222 examples/bash/watch.sh alice
#   NATS_URL=nats://127.0.0.1:4222 examples/bash/watch.sh alice 10   # ends after ten events
#
# It needs nats (github.com/nats-io/natscli) and jq. A customer or a reader, whose NATS account has live events
# alone, leaves --stream and --last-per-subject out.
set -euo pipefail
if (($# < 1 || $# > 2)); then
	echo "usage: $0 ACCOUNT [COUNT]" >&2
	exit 2
fi
nats subscribe --raw --stream JETPOST_EVENTS --last-per-subject --count "${2:-0}" "jetpost.event.request.*.$1.*" |
	jq --unbuffered --raw-output '[.type, .request.account, .request.id, .request.state, .request.reason.code // empty] | join(" ")'
