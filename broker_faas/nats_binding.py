"""Events in NATS messages: binary as in the draft of the CloudEvents binding, structured as in 1.0.2, both ways. Pure.

Binary: `ce-` headers, datacontenttype among them, percent-encoded as over HTTP. Structured: one JSON object; 1.0.2 has no header for it,
the draft has Content-Type, which is written and need not be there to be read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .attributes import kind
from .codec import STRUCTURED, to_json
from .event import CloudEvent
from .layout import header_lines

_REQUIRED = {"ce-id", "ce-source", "ce-type", "ce-specversion"}
_STRUCTURED = f"Content-Type: {STRUCTURED}\r\n".encode()


def from_nats(headers: bytes, data: bytes) -> CloudEvent | None:
    """The event of one message; None if it does not say that it is one. Raises EventInvalid.

    It says so with one of the four required attributes, with a content type of CloudEvents, or, without any content type, in its data.
    """
    fields = dict(reversed(header_lines(headers))) if headers else {}  # the first of several
    content_type = fields.get("content-type", "")
    if not _REQUIRED.isdisjoint(fields) or kind(content_type) != "binary" or (not content_type and _says_so(data)):
        return CloudEvent.from_headers(headers, data)
    return None


def to_nats(event: CloudEvent, structured: bool = False) -> tuple[bytes, bytes]:
    """(`name: value\\r\\n` lines, data): binary, or one JSON object."""
    if structured:
        return _STRUCTURED, to_json(event)
    return event.headers(), event.data or b""


class _Probe(msgspec.Struct):
    specversion: Any = None


_PROBE = msgspec.json.Decoder(_Probe)


def _says_so(data: bytes) -> bool:
    """Whether it is a JSON object with a member `specversion`, as CloudEvents 1.0.2 go over NATS: without any header."""
    if b'"specversion"' not in data or data.lstrip()[:1] != b"{":
        return False
    try:
        return _PROBE.decode(data).specversion is not None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
