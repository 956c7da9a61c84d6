"""Events in AMQP 0-9-1 messages, as RabbitMQ carries them: binary (headers) and structured (JSON), both ways. Pure.

CloudEvents has no binding for 0-9-1. Headers named `ce-…` are what Knative and the Python SDK write, `cloudEvents_…` and
`cloudEvents:…` come from the AMQP 1.0 binding, `ce_…` from Kafka's: all four are read, the first is written if nobody asks for another.
Values are not percent-encoded: AMQP's strings are UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .attributes import canonical, checked, kind
from .codec import STRUCTURED, from_json, to_json
from .errors import EventInvalid
from .event import CloudEvent

_NAME = re.compile(r"(?:ce[-_]|cloudevents[_:])(.+)", re.IGNORECASE | re.DOTALL)
_LONGEST = 255  # bytes of a header's name on the wire


def from_amqp(headers: Mapping[str, Any], content_type: str | None, body: bytes) -> CloudEvent | None:
    """The event of one message; None if it is none: a message of another kind. Raises EventInvalid.

    The content type says in which mode, whatever headers there are. Binary: it is an event if a header gives its specversion.
    headers: values as a client decodes them. Times, booleans and whole numbers become canonical strings; None is not set.
    """
    match kind(content_type or ""):
        case "batch":
            raise EventInvalid("the message is a batch of events, and one event was expected")
        case "structured":
            return from_json(body)
    given: dict[str, str | None] = {}
    for header, value in headers.items():
        if not (found := _NAME.fullmatch(header)):
            continue
        name = found[1].lower()
        text = _text(name, value)
        if given.setdefault(name, text) != text:
            raise EventInvalid(f"attribute {name[:60]!r} is given twice, with different values")
    if given.get("specversion") is None:
        return None
    if content_type:  # the property is where datacontenttype belongs
        given["datacontenttype"] = content_type
    attributes = checked(given)
    return CloudEvent.of(attributes, body if body or "datacontenttype" in attributes else None)


def to_amqp(event: CloudEvent, structured: bool = False, prefix: str = "ce-") -> tuple[dict[str, str], str | None, bytes]:
    """(headers, content type, body): binary, or one JSON object. Raises EventInvalid for what no header or property has room for.

    A structured one has its partitionkey as a header, too: exchanges see headers only.
    """
    if structured:
        key = event.partitionkey
        return {} if key is None else {f"{prefix}partitionkey": key}, STRUCTURED, to_json(event)
    headers = {prefix + name: value for name, value in event.attributes.items() if name != "datacontenttype"}
    room = _LONGEST - len(prefix)
    if long := next((name for name in headers if len(name) > _LONGEST), None):
        name = long[len(prefix) :]
        raise EventInvalid(f"attribute {name[:57]!r}… has a name of {len(name)} characters; an AMQP header has room for {room}")
    content_type = event.datacontenttype
    if content_type is not None and len(content_type) > _LONGEST:  # ASCII
        raise EventInvalid(f"a datacontenttype of {len(content_type):,} characters; AMQP's content type has room for {_LONGEST}")
    return headers, content_type, event.data or b""


def _text(name: str, value: Any) -> str | None:
    """The canonical string. Clients write strings as bytes, numbers as doubles and times without a zone, which AMQP's do not have."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise EventInvalid(f"attribute {name[:60]!r} is not UTF-8 in its header") from None
        case bytearray():  # the type `x`, which is for bytes
            value = bytes(value)
        case float() if value.is_integer():
            value = int(value)
        case datetime() if value.tzinfo is None:
            value = value.replace(tzinfo=UTC)
    return canonical(name[:60], value)
