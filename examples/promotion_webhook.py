"""Be told of a promotion: register a webhook with MLflow's server, and receive what it sends.

    export PROMOTION_SECRET=...                                             # the same on both sides
    python examples/promotion_webhook.py register https://ci.example.com/promoted    # once; MLFLOW_TRACKING_URI names the server
    python examples/promotion_webhook.py receive 8080                       # behind a proxy with TLS: MLflow posts to https alone

MLflow posts for every alias that is set on any version: this receiver checks the signature, and acts on `champion` alone.
The server signs the delivery's id, its time and the body with HMAC-SHA256; an old delivery is refused, so that none is replayed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlflow import MlflowClient

OLDEST = 300  # seconds between the server's clock and ours


def register(url: str, secret: str) -> str:
    """Ask the server to post to a URL whenever an alias is set; return the webhook's id."""
    events = ["model_version_alias.created"]
    return str(MlflowClient().create_webhook("promotions", url, events, secret=secret).webhook_id)


def is_signed(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Return whether a delivery comes from a server that knows the secret, and is recent."""
    name, sent = headers.get("X-MLflow-Delivery-Id", ""), headers.get("X-MLflow-Timestamp", "0")
    digest = hmac.new(secret.encode(), f"{name}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    recent = sent.isdecimal() and abs(time.time() - int(sent)) < OLDEST
    return recent and hmac.compare_digest(headers.get("X-MLflow-Signature", ""), expected)


def receiver(port: int, secret: str, act: Callable[[dict[str, str]], object]) -> ThreadingHTTPServer:
    """Return a server on this machine that calls `act` with name, alias and version of every signed delivery."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            signed = is_signed(dict(self.headers), body, secret)
            if signed:
                act(json.loads(body)["data"])
            self.send_response(204 if signed else 401)
            self.end_headers()

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def announce(change: dict[str, str]) -> None:
    """Say that there is a new champion; start a deployment here."""
    if change["alias"] == "champion":
        print(f"version {change['version']} of {change['name']} is the champion", flush=True)


if __name__ == "__main__":
    what, target = sys.argv[1:]
    if what == "register":
        print(register(target, os.environ["PROMOTION_SECRET"]))
    else:
        receiver(int(target), os.environ["PROMOTION_SECRET"], announce).serve_forever()
