"""What a record of Kafka becomes. Pure."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from aiokafka import ConsumerRecord

from ...attributes import encoded
from ...errors import EventInvalid
from ...event import CloudEvent
from ...kafka_binding import from_kafka, key_text
from ..batch import Batch, Raw, Refused


def items(records: Sequence[ConsumerRecord], source: str, type: str) -> list[CloudEvent | Refused]:
    """What records of one partition become, in their order.

    Those without headers are most: of one partition, their header blocks differ in offset, time and key alone, and are written at once.
    """
    name = f"{records[0].topic}/{records[0].partition}/"
    on_wire = encoded({"name": name, "source": source, "type": type})
    begins = f"ce-specversion: 1.0\r\nce-id: {on_wire['name']}"
    goes_on = f"\r\nce-source: {on_wire['source']}\r\nce-type: {on_wire['type']}\r\n"
    keys: dict[bytes, tuple[str, str]] = {}  # they come again
    made: list[CloudEvent | Refused] = []
    for record in records:
        if record.headers:
            made.append(item(record, source, type))
            continue
        offset = str(record.offset)
        attributes = {"specversion": "1.0", "id": name + offset, "source": source, "type": type}
        block = begins + offset + goes_on
        if time := _time(record.timestamp):
            attributes["time"] = time
            block += f"ce-time: {time}\r\n"
        if key := record.key:
            if key not in keys:
                keys[key] = _key(key)
            attributes["partitionkey"], line = keys[key]
            block += line
        made.append(CloudEvent.of(attributes, record.value, block.encode()))  # all of them are checked
    return made


def item(record: ConsumerRecord, source: str, type: str) -> CloudEvent | Refused:
    """What a record becomes: the event that it is, or an event that holds it."""
    if not record.headers:
        [made] = items([record], source, type)
        return made
    try:
        if (native := from_kafka(record.headers, record.key, record.value)) is not None:
            return native
    except EventInvalid as error:
        return Refused(f"{record.topic}/{record.partition}/{record.offset}", str(error), _text(record), record.value or b"")
    attributes = {"specversion": "1.0", "id": f"{record.topic}/{record.partition}/{record.offset}", "source": source, "type": type}
    extra = _described(record.headers)
    if "datacontenttype" in extra:
        attributes["datacontenttype"] = extra.pop("datacontenttype")
    if time := _time(record.timestamp):
        attributes["time"] = time
    if key := record.key:
        attributes["partitionkey"], _ = _key(key)
    return CloudEvent.of(attributes | extra, record.value)  # all of them are checked


def raw(record: ConsumerRecord) -> Raw:
    """As it came. rest: what again() takes."""
    where = f"{record.topic}/{record.partition}/{record.offset}"
    rest = (record.topic, record.partition, record.offset, record.timestamp, record.key, list(record.headers), record.value is None)
    return Raw(where, _text(record), record.value or b"", rest)


def again(data: bytes, rest: object, source: str, type: str) -> Batch:
    """The batch of one record that was kept. Raises ValueError."""
    topic, partition, offset, timestamp, key, headers, null = msgspec.convert(rest, _Rest)
    value = None if null else data
    record = ConsumerRecord(topic, partition, offset, timestamp, 0, key, value, None, len(key or b""), len(data), headers)
    return Batch([(topic, [item(record, source, type)])], None, {}, lambda *_: raw(record))


_Rest = tuple[str, int, int, int, bytes | None, list[tuple[str, bytes | None]], bool]


def _text(record: ConsumerRecord) -> dict[str, str]:
    return {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in record.headers}


_MEDIA_TYPE = re.compile(rb"[\w!#$&'*+.^`|~-]+/[\w!#$&'*+.^`|~-]+ *(?:;[ -~]*)?")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def _described(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Attributes that a foreign record's headers have; those in no valid form count as not said."""
    found = {}
    for name, value in headers:
        match name.lower():
            case "content-type" if value and _MEDIA_TYPE.fullmatch(value):
                found["datacontenttype"] = value.decode()
            case "traceparent" if value and _TRACEPARENT.fullmatch(value):
                found["traceparent"] = value.decode()
    return found


def _key(key: bytes) -> tuple[str, str]:
    """As an attribute, and that attribute's header line."""
    text = key_text(key) or b64encode(key).decode()
    return text, f"ce-partitionkey: {encoded({'': text})['']}\r\n"


def _time(milliseconds: int) -> str | None:
    """A record's timestamp, which is the producer's: any number."""
    second = _second(milliseconds // 1000)
    return f"{second}.{milliseconds % 1000:03d}Z" if second else None


@lru_cache(maxsize=64)  # 2 µs, and many records are of one second
def _second(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6] if seconds >= 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""
