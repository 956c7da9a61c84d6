"""Signatures of webhooks: https://www.standardwebhooks.com, version 1.0.0, symmetric. Pure."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256

from ...event import CloudEvent
from ...layout import key_hash

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a key


def key(secret: str) -> bytes:
    """The bytes of `whsec_…`. Raises ValueError, which does not show them."""
    try:
        if not secret.startswith(PREFIX):
            raise ValueError
        found = b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        found = b""
    if not SHORTEST <= len(found) <= LONGEST:
        raise ValueError(f"must be {PREFIX} and {SHORTEST} to {LONGEST} random bytes in base64, as of: openssl rand -base64 32")
    return found


def message_id(target: str, event: CloudEvent) -> str:
    """The same for each attempt. A hash: an id of an event may hold the dot that ends an id here."""
    return f"msg_{key_hash(target, event.source, event.id)}"


def sign(keys: Iterable[bytes], id: str, timestamp: int, body: bytes) -> str:
    """The value of webhook-signature: one signature a key. timestamp: seconds since 1970."""
    signed = b"%b.%d.%b" % (id.encode(), timestamp, body)
    return " ".join(f"v1,{b64encode(hmac.digest(one, signed, sha256)).decode()}" for one in keys)
