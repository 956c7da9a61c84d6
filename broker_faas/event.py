"""CloudEvent, version 1.0.2, and how it lies in NATS headers. JSON and HTTP: codec.py.

Attributes are kept as strings, in the specification's canonical form, and data as the bytes that arrived:
nothing is decoded until somebody asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import orjson

from .attributes import (
    CORE,
    canonical,
    charset,
    checked,
    encoded,
    instant,
    is_json,
    kind,
    plain_block,
    read_fields,
    read_plain,
)
from .errors import EventInvalid


class CloudEvent:
    """One event. Never changes: replace() makes a changed copy.

    data: bytes are kept as they are; None means no data; a str whose datacontenttype is not JSON becomes UTF-8; anything
    else becomes JSON. Extensions: str, int (32 bit), bool, bytes or an aware datetime; None leaves one out.
    Raises EventInvalid, naming the attribute and the rule of CloudEvents 1.0.2 that it breaks.
    """

    __slots__ = ("_attributes", "_data", "_headers")  # _headers: set once they are asked for, or made on the way

    def __init__(
        self,
        /,  # an extension may be called "self"
        *,
        type: str,
        source: str,
        id: str,
        data: Any = None,
        datacontenttype: str | None = None,
        subject: str | None = None,
        time: datetime | str | None = None,
        dataschema: str | None = None,
        **extensions: str | int | bool | bytes | datetime | None,
    ) -> None:
        self._data, datacontenttype = as_bytes(data, datacontenttype)
        given: dict[str, Any] = {"specversion": extensions.pop("specversion", "1.0"), "id": id, "source": source, "type": type}
        if datacontenttype is not None:
            given["datacontenttype"] = datacontenttype
        if subject is not None:
            given["subject"] = subject
        if time is not None:
            given["time"] = canonical("time", time) if isinstance(time, datetime) else time
        if dataschema is not None:
            given["dataschema"] = dataschema
        for name in sorted(extensions):
            if (value := canonical(name, extensions[name])) is not None:
                given[name] = value
        headers = plain_block(given)
        if headers is None:
            given = checked(given)
        else:
            self._headers: bytes = headers
        self._attributes: dict[str, str] = given

    @classmethod
    def from_headers(cls, headers: bytes, data: bytes) -> CloudEvent:
        """The event of one record on the bus: binary, or structured JSON (said by Content-Type, or without any `ce-` header).

        headers: `name: value\\r\\n` lines, with or without the `NATS/1.0` line; those that are no `ce-` ones are ignored.
        An empty payload is empty data if there is a datacontenttype, else no data. Raises EventInvalid.
        """
        text = headers.decode("utf-8", "surrogateescape")
        attributes = read_plain(text)
        if attributes is None:
            return _read_any(text, data)
        event = _new(cls)
        event._attributes = attributes
        event._data = data if data or "datacontenttype" in attributes else None
        return event

    @classmethod
    def from_attributes(cls, attributes: dict[str, str], data: bytes | None) -> CloudEvent:
        """What an executor sends: canonical strings, which are checked here. Raises EventInvalid."""
        headers = plain_block(attributes)
        event = cls.of(checked(attributes) if headers is None else attributes, data)
        if headers is not None:
            event._headers = headers
        return event

    @classmethod
    def of(cls, attributes: dict[str, str], data: bytes | None, headers: bytes | None = None) -> CloudEvent:
        """For codecs: the event of attributes that are checked, and data as it came. headers: what headers() would make of them."""
        event = _new(cls)
        event._attributes = attributes
        event._data = data
        if headers is not None:
            event._headers = headers
        return event

    def headers(self) -> bytes:
        """NATS binary binding: `ce-{name}: value\\r\\n` lines, percent-encoded as over HTTP, in the order of `attributes`.

        The constructor makes them anyway, to check all attributes in one look: with four and a small dict it takes 3.5 µs, with six 6.6
        (as read_plain()).
        """
        try:
            return self._headers
        except AttributeError:
            self._headers = "".join([f"ce-{name}: {value}\r\n" for name, value in encoded(self._attributes).items()]).encode()
            return self._headers

    @property
    def id(self) -> str:
        return self._attributes["id"]

    @property
    def source(self) -> str:
        return self._attributes["source"]

    @property
    def type(self) -> str:
        return self._attributes["type"]

    @property
    def subject(self) -> str | None:
        return self._attributes.get("subject")

    @property
    def dataschema(self) -> str | None:
        return self._attributes.get("dataschema")

    @property
    def datacontenttype(self) -> str | None:
        return self._attributes.get("datacontenttype")

    @property
    def time(self) -> str | None:
        """RFC 3339, exactly as received; `timestamp` is the same as a datetime."""
        return self._attributes.get("time")

    @property
    def timestamp(self) -> datetime | None:
        """`time` as an aware datetime; digits beyond microseconds are cut, a leap second is the first of the next minute."""
        time = self._attributes.get("time")
        return None if time is None else instant(time)

    @property
    def partitionkey(self) -> str | None:
        """The order key: events of one key keep their order in an ordered function."""
        return self._attributes.get("partitionkey")

    @property
    def attributes(self) -> MappingProxyType[str, str]:
        """All of them, specversion included. Read only."""
        return MappingProxyType(self._attributes)

    @property
    def extensions(self) -> Mapping[str, str]:
        return {name: value for name, value in self._attributes.items() if name not in CORE}

    @property
    def data(self) -> bytes | None:
        """The bytes as they came; None if the event has no data."""
        return self._data

    def json(self) -> Any:
        """The data, decoded. Raises EventInvalid if there is none or it is not JSON."""
        if self._data is None:
            raise EventInvalid(f"event {self.id!r} has no data, and JSON was expected")
        try:
            return orjson.loads(self._data)
        except orjson.JSONDecodeError as error:
            raise EventInvalid(f"data of event {self.id!r} ({self.datacontenttype or 'no datacontenttype'}) is not JSON: {error}") from None

    def text(self) -> str:
        """The data as text, in the charset that datacontenttype names, else UTF-8. Raises EventInvalid."""
        if self._data is None:
            raise EventInvalid(f"event {self.id!r} has no data, and text was expected")
        encoding = charset(self.datacontenttype)
        try:
            return self._data.decode(encoding)
        except (LookupError, UnicodeError) as error:
            raise EventInvalid(f"data of event {self.id!r} is not text in {encoding!r}: {error}") from None

    def replace(self, /, **changes: Any) -> CloudEvent:
        """A changed copy, validated. None removes an optional attribute or the data."""
        return CloudEvent(**{**self._attributes, "data": self._data, **changes})

    def get(self, name: str, default: str | None = None) -> str | None:
        return self._attributes.get(name, default)

    def __getitem__(self, name: str) -> str:
        return self._attributes[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CloudEvent):
            return NotImplemented
        return self._attributes == other._attributes and self._data == other._data

    def __hash__(self) -> int:
        return hash((self._attributes["source"], self._attributes["id"]))

    def __repr__(self) -> str:
        size = "no data" if self._data is None else f"{len(self._data):,} bytes"
        return f"<CloudEvent {_short(self.type)} {_short(self.id)} from {_short(self.source)}, {size}>"

    # What the CloudEvents SDK calls them, so that handlers written for it run here.

    def get_id(self) -> str:
        return self.id

    def get_source(self) -> str:
        return self.source

    def get_type(self) -> str:
        return self.type

    def get_specversion(self) -> str:
        return self._attributes["specversion"]

    def get_subject(self) -> str | None:
        return self.subject

    def get_time(self) -> datetime | None:
        return self.timestamp

    def get_dataschema(self) -> str | None:
        return self.dataschema

    def get_datacontenttype(self) -> str | None:
        return self.datacontenttype

    def get_extension(self, extension_name: str) -> str | None:
        return self._attributes.get(extension_name)

    def get_attributes(self) -> Mapping[str, str]:
        return self.attributes

    def get_data(self) -> Any:
        """Decoded as the SDK does: as JSON if it may be, else as text, else the bytes."""
        if not self._data:
            return None
        decoders = (self.json, self.text) if is_json(self.datacontenttype or "application/json") else (self.text,)
        for decode in decoders:
            with suppress(EventInvalid):
                return decode()
        return self._data


_new = object.__new__


def _read_any(text: str, data: bytes) -> CloudEvent:
    """What from_headers() reads, for header blocks that are not in their plainest form."""
    lines = [line.partition(":") for line in text.split("\r\n")]
    fields = [(name.lower(), value.strip(" \t")) for name, colon, value in lines if colon]
    mode = kind(next((value for name, value in fields if name == "content-type"), ""))
    if mode == "batch":
        raise EventInvalid("the record is a batch; the bus holds one event a record: publish its events one by one")
    if mode == "binary" and any(name.startswith("ce-") for name, _ in fields):
        attributes = checked(read_fields(fields))
        return CloudEvent.of(attributes, data if data or "datacontenttype" in attributes else None)
    if mode == "structured" or data.lstrip()[:1] == b"{":
        from .codec import from_json  # it builds on this module

        return from_json(data)
    raise EventInvalid("the record is no CloudEvent: it has no 'ce-' headers, and its data is no JSON object")


def as_bytes(data: Any, datacontenttype: str | None) -> tuple[bytes | None, str | None]:
    """What the constructor takes as data, as (bytes, datacontenttype)."""
    if data is None or isinstance(data, bytes):
        return data, datacontenttype
    if isinstance(data, (bytearray, memoryview)):  # `|` would make a type each time: 0.1 µs
        return bytes(data), datacontenttype
    if datacontenttype is not None and not is_json(datacontenttype):
        if not isinstance(data, str):
            raise EventInvalid(f"data of type {type(data).__name__} cannot be written as {datacontenttype!r}: pass bytes, or a str")
        try:
            return data.encode(), datacontenttype
        except UnicodeEncodeError as error:
            raise EventInvalid(f"data is no text that UTF-8 can hold: {error}") from None
    try:
        written = orjson.dumps(data, default=_jsonable)
        if b"null" in written:  # which orjson also writes for NaN and the infinities, and a reader would take for None
            json.dumps(data, default=_shallow, allow_nan=False)
        return written, datacontenttype or "application/json"
    except orjson.JSONEncodeError as error:
        raise EventInvalid(f"data of type {type(data).__name__} cannot be written as JSON: {error.__cause__ or error}") from None
    except ValueError:
        raise EventInvalid("data holds NaN or an infinity, which JSON has no word for: send None, or a string") from None


def _jsonable(value: Any) -> Any:
    """pydantic models, msgspec Structs, Decimal, sets: what handlers return, and orjson does not know."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    import msgspec  # 20 ms, and rarely needed here

    return msgspec.to_builtins(value)


def _shallow(value: Any) -> Any:
    """As _jsonable(); orjson takes dataclasses apart by itself, whatever is in them."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclass_fields(value)}
    return _jsonable(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
