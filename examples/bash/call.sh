#!/usr/bin/env bash
# Carries out an operation over HTTP with curl, and prints its answer:
#
#   export JETPOST_URL=http://127.0.0.1:8088 JETPOST_TOKEN=jp_...
#   examples/bash/call.sh request.publish alice '{"id":"launch-4","posts":[{"text":"Hello"}]}'
#   examples/bash/call.sh request.get alice '{"id":"launch-4"}' | jq -r .request.state
#   examples/bash/call.sh account.pause alice '{"operation_id":"4f1c","reason":"lunch"}'
#
# The operations and their bodies: docs/contract/v1/api.md, or $JETPOST_URL/api/v1/openapi.json.
# "-" stands for no account. Exit code 1: it was not done, and standard error says why.
set -euo pipefail
if (($# < 2 || $# > 3)); then
	echo "usage: $0 OPERATION ACCOUNT [BODY]" >&2
	exit 2
fi
path=$1
[[ $2 == - ]] || path+=/$2

# The token is no argument: other users of the machine see those.
answer=$(curl --silent --show-error --max-time 150 --write-out '\n%{http_code}' --config - --header 'Content-Type: application/json' --data "${3:-{\}}" \
	"$JETPOST_URL/api/v1/$path" <<<"header = \"Authorization: Bearer $JETPOST_TOKEN\"")
if [[ ${answer##*$'\n'} != 200 ]]; then
	echo "${answer%$'\n'*}" >&2
	exit 1
fi
echo "${answer%$'\n'*}"
