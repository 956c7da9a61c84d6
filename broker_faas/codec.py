"""Events in JSON (structured, batch) and over HTTP (binary, structured, batch). The bus's own form: CloudEvent.headers().

Nothing here runs once an event on the way from the bus to a function.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from .attributes import CORE, canonical, charset, checked, encoded, is_json, kind, read_fields
from .errors import EventInvalid
from .event import CloudEvent

STRUCTURED = "application/cloudevents+json; charset=UTF-8"
MAX_MEMBERS = 5_000  # of one JSON object: so many attributes have no room on the bus, however short they are
BATCH = "application/cloudevents-batch+json; charset=UTF-8"


# --- JSON ---------------------------------------------------------------------------------------------------


def to_json(event: CloudEvent) -> bytes:
    """The event as one JSON object. JSON data is embedded byte for byte, other text as a string, the rest as `data_base64`."""
    members: dict[str, Any] = dict(event.attributes)
    if event.data is not None:
        name, value = _data_member(event.data, event.datacontenttype)
        members[name] = value
    return orjson.dumps(members)


def from_json(raw: bytes | str) -> CloudEvent:
    """The event of one JSON object. JSON data keeps its bytes. Raises EventInvalid.

    Refused: members given twice, more than MAX_MEMBERS of them, both `data` and `data_base64`, bytes that are not UTF-8, nesting deeper
    than Python's recursion limit.
    """
    members = _members(raw)
    value = members.pop("data", None)
    base64 = members.pop("data_base64", b"null")
    attributes = checked({name: _attribute(name, text) for name, text in members.items()})
    if base64 != b"null":
        if value is not None:
            raise EventInvalid("the event has both 'data' and 'data_base64'; an event has one of them")
        return CloudEvent.of(attributes, _unbase64(_parsed("data_base64", base64)))
    if value is None:
        return CloudEvent.of(attributes, None)
    type_ = attributes.setdefault("datacontenttype", "application/json")  # what its absence means in this format
    return CloudEvent.of(attributes, value if is_json(type_) else _text(value, type_))


def batch_to_json(events: Iterable[CloudEvent]) -> bytes:
    return b"[" + b",".join(map(to_json, events)) + b"]"


def batch_from_json(raw: bytes | str) -> list[CloudEvent]:
    """All events of a JSON array, or EventInvalid saying which one is wrong."""
    try:
        items = _BATCH.decode(raw)
    except _MALFORMED as error:
        raise EventInvalid(f"a batch is a JSON array of events, and this is none: {error}") from None
    events = []
    for number, item in enumerate(items, 1):
        try:
            events.append(from_json(bytes(item)))
        except EventInvalid as error:
            raise EventInvalid(f"event {number} of {len(items)} in the batch: {error}") from None
    return events


class _Name:
    """A member's name. No two are equal, so that a name given twice stays visible: JSON parsers keep the last one silently."""

    def __init__(self, text: str) -> None:
        self.text = text


_BATCH = msgspec.json.Decoder(list[msgspec.Raw])
_MALFORMED = (msgspec.MsgspecError, UnicodeError, RecursionError)


def _members(raw: bytes | str) -> dict[str, bytes]:
    """Each member's name and the text of its value."""
    left = MAX_MEMBERS

    def name(type: type[_Name], text: str) -> _Name:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_MEMBERS:,} members")
        return type(text)

    try:
        if not isinstance(raw, str):
            raw.decode()  # the parser lets bad UTF-8 through inside a value
        decoder = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=name)
        pairs = [(name.text, bytes(value)) for name, value in decoder.decode(raw).items()]
    except _MALFORMED as error:
        raise EventInvalid(f"no CloudEvent in JSON: {error}") from None
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise EventInvalid(f"{twice[:60]!r} is given twice in the JSON object")
    return members


def _attribute(name: str, text: bytes) -> Any:
    """Numbers and booleans may stand for extensions, and are kept as canonical strings."""
    value = _parsed(name, text)
    return value if name in CORE else canonical(name, value)


def _parsed(name: str, text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except _MALFORMED as error:
        raise EventInvalid(f"{name!r} cannot be read: {error}") from None


def _data_member(data: bytes, type_: str | None) -> tuple[str, Any]:
    """The name and value under which data goes into a JSON object."""
    if type_ is not None and is_json(type_):
        try:
            orjson.loads(data)
            return "data", orjson.Fragment(data)
        except orjson.JSONDecodeError:
            pass  # the type says JSON and the bytes are none: not for us to mend
    elif type_ is not None and _is_text(type_):
        try:
            return "data", data.decode()
        except UnicodeDecodeError:
            pass
    return "data_base64", b64encode(data).decode()


def _is_text(type_: str) -> bool:
    media = type_.partition(";")[0].strip().lower()
    return (media.startswith("text/") or media.endswith(("/xml", "+xml"))) and charset(type_) in ("utf-8", "us-ascii")


def _text(value: bytes, type_: str) -> bytes | None:
    text = _parsed("data", value)
    if text is None:
        return None
    if not isinstance(text, str):
        raise EventInvalid(f"'data' under datacontenttype {type_!r} must be a JSON string; only JSON types have other values")
    return text.encode()


def _unbase64(text: Any) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise EventInvalid(f"'data_base64' is not base64: {error}") from None


# --- HTTP ---------------------------------------------------------------------------------------------------


def to_http(event: CloudEvent, structured: bool = False) -> tuple[dict[str, str], bytes]:
    """(headers with lower-case names, body): binary, or one JSON object."""
    if structured:
        return {"content-type": STRUCTURED}, to_json(event)
    headers = {f"ce-{name}": value for name, value in encoded(event.attributes).items() if name != "datacontenttype"}
    if event.datacontenttype:
        headers["content-type"] = event.datacontenttype
    return headers, event.data or b""


def from_http(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    """The event of one message; the content type says in which mode, whatever other headers there are. Raises EventInvalid."""
    fields = [(name.lower(), value.strip(" \t")) for name, value in headers.items()]
    content_type = next((value for name, value in fields if name == "content-type"), "")
    match kind(content_type):
        case "batch":
            raise EventInvalid("the message is a batch of events, and one event was expected")
        case "structured":
            return from_json(body)
    if not any(name.startswith("ce-") for name, _ in fields):
        raise EventInvalid(f"the message is no CloudEvent: it has no 'ce-' headers, and its content type is {content_type!r}")
    if bad := next((name for name, value in fields if name.startswith("ce-") and not value.isascii()), None):
        raise EventInvalid(f"header {bad!r} is not ASCII; over HTTP, attributes are percent-encoded UTF-8")
    attributes = read_fields(fields)
    attributes.pop("datacontenttype", None)  # over HTTP that is Content-Type
    if content_type:
        attributes["datacontenttype"] = content_type
    return CloudEvent.of(checked(attributes), body if body or content_type else None)


def from_http_batch(headers: Mapping[str, str], body: bytes) -> list[CloudEvent]:
    """The events of one message, in any mode."""
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    return batch_from_json(body) if kind(content_type) == "batch" else [from_http(headers, body)]
