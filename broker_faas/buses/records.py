"""A record as bytes for the socket, and what the server's answer to it means."""

from __future__ import annotations

import orjson

from ..bus import Record
from ..errors import BusFull, BusRefused, EventTooLarge, FaasError
from ..layout import DEAD

# JetStream's err_codes
FULL = {10077, 10023, 10047, 10028}
LATER = {10158, 10167, 10008, 10210}  # id in process; too many requests; JetStream starting; too many open batches
NO_ATOMIC = 10174  # the stream takes no atomic batches


def frame(record: Record, reply: str, batch: bytes) -> bytes:
    headers = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n%b%b\r\n" % (record.msg_id.encode(), batch, record.headers)
    size = len(headers)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (record.subject.encode(), reply.encode(), size, size + len(record.data), headers, record.data)


def verdict(headers: bytes, data: bytes) -> tuple[int, str, bool]:
    """(0 or JetStream's err_code or 503 for nobody there, description, was it a duplicate)."""
    if not data:
        return 503, "no stream takes this subject", False
    answer = orjson.loads(data)
    if error := answer.get("error"):
        return error.get("err_code") or error.get("code") or 1, error.get("description", ""), False
    return 0, "", answer.get("duplicate", False)


def refusal(code: int, text: str, record: Record, stream: str) -> FaasError:
    if code in FULL:
        option = "dead_bytes" if stream == DEAD else "max_bytes"
        return BusFull(f"stream {stream!r} has no space left ({text}, err_code {code}); try again when some is freed, or raise {option}")
    if code == 10054:
        return EventTooLarge(len(record.headers) + len(record.data), 0, f"record on {record.subject}")
    return BusRefused(f"stream {stream!r} refuses a record on {record.subject}: {text} (err_code {code})", code)
