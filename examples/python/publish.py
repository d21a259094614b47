#!/usr/bin/env python3
"""Publishes a post of an account over HTTP, and waits until it is live.

    JETPOST_URL=http://127.0.0.1:8088 JETPOST_TOKEN=jp_... examples/python/publish.py alice launch-1 'Hello'

It needs the standard library alone, and a token that allows publish and read:

    jetpost tokens create shop --accounts alice --verbs publish,read
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request


class Failed(Exception):
    """An operation was not done."""


def call(operation, account, body):
    """Carries out an operation on an account and returns its answer."""
    request = urllib.request.Request(
        f"{os.environ['JETPOST_URL']}/api/v1/{operation}/{account}",
        data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + os.environ["JETPOST_TOKEN"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as failed:
        error = json.load(failed)["error"]  # code is for programs, detail and hint are for people
        raise Failed(f"{error['code']}: {error['detail']}") from failed


def main(account, request_id, text):
    # The id comes from the caller, who keeps it: sent again, it is the same request.
    answer = call("request.publish", account, {"id": request_id, "posts": [{"text": text}]})
    if "request" not in answer:
        sys.exit(f"refused: {json.dumps(answer)}")
    for _ in range(60):
        request = call("request.get", account, {"id": request_id})["request"]
        if request["state"] == "published":
            for post in request["posts"]:
                print(post["url"])
            return
        if request["state"] in ("failed", "cancelled", "unknown"):
            break
        time.sleep(1)
    sys.exit(f"request {request_id} is {request['state']}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} ACCOUNT ID TEXT")
    try:
        main(*sys.argv[1:])
    except (Failed, OSError) as failure:
        sys.exit(str(failure))
