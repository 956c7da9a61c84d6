"""What a NATS message becomes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

import msgspec

from ...errors import EventInvalid
from ...event import CloudEvent
from ...layout import header_lines
from ...nats_binding import from_nats
from ..batch import Batch, Item, Raw, Refused

_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Message(NamedTuple):
    """id: its position at the source. time: when it was stored there, µs since 1970; None if it was not. sequence: of a stream."""

    subject: bytes
    headers: bytes
    data: bytes
    id: str
    time: int | None = None
    sequence: int = 0

    @property
    def size(self) -> int:
        return len(self.subject) + len(self.headers) + len(self.data)


def stored_message(stream: str, sequence: int, microseconds: int, subject: bytes, headers: bytes, data: bytes) -> Message:
    """The time is a part of the id: a stream that was deleted and made anew counts from 1 again."""
    return Message(subject, headers, data, f"{stream}/{sequence}@{microseconds}", microseconds, sequence)


def translate(message: Message, source: str, event_type: str) -> CloudEvent | Refused:
    """Pure. Of a message that is no CloudEvent: its data, as one of `source`."""
    try:
        if event := from_nats(message.headers, message.data):
            return event
        headers = _fields(message)
        content_type = headers.get("content-type", "")
        trace = headers.get("traceparent", "")
        return CloudEvent(
            type=event_type,
            source=source,
            id=message.id,
            data=message.data if message.data or content_type else None,
            datacontenttype=content_type or None,
            subject=message.subject.decode(),
            time=None if message.time is None else datetime.fromtimestamp(message.time / 1e6, UTC),
            traceparent=trace if _TRACE.fullmatch(trace) else None,
        )
    except EventInvalid as error:
        return Refused(message.id, str(error), _fields(message), message.data)
    except UnicodeDecodeError:
        return Refused(message.id, f"the subject is not UTF-8: {text(message.subject)!r:.200}", _fields(message), message.data)


def _fields(message: Message) -> dict[str, str]:
    """By lower-case name, the first of several."""
    return dict(reversed(header_lines(message.headers))) if message.headers else {}


def text(subject: bytes) -> str:
    return subject.decode("utf-8", "replace")


def batch(messages: Sequence[Message], source: str, event_type: str, token: object = None, positions: Mapping[str, str] = {}) -> Batch:
    """Neighbours of one subject together: the order stays."""
    parts: list[tuple[str, list[Item]]] = []
    given: list[list[Message]] = []
    for subject, neighbours in groupby(messages, key=lambda message: message.subject):
        given.append(list(neighbours))
        parts.append((text(subject), [translate(message, source, event_type) for message in given[-1]]))
    return Batch(parts, token, positions, lambda part, n: raw(given[part][n]))


def raw(message: Message) -> Raw:
    """As it came. rest: what again() takes."""
    headers = dict(reversed(header_lines(message.headers))) if message.headers else {}
    return Raw(message.id, headers, message.data, (message.subject, message.headers, message.id, message.time))


def again(data: bytes, rest: object, source: str, event_type: str) -> Batch:
    """The batch of one message that was kept. Raises ValueError."""
    subject, headers, id, time = msgspec.convert(rest, tuple[bytes, bytes, str, int | None])
    return batch([Message(subject, headers, data, id, time)], source, event_type)
