"""RabbitMQ queues, classic, quorum and stream: a consumer a queue, acknowledged behind what is stored.

On aiormq rather than aio-pika, which wraps it: 60 µs a message instead of 90, and the reconnecting layer, which gives old delivery tags a
new meaning, is not wanted here: a lost connection ends the session, and the pump opens another one. Nothing is declared but passively.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

from ..amqp_binding import from_amqp
from ..attributes import instant
from ..errors import EventInvalid, SourceError, SourceRefused, SourceUnavailable
from ..event import CloudEvent
from ..options import _loopback, masked
from .pump import Batch, Positions, Refused

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

LINGER = 0.02  # seconds that a batch waits to be filled: without it batches have some 50 messages, and rates fall by a fifth
HELD = 16 << 20  # bytes that may be held unacknowledged; beyond, nothing is read from the socket
CONNECT, CALL, CLOSE = 10.0, 10.0, 3.0  # seconds
HEARTBEAT = 15  # seconds; a connection that is silent for three of them is lost

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_DELIVERY = {"x-delivery-count", "x-acquired-count", "x-stream-offset"}  # headers that the broker writes anew for each delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitmqConnector:
    """Options; docs/connectors/rabbitmq.md says more.

    url: amqp:// or amqps://, the path is the vhost. queue or queues: that exist. offset: of streams, where nothing of them is stored yet:
    "first", "last", "next", an offset, or an RFC 3339 time. event_type: of messages without a type of their own.
    key: "routing-key" makes it the partition key. key_header: the header that has it. dedupe: what an event's id is made of.
    prefetch: unacknowledged messages a queue. batch: messages that are stored together, at most.
    ca, cert, cert_key: PEM files. insecure: another machine without TLS.
    """

    url: str = field(repr=False)
    queue: str = ""
    queues: tuple[str, ...] = ()
    offset: str | int | None = None
    event_type: str = "rabbitmq.message"
    key: Literal["", "routing-key"] = ""
    key_header: str = ""
    dedupe: Literal["message-id", "content", "none"] = "message-id"
    prefetch: int = 2000
    batch: int = 500
    ca: str = ""
    cert: str = ""
    cert_key: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("amqp", "amqps") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("url must look like amqp://127.0.0.1:5672 or amqps://user:password@host:5671/vhost")
        if parts.scheme == "amqp" and not self.insecure and not _loopback(parts.hostname or ""):
            raise ValueError(
                f"url is another machine ({parts.hostname}): it needs TLS, like amqps://user:password@{parts.hostname}:5671. "
                "In a network where nobody else listens, say insecure = true."
            )
        if bool(self.queue) == bool(self.queues):
            raise ValueError("queue or queues must name what to read, one of the two")
        for name in self.names:
            if not name or len(name.encode()) > 255 or not name.isprintable():
                raise ValueError("queues must be names of 1 to 255 bytes without control characters")
        if len(set(self.names)) < len(self.names):
            raise ValueError("queues names something twice")
        if not self.event_type or not self.event_type.isprintable():
            raise ValueError("event_type must be text without control characters")
        if self.key and self.key_header:
            raise ValueError("key and key_header exclude each other")
        if not 1 <= self.prefetch <= 65_535:
            raise ValueError("prefetch must lie between 1 and 65,535")
        if not 1 <= self.batch <= 500:
            raise ValueError("batch must lie between 1 and 500")
        if bool(self.cert) != bool(self.cert_key):
            raise ValueError("cert and cert_key belong together")
        if (self.ca or self.cert) and parts.scheme != "amqps":
            raise ValueError("ca and cert are for amqps://")
        _offset(self.offset)

    @property
    def names(self) -> tuple[str, ...]:
        return self.queues or (self.queue,)

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[_Session]:
        gate = asyncio.Event()
        gate.set()
        async with _connected(self, source, gate) as connection:
            session = _Session(self, source, connection, gate)
            for name in self.names:
                await session.consume(name, None if self.offset is None else await positions(name))
            yield session

    async def peek(self, source: str, n: int) -> list[tuple[str, CloudEvent | Refused]]:
        """Takes them and leaves, which puts them back in their places.

        They are marked as redelivered then, and a quorum queue counts a delivery. Of a stream: from `offset`, what comes within a second
        of the one before.
        """
        found: list[tuple[str, CloudEvent | Refused]] = []
        gate = asyncio.Event()
        gate.set()
        async with _connected(self, source, gate) as connection:
            if self.offset is not None:
                session = _Session(self, source, connection, gate)
                for name in self.names:
                    await session.consume(name, None)
                with suppress(TimeoutError):
                    while len(found) < n:
                        async with asyncio.timeout(1.0):
                            batch = await session.gathered()
                        found += [(name, item) for name, items in batch.parts for item in items]
                return found[:n]
            with _told():
                for name in self.names:
                    async with asyncio.timeout(CALL):
                        channel = await connection.channel(publisher_confirms=False)
                        while len(found) < n and (message := await channel.basic_get(name)).delivery_tag is not None:
                            found.append((name, translated(self, source, _read(name, "peek", message), None)))
                        # Not a nack: a quorum queue without a delivery limit would put them at its end.
                        await channel.close()
        return found


# --- the session --------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    """tags: of each channel, the last one that was given. held: bytes received up to there."""

    tags: Mapping[AbstractChannel, int]
    held: int


class _Session:
    def __init__(self, how: RabbitmqConnector, source: str, connection: AbstractConnection, gate: asyncio.Event) -> None:
        self._how, self._source, self._connection, self._gate = how, source, connection, gate
        self._batch = min(how.batch, how.prefetch)
        self._buffer: deque[tuple[AbstractChannel, _Read]] = deque()
        self._news, self._full = asyncio.Event(), asyncio.Event()
        self._failure: SourceError | None = None
        self._tags: dict[AbstractChannel, int] = {}  # a tag means something on its channel only
        self._acked: dict[AbstractChannel, int] = {}
        self._offsets: dict[str, int] = {}
        self._received = self._given = self._done = 0  # bytes

    async def consume(self, name: str, stored: str | None) -> None:
        """stored: offset of a stream that is on the bus already."""
        how = self._how
        if stored is not None:
            self._offsets[name] = int(stored)
        # A stream takes no x-priority, and nothing else takes an offset: who says the wrong one is told before a message is read.
        begin: dict[str, Any] = {"x-priority": 0}
        if how.offset is not None:
            begin = {"x-stream-offset": _offset(how.offset) if stored is None else int(stored) + 1}
        with _told():
            async with asyncio.timeout(CALL):
                channel = await self._connection.channel(publisher_confirms=False)
                channel.closing.add_done_callback(lambda _: self._fail("the channel was closed", channel))
                channel.on_consumer_cancel_callbacks.add(lambda _: self._fail(f"the broker ended the consumer of queue {name!r}"))
                self._connection.closing.add_done_callback(lambda _: self._fail("the connection was lost", self._connection))
                await channel.queue_declare(name, passive=True)
                await channel.basic_qos(prefetch_count=how.prefetch)

                async def take(message: DeliveredMessage) -> None:
                    self._take(channel, _read(name, str(message.consumer_tag), message))

                await channel.basic_consume(name, take, arguments=begin)

    def _take(self, channel: AbstractChannel, read: _Read) -> None:
        self._buffer.append((channel, read))
        self._received += read.size
        self._news.set()
        if self._received - self._done > HELD:
            self._gate.clear()
        if len(self._buffer) >= self._batch or not self._gate.is_set():
            self._full.set()

    def _fail(self, what: str, closed: AbstractChannel | AbstractConnection | None = None) -> None:
        why = ""
        if closed is not None and not closed.closing.cancelled():
            why = masked(str(closed.closing.exception() or ""))
        self._failure = self._failure or SourceUnavailable(f"{what}: {why}" if why else what)
        self._news.set()
        self._full.set()

    async def __aiter__(self) -> AsyncIterator[Batch]:
        while True:
            yield await self.gathered()

    async def gathered(self) -> Batch:
        """The next batch; without parts if all of it is stored already.

        What is here when the connection is lost is not given: it comes again.
        """
        await self._news.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._full.wait()
        if self._failure:
            raise self._failure
        parts: dict[str, list[CloudEvent | Refused]] = {}
        positions: dict[str, str] = {}
        for _ in range(min(self._batch, len(self._buffer))):
            channel, read = self._buffer.popleft()
            self._tags[channel] = read.tag
            self._given += read.size
            offset = None
            if self._how.offset is not None:
                offset = self._position(read)
                if offset <= self._offsets.get(read.queue, -1):
                    continue
                self._offsets[read.queue] = offset
                positions[read.queue] = str(offset)
            parts.setdefault(read.queue, []).append(translated(self._how, self._source, read, offset))
        if not self._buffer:
            self._news.clear()
        if len(self._buffer) < self._batch:
            self._full.clear()
        return Batch(list(parts.items()), _Token(dict(self._tags), self._given), positions)

    def _position(self, read: _Read) -> int:
        if isinstance(read.properties, str):  # the offset is in the table that cannot be read: it is this one or a later one
            return self._offsets.get(read.queue, -1) + 1
        offset = read.headers.get("x-stream-offset")
        if not isinstance(offset, int):
            raise SourceRefused(f"queue {read.queue!r} gives no offsets: is it a stream?")
        return offset

    async def ack(self, token: object) -> None:
        """On the channels that the tags came from: on any other they would acknowledge what nobody has stored."""
        assert isinstance(token, _Token)
        self._done = max(self._done, token.held)
        if self._received - self._done <= HELD:
            self._gate.set()
        for channel, tag in token.tags.items():
            if tag > self._acked.get(channel, 0) and channel in self._tags and not channel.is_closed:
                self._acked[channel] = tag
                with suppress(Exception):  # the channel is gone: so is the tag, and the reader tells
                    await channel.basic_ack(tag, multiple=True)

    async def lag(self) -> int | None:
        """Ready at the broker, and here. None for streams, and if the broker does not say.

        Raises SourceUnavailable if it has forgotten this consumer.
        """
        if self._how.offset is not None or not self._gate.is_set():
            return None
        ready = 0
        for name in self._how.names:
            try:
                async with asyncio.timeout(CALL):
                    channel = await self._connection.channel(publisher_confirms=False)
                    queue = await channel.queue_declare(name, passive=True)
                    await channel.close()
            except Exception:
                return None
            if queue.consumer_count == 0:
                raise SourceUnavailable(f"the broker has no consumer of queue {name!r} any more")
            # With other consumers, and nothing here, what is ready may wait for them: a single active consumer, a higher priority.
            if queue.consumer_count == 1 or self._received > self._done:
                ready += queue.message_count or 0
        here = sum(self._tags.values()) - sum(self._acked.values()) + len(self._buffer)
        return ready + here


# --- what a message becomes ---------------------------------------------------------------------------------


class _Read(NamedTuple):
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


def _read(queue: str, consumer: str, message: DeliveredMessage) -> _Read:
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
    return _Read(queue, consumer, tag, bool(message.redelivered), key, properties, message.body, size)


def translated(how: RabbitmqConnector, source: str, read: _Read, offset: int | None) -> CloudEvent | Refused:
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


def _made(how: RabbitmqConnector, source: str, read: _Read, where: str, offset: int | None) -> CloudEvent:
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


def _digest(read: _Read) -> str:
    """Of what a message is, without what the broker says of a delivery."""
    headers = sorted((name, repr(value)) for name, value in read.headers.items() if name not in _DELIVERY)
    hashed = blake2b(repr((read.queue, read.routing_key, read.properties.timestamp, headers)).encode("utf-8", "replace"), digest_size=16)
    hashed.update(read.body)
    return hashed.hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else repr(value)


def _offset(offset: str | int | None) -> Any:
    """As a stream's consumer says it. Raises ValueError."""
    match offset:
        case None | "first" | "last" | "next":
            return offset
        case int() if 0 <= offset < 1 << 63:
            return offset
        case str():
            with suppress(EventInvalid):
                return instant(offset)
    raise ValueError('offset must be "first", "last", "next", a whole number from 0 on, or a time like 2026-01-31T09:30:00Z')


