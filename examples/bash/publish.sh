#!/usr/bin/env bash
# Publishes a post of an account with the nats command line, and waits until it is live:
#
#   NATS_URL=nats://127.0.0.1:4222 examples/bash/publish.sh alice launch-1 'Hello'
#
# It needs nats (github.com/nats-io/natscli) and jq.
set -euo pipefail
if (($# != 3)); then
	echo "usage: $0 ACCOUNT ID TEXT" >&2
	exit 2
fi
account=$1 id=$2

request=$(jq -cn --arg id "$id" --arg text "$3" '{id: $id, posts: [{text: $text}]}')
# The worker answers once it has accepted or refused the request. Sent again with the same
# id it is the same request, so that a repeat after a lost answer is safe.
answer=$(nats request --raw --no-templates --timeout 15s "jetpost.api.v1.request.publish.$account" "$request")
if ! jq -e '.request' <<<"$answer" >/dev/null; then
	echo "not accepted: $answer" >&2
	exit 1
fi

for _ in {1..60}; do
	answer=$(nats request --raw --no-templates --timeout 15s "jetpost.api.v1.request.get.$account" "$(jq -cn --arg id "$id" '{id: $id}')")
	state=$(jq -r '.request.state // .error.detail' <<<"$answer")
	case $state in
	published)
		jq -r '.request.posts[].url' <<<"$answer"
		exit
		;;
	failed | cancelled | unknown)
		break
		;;
	esac
	sleep 1
done
echo "request $id: $state" >&2
exit 1
