"""What a message of RabbitMQ becomes: the event that it is, an event made of it, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ...amqp_binding import from_amqp
from ...errors import EventInvalid
from ...event import CloudEvent
from ..batch import Batch, Raw, Refused

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from ..rabbitmq import RabbitmqConnector

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DELIVERY = {"x-delivery-count", "x-acquired-count", "x-stream-offset"}  # headers that the broker writes anew for each delivery


class Read(NamedTuple):
    """One delivery. consumer, tag: its address at the broker. header: its properties as they came.

    properties: a str says why they cannot be read.
    """

    queue: str
    consumer: str
    tag: int
    redelivered: bool
    routing_key: str
    header: bytes
    properties: Any
    body: bytes
    size: int

    @property
    def headers(self) -> Mapping[str, Any]:
        return {} if isinstance(self.properties, str) else self.properties.headers or {}


Given = tuple[Read, int | None]
"""A delivery, and its offset if it is of a stream."""


def read(queue: str, consumer: str, message: DeliveredMessage) -> Read:
    header = bytes(message.header.properties.headers["p"])  # type: ignore[index, arg-type]
    size = len(message.body) + len(header)
    key, tag = message.routing_key or "", message.delivery_tag or 0
    return Read(queue, consumer, tag, bool(message.redelivered), key, header, _properties(header), message.body, size)


def _properties(header: bytes) -> Any:
    from pamqp.header import ContentHeader

    read = ContentHeader()
    try:
        read.unmarshal(header)
    except Exception as error:  # whatever a producer has put there
        return f"its properties cannot be read: {error}"[:200]
    return read.properties


def batch(how: RabbitmqConnector, source: str, given: Sequence[Given], token: object = None, positions: Mapping[str, str] = {}) -> Batch:
    """Those of a queue together."""
    parts: dict[str, list[Given]] = {}
    for one in given:
        parts.setdefault(one[0].queue, []).append(one)
    of_parts = list(parts.values())
    translated_ = [(name, [translated(how, source, *one) for one in each]) for name, each in parts.items()]
    return Batch(translated_, token, positions, lambda part, n: raw(*of_parts[part][n]))


def raw(read: Read, offset: int | None) -> Raw:
    """As it came. rest: what again() takes."""
    rest = (read.queue, read.consumer, read.tag, read.redelivered, read.routing_key, read.header, offset)
    return Raw(_where(read, offset), _told(read), read.body, rest)


def again(how: RabbitmqConnector, source: str, data: bytes, rest: object) -> Batch:
    """The batch of one message that was kept. Raises ValueError."""
    queue, consumer, tag, redelivered, key, header, offset = msgspec.convert(rest, tuple[str, str, int, bool, str, bytes, int | None])
    read = Read(queue, consumer, tag, redelivered, key, header, _properties(header), data, len(data) + len(header))
    return batch(how, source, [(read, offset)])


def _where(read: Read, offset: int | None) -> str:
    return f"{read.queue}/{read.consumer}/{read.tag}" if offset is None else f"{read.queue}/{offset}"


def _told(read: Read) -> dict[str, str]:
    """Headers and properties, as text."""
    if isinstance(read.properties, str):
        return {"routing-key": read.routing_key}
    told = {name: _shown(value) for name, value in read.headers.items()}
    for name, value in read.properties:
        if value not in (None, "") and name != "headers":
            told[name.replace("_", "-")] = _shown(value)
    return told | {"routing-key": read.routing_key}


def translated(how: RabbitmqConnector, source: str, read: Read, offset: int | None) -> CloudEvent | Refused:
    """An event as it is, if the message is one; else one made of it. Pure. offset: in a stream."""
    where = _where(read, offset)
    if isinstance(read.properties, str):
        return Refused(where, read.properties, _told(read), read.body)
    try:
        native = from_amqp(read.headers, read.properties.content_type, read.body)
        return native or _made(how, source, read, where, offset)
    except EventInvalid as error:
        return Refused(where, str(error), _told(read), read.body)


def _made(how: RabbitmqConnector, source: str, read: Read, where: str, offset: int | None) -> CloudEvent:
    properties, headers = read.properties, read.headers
    extensions: dict[str, Any] = {
        "correlationid": properties.correlation_id or None,
        "partitionkey": (read.routing_key if how.key else _shown(headers.get(how.key_header, ""))) or None,
    }
    if offset is not None:
        id = where
    elif how.dedupe != "none" and properties.message_id:
        id = properties.message_id
    elif how.dedupe == "content":
        id = _digest(read)
    else:  # the address of this delivery: another delivery of the message is another event, and says so
        id = where
        extensions["redelivered"] = read.redelivered or None
    if properties.message_id and id != properties.message_id:
        extensions["messageid"] = properties.message_id
    if (encoding := properties.content_encoding) and encoding.lower() not in ("identity", "utf-8", "utf8"):
        extensions["contentencoding"] = encoding  # the bytes stay as they are: what they unpack to has no bound
    if isinstance(count := headers.get("x-delivery-count"), int):
        extensions["deliverycount"] = str(count)
    if isinstance(trace := headers.get("traceparent"), str) and _TRACEPARENT.fullmatch(trace):
        extensions["traceparent"] = trace
        if isinstance(state := headers.get("tracestate"), str) and len(state) <= 512:
            extensions["tracestate"] = state or None
    return CloudEvent(
        type=properties.message_type or how.event_type,
        source=source,
        id=id,
        subject=read.routing_key or None,
        time=properties.timestamp,
        datacontenttype=properties.content_type or None,
        data=read.body,
        **extensions,
    )


def _digest(read: Read) -> str:
    """Of what a message is, without what the broker says of a delivery."""
    headers = sorted((name, repr(value)) for name, value in read.headers.items() if name not in _DELIVERY)
    hashed = blake2b(repr((read.queue, read.routing_key, read.properties.timestamp, headers)).encode("utf-8", "replace"), digest_size=16)
    hashed.update(read.body)
    return hashed.hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else repr(value)
