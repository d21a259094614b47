#!/usr/bin/env python3
"""Prints what becomes of the latest requests of an account, over HTTP, until it is interrupted.

    JETPOST_URL=http://127.0.0.1:8088 JETPOST_TOKEN=jp_... examples/python/watch.py alice

It needs the standard library alone, and a token that allows read. A program that can be reached over HTTPS
is told of each event by a webhook instead: docs/contract/v1/api.md#webhooks.
"""

import sys
import time

from publish import Failed, call

PAUSE = 1  # seconds between looks


def main(account):
    seen = {}  # the revision that was printed last, by id
    while True:
        for request in reversed(call("request.list", account, {"limit": 100})["requests"]):
            if seen.get(request["id"]) != request["revision"]:
                seen[request["id"]] = request["revision"]
                reason = request.get("reason", {}).get("code", "")
                print(account, request["id"], request["state"], reason, flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ACCOUNT")
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        pass
    except (Failed, OSError) as failure:
        sys.exit(str(failure))
