"""What a message of RabbitMQ becomes: the event that it is, an event made of it, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from ...amqp_binding import from_amqp
from ...errors import EventInvalid
from ...event import CloudEvent
from ..batch import Refused

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from ..rabbitmq import RabbitmqConnector

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DELIVERY = {"x-delivery-count", "x-acquired-count", "x-stream-offset"}  # headers that the broker writes anew for each delivery


class Read(NamedTuple):
    """One delivery. consumer, tag: its address at the broker. properties: a str says why they cannot be read."""

    queue: str
    consumer: str
    tag: int
    redelivered: bool
    routing_key: str
    properties: Any
    body: bytes
    size: int

    @property
    def headers(self) -> Mapping[str, Any]:
        return {} if isinstance(self.properties, str) else self.properties.headers or {}


def read(queue: str, consumer: str, message: DeliveredMessage) -> Read:
    from pamqp.header import ContentHeader

    raw = bytes(message.header.properties.headers["p"])  # type: ignore[index, arg-type]
    header = ContentHeader()
    properties: Any
    try:
        header.unmarshal(raw)
        properties = header.properties
    except Exception as error:  # whatever a producer has put there
        properties = f"its properties cannot be read: {error}"[:200]
    size = len(message.body) + len(raw)
    key, tag = message.routing_key or "", message.delivery_tag or 0
    return Read(queue, consumer, tag, bool(message.redelivered), key, properties, message.body, size)


def translated(how: RabbitmqConnector, source: str, read: Read, offset: int | None) -> CloudEvent | Refused:
    """An event as it is, if the message is one; else one made of it. Pure. offset: in a stream."""
    where = f"{read.queue}/{read.consumer}/{read.tag}" if offset is None else f"{read.queue}/{offset}"
    if isinstance(read.properties, str):
        return Refused(where, read.properties, {"routing-key": read.routing_key}, read.body)
    try:
        native = from_amqp(read.headers, read.properties.content_type, read.body)
        return native or _made(how, source, read, where, offset)
    except EventInvalid as error:
        told = {name: _shown(value) for name, value in read.headers.items()}
        for name, value in read.properties:
            if value not in (None, "") and name != "headers":
                told[name.replace("_", "-")] = _shown(value)
        return Refused(where, str(error), told | {"routing-key": read.routing_key}, read.body)


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
