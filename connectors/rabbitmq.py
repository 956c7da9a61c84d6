"""RabbitMQ queues, classic, quorum and stream: a consumer a queue, acknowledged behind what is stored.

On aiormq rather than aio-pika, which wraps it: 60 µs a message instead of 90, and the reconnecting layer, which gives old delivery tags a
new meaning, is not wanted here: a lost connection ends the session, and the pump opens another one. Nothing is declared but passively.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..attributes import instant
from ..errors import EventInvalid, SourceError, SourceRefused, SourceUnavailable
from ..options import masked
from .amqp.connection import check_server, connected, source_errors
from .amqp.messages import Given, Read, again, batch, read
from .batch import Batch
from .pump import Positions

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

LINGER = 0.02  # seconds that a batch waits to be filled: without it batches have some 50 messages, and rates fall by a fifth
HELD = 16 << 20  # bytes that may be held unacknowledged; beyond, nothing is read from the socket
CALL = 10.0  # seconds that the broker has for an answer


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
        check_server(self, self.insecure)
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
        _offset(self.offset)

    @property
    def names(self) -> tuple[str, ...]:
        return self.queues or (self.queue,)

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[_Session]:
        gate = asyncio.Event()
        gate.set()
        async with connected(self, source, gate, source_errors) as connection:
            session = _Session(self, source, connection, gate)
            for name in self.names:
                await session.consume(name, None if self.offset is None else await positions(name))
            yield session

    def again(self, source: str, data: bytes, rest: object) -> Batch:
        return again(self, source, data, rest)

    async def peek(self, source: str, n: int) -> Batch:
        """Takes them and leaves, which puts them back in their places.

        They are marked as redelivered then, and a quorum queue counts a delivery. Of a stream: from `offset`, what comes within a second
        of the one before.
        """
        found: list[Given] = []
        gate = asyncio.Event()
        gate.set()
        async with connected(self, source, gate, source_errors) as connection:
            if self.offset is not None:
                session = _Session(self, source, connection, gate)
                for name in self.names:
                    await session.consume(name, None)
                with suppress(TimeoutError):
                    while len(found) < n:
                        async with asyncio.timeout(1.0):
                            found += (await session.taken())[0]
                return batch(self, source, found[:n])
            with source_errors():
                for name in self.names:
                    async with asyncio.timeout(CALL):
                        channel = await connection.channel(publisher_confirms=False)
                        while len(found) < n and (message := await channel.basic_get(name)).delivery_tag is not None:
                            found.append((read(name, "peek", message), None))
                        # Not a nack: a quorum queue without a delivery limit would put them at its end.
                        await channel.close()
        return batch(self, source, found)


# --- the session --------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    """tags: of each channel, the last one that was given. held: bytes received up to there."""

    tags: Mapping[AbstractChannel, int]
    held: int


class _Session:
    def __init__(self, how: RabbitmqConnector, source: str, connection: AbstractConnection, gate: asyncio.Event) -> None:
        self._how, self._source, self._connection, self._gate = how, source, connection, gate
        self._batch = min(how.batch, how.prefetch)
        self._buffer: deque[tuple[AbstractChannel, Read]] = deque()  # bounded by prefetch and HELD bytes
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
        with source_errors():
            async with asyncio.timeout(CALL):
                channel = await self._connection.channel(publisher_confirms=False)
                channel.closing.add_done_callback(lambda _: self._fail("the channel was closed", channel))
                channel.on_consumer_cancel_callbacks.add(lambda _: self._fail(f"the broker ended the consumer of queue {name!r}"))
                self._connection.closing.add_done_callback(lambda _: self._fail("the connection was lost", self._connection))
                await channel.queue_declare(name, passive=True)
                await channel.basic_qos(prefetch_count=how.prefetch)

                async def take(message: DeliveredMessage) -> None:
                    self._take(channel, read(name, str(message.consumer_tag), message))

                await channel.basic_consume(name, take, arguments=begin)

    def _take(self, channel: AbstractChannel, got: Read) -> None:
        self._buffer.append((channel, got))
        self._received += got.size
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
        """The next batch; without parts if all of it is stored already."""
        given, positions = await self.taken()
        return batch(self._how, self._source, given, _Token(dict(self._tags), self._given), positions)

    async def taken(self) -> tuple[list[Given], dict[str, str]]:
        """The next deliveries that are not stored yet, and {stream: offset} of the last ones.

        What is here when the connection is lost is not given: it comes again.
        """
        await self._news.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._full.wait()
        if self._failure:
            raise self._failure
        given: list[Given] = []
        positions: dict[str, str] = {}
        for _ in range(min(self._batch, len(self._buffer))):
            channel, got = self._buffer.popleft()
            self._tags[channel] = got.tag
            self._given += got.size
            offset = None
            if self._how.offset is not None:
                offset = self._position(got)
                if offset <= self._offsets.get(got.queue, -1):
                    continue
                self._offsets[got.queue] = offset
                positions[got.queue] = str(offset)
            given.append((got, offset))
        if not self._buffer:
            self._news.clear()
        if len(self._buffer) < self._batch:
            self._full.clear()
        return given, positions

    def _position(self, got: Read) -> int:
        if isinstance(got.properties, str):  # the offset is in the table that cannot be read: it is this one or a later one
            return self._offsets.get(got.queue, -1) + 1
        offset = got.headers.get("x-stream-offset")
        if not isinstance(offset, int):
            raise SourceRefused(f"queue {got.queue!r} gives no offsets: is it a stream?")
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
        # crash point: rabbitmq-acked

    async def lag(self) -> int | None:
        """Ready at the broker, and here. None for streams, and if the broker does not say.

        Raises SourceUnavailable if it has forgotten this consumer.
        """
        if self._how.offset is not None or not self._gate.is_set():
            return None
        ready = 0
        for name in self._how.names:
            try:
                with source_errors():
                    async with asyncio.timeout(CALL):
                        channel = await self._connection.channel(publisher_confirms=False)
                        queue = await channel.queue_declare(name, passive=True)
                        await channel.close()
            except SourceError:  # not permitted, or no answer: what is lost, reading notices
                return None
            if queue.consumer_count == 0:
                raise SourceUnavailable(f"the broker has no consumer of queue {name!r} any more")
            # With other consumers, and nothing here, what is ready may wait for them: a single active consumer, a higher priority.
            if queue.consumer_count == 1 or self._received > self._done:
                ready += queue.message_count or 0
        here = sum(self._tags.values()) - sum(self._acked.values()) + len(self._buffer)
        return ready + here


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
