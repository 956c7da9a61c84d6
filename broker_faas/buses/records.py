"""A record as bytes for the socket, and what the server's answer to it means."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from ..bus import Record
from ..errors import BusFull, BusRefused, EventTooLarge, FaasError, Overtaken
from ..layout import DEAD

# JetStream's err_codes
FULL = {10077, 10023, 10047, 10028}
LATER = {10158, 10167, 10008, 10210}  # id in process; too many requests; JetStream starting; too many open batches
NO_ATOMIC = 10174  # the stream takes no atomic batches
DUPLICATE, INCOMPLETE = 10201, 10176  # of a batch
NOT_LAST = 10071  # of a subject, another record is the last one
MOVING = 10164  # of a subject, another record is on its way, in this batch or before it
ROLLUP = 10111  # not permitted, or no such kind


def frame(record: Record, reply: str, batch: bytes) -> bytes:
    subject, msg_id, headers, data = record
    ours = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n%b" % (msg_id.encode(), batch)
    size = len(ours) + len(headers) + 2
    # One format: each byte of headers and data is copied once.
    return b"HPUB %b %b %d %d\r\n%b%b\r\n%b\r\n" % (subject.encode(), reply.encode(), size, size + len(data), ours, headers, data)


# Refused by any stream, but after the duplicate was looked for: whether a record would be stored, without storing it. A server checks
# size and permission before, too.
DRY = b"Nats-Rollup: none\r\n"


def follows(sequence: int, subject: bytes = b"") -> bytes:
    """Header: stored only if the last record on `subject` (not given: on the record's own) has this sequence; 0: if there is none."""
    of = b"Nats-Expected-Last-Subject-Sequence-Subject: %b\r\n" % subject if subject else b""
    return b"Nats-Expected-Last-Subject-Sequence: %d\r\n%b" % (sequence, of)


class Verdict(NamedTuple):
    """code: 0, JetStream's err_code, or 503 for nobody there. sequence: of the record, or the last one of a batch."""

    code: int
    text: str = ""
    duplicate: bool = False
    sequence: int = 0


def verdict(headers: bytes, data: bytes) -> Verdict:
    if not data:
        return Verdict(503, "no stream takes this subject")
    answer = orjson.loads(data)
    if error := answer.get("error"):
        return Verdict(error.get("err_code") or error.get("code") or 1, error.get("description", ""))
    return Verdict(0, "", answer.get("duplicate", False), answer.get("seq", 0))


def refusal(code: int, text: str, record: Record, stream: str) -> FaasError:
    if code in FULL:
        option = "dead_bytes" if stream == DEAD else "max_bytes"
        return BusFull(f"stream {stream!r} has no space left ({text}, err_code {code}); try again when some is freed, or raise {option}")
    if code == NOT_LAST:
        return Overtaken(f"another has stored {record.subject} since it was read ({text}): reading goes on behind that")
    if code == 10054:
        return EventTooLarge(len(record.headers) + len(record.data), 0, f"record on {record.subject}")
    return BusRefused(f"stream {stream!r} refuses a record on {record.subject}: {text} (err_code {code})", code)
