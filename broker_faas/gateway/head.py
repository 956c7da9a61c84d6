"""Heads of requests that two readers could take for two different things are refused. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MAX_FIELDS = 100
MAX_HEAD = 64 << 10  # bytes
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SINGLE = {b"host", b"authorization", b"content-type", b"content-encoding", b"content-length", b"transfer-encoding", b"idempotency-key"}


def check_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """(status, what is wrong), or None. headers: lower-case names."""
    if version not in ("1.0", "1.1"):
        return 505, "Only HTTP/1.1 is spoken here."
    if len(headers) > MAX_FIELDS:
        return 431, f"The request has {len(headers)} header fields; at most {MAX_FIELDS} are taken."
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
        return 431, f"The header fields have more than {MAX_HEAD:,} bytes."
    counts = Counter(name for name, _ in headers)
    for name, count in counts.items():
        if count > 1 and (name in _SINGLE or name.startswith((b"ce-", b"webhook-"))):
            return 400, f"The header {name.decode('ascii', 'replace')[:60]!r} is given twice."
    if b"content-length" in counts and b"transfer-encoding" in counts:
        return 400, "The request has Content-Length and Transfer-Encoding; it takes one of them."
    host = next((value for name, value in headers if name == b"host"), b"")
    if not _HOST.fullmatch(host):
        return 400, "The request has no valid Host."
    return None