# --- the connection -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _connected(how: RabbitmqConnector, source: str, gate: asyncio.Event) -> AsyncIterator[AbstractConnection]:
    import aiormq

    parts = urlsplit(how.url)
    url = f"{how.url}{'' if parts.path else '/'}?heartbeat={HEARTBEAT}&name={quote(source, safe='')}"
    with _told():
        async with asyncio.timeout(CONNECT):
            connection = aiormq.Connection(url, transport_factory=_transport(_tls(how), gate))
            await connection.connect()
    try:
        yield connection
    finally:
        gate.set()
        with suppress(Exception):
            async with asyncio.timeout(CLOSE):
                await connection.close()


def _tls(how: RabbitmqConnector) -> ssl.SSLContext | None:
    if urlsplit(how.url).scheme != "amqps":
        return None
    try:
        context = ssl.create_default_context(cafile=how.ca or None)
        if how.cert:
            context.load_cert_chain(how.cert, how.cert_key)
    except OSError as error:
        raise SourceRefused(f"the files of ca, cert and cert_key cannot be read: {error}") from None
    return context


def _transport(tls: ssl.SSLContext | None, gate: asyncio.Event) -> Any:
    from aiormq.connection import TransportFactory

    class Transport(TransportFactory):
        async def create(self, url: Any, **_: Any) -> tuple[Any, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
            return _Frames(reader, gate), writer

    return Transport()


class _Frames:
    """A reader of whole frames, between the socket and aiormq.

    A header table that its decoder does not like would end the connection, and the message would come again, for ever. So properties travel
    through it unread, as one value of a table, and are read where an error is an error of one message.
    gate: while it is closed nothing is read, and aiormq, which would believe the connection lost, is told of a heartbeat now and then.
    """

    def __init__(self, reader: asyncio.StreamReader, gate: asyncio.Event) -> None:
        self._reader, self._gate = reader, gate
        self._frame, self._at = b"", 0

    def at_eof(self) -> bool:
        return self._at == len(self._frame) and self._reader.at_eof()

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        if self._at == len(self._frame):
            self._frame, self._at = await self._next(), 0
        self._at += n
        return self._frame[self._at - n : self._at]

    async def _next(self) -> bytes:
        if not self._gate.is_set():
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._gate.wait()
            except TimeoutError:
                return b"\x08\0\0\0\0\0\0\xce"
        head = await self._reader.readexactly(7)
        if head.startswith(b"AMQP"):  # the server speaks another version, and says which
            return head + await self._reader.readexactly(1)
        size = int.from_bytes(head[3:7])
        if size > HELD:
            raise ConnectionError(f"the broker announces a frame of {size:,} bytes")
        payload = (await self._reader.readexactly(size + 1))[:-1]
        match head[0]:
            case 1 if payload[:4] in (b"\0\x3c\0\x3c", b"\0\x3c\0\x47"):  # basic.deliver, basic.get-ok
                payload = _readable(payload)
            case 2:
                table = b"\1px" + len(payload).to_bytes(4) + payload
                payload = payload[:12] + b"\x20\0" + len(table).to_bytes(4) + table
        return head[:3] + len(payload).to_bytes(4) + payload + b"\xce"


def _readable(method: bytes) -> bytes:
    """A delivery, its exchange and routing key as UTF-8: AMQP has them as bytes."""
    at = 13 if method[3] == 0x47 else 14 + method[4]  # behind the tag and the redelivered bit
    exchange_end = at + 1 + method[at]
    key_end = exchange_end + 1 + method[exchange_end]
    names = [method[at + 1 : exchange_end], method[exchange_end + 1 : key_end]]
    if all(name.isascii() for name in names):
        return method
    texts = [name.decode("utf-8", "backslashreplace").encode()[:255].decode("utf-8", "ignore").encode() for name in names]
    return method[:at] + b"".join(len(text).to_bytes(1) + text for text in texts) + method[key_end:]


@contextmanager
def _told() -> Iterator[None]:
    """What aiormq raises, as a SourceError."""
    try:
        yield
    except SourceError:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise SourceUnavailable("the connection was lost") from None  # aiormq cancels what waits for it
    except Exception as error:
        raise told(error) from None


def told(error: Exception) -> SourceError:
    """Whether it is worth coming again. Pure."""
    from aiormq import exceptions as amqp

    text = masked(str(error)) or type(error).__name__
    cause = error.__cause__ or error
    match error:
        case amqp.ChannelNotFoundEntity() if "no queue" in text:
            return SourceRefused(f"{text}: make the queue first; a connector makes none")
        case amqp.ChannelAccessRefused() if "exclusive" in text:
            return SourceUnavailable(f"{text}: another consumer has it for itself")
        case amqp.ChannelPreconditionFailed() if "'x-priority'" in text:
            return SourceRefused(f'{text}: it is a stream, which needs the option offset, like offset = "first"')
        case amqp.ChannelPreconditionFailed() if "'x-stream-offset'" in text:
            return SourceRefused(f"{text}: it is no stream, take the option offset away")
        case amqp.ChannelAccessRefused() | amqp.ChannelLockedResource() | amqp.ChannelPreconditionFailed():
            return SourceRefused(text)
        case amqp.ProbableAuthenticationError() | amqp.AuthenticationError() | amqp.ConnectionNotAllowed():
            return SourceRefused(text)
        case amqp.InvalidFrameError() if "OpenOk" in text:  # a close, whose reason aiormq does not tell
            return SourceRefused("there is no such vhost, or this login may not use it")
        case _ if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceRefused(f"the server's certificate is not trusted: {text}")
    return SourceUnavailable(text)  # also a queue whose node is down, which is said with 404, too
