"""Events of another NATS: of a durable consumer on a JetStream stream, or of plain subjects in a queue group.

JetStream  acknowledged after the publish: at least once. Reading begins where the consumer is.
core       nothing is acknowledged or kept for us: at most once. What comes faster than it can be stored is dropped.

A message with `ce-` headers, with a CloudEvents content type, or whose data is a JSON object with a `specversion` is the event that it
says. Any other is data, and becomes an event of type `event_type`. Headers that mean something to a NATS server are not passed on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations, groupby
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from ..attributes import kind
from ..buses.access import Access
from ..buses.durable import fields, nak
from ..buses.store import stored
from ..errors import BusRefused, BusUnavailable, ConfigError, EventInvalid, SourceError, SourceRefused, SourceUnavailable
from ..event import CloudEvent
from ..layout import header_lines
from ..options import bus_url, check_remote
from ..topics import overlap
from .pump import Batch, Positions, Refused, Source

if TYPE_CHECKING:  # nats-py takes 0.2 s to import: open() pays
    from ..buses.connection import Connection

log = logging.getLogger(__name__)

CONNECT = 5.0  # seconds for a connection
EXPIRES = 5.0  # seconds that a request for messages stands
LOOK = 2.0  # seconds that peek() listens to plain subjects
MAX_HELD = 8 << 20  # bytes read and not acknowledged, or, of plain subjects, not read yet; and one message, however large
MAX_WAITING = 10_000  # messages of plain subjects that are not read yet
WARN_EVERY = 10.0  # seconds
NO_CONSUMER, NO_STREAM = 10014, 10059  # JetStream's err_codes
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f]+|\*")
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_REQUIRED = {"ce-id", "ce-source", "ce-type", "ce-specversion"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsConnector:
    """Either stream and consumer, or core and queue_group.

    url: nats://[user:password@]host:port or tls://…, several of a cluster with commas. credentials: a .creds file. ca: a PEM file.
    create: makes a consumer that is missing, on `subjects` (none: all), from `start`. batch: messages of one, at most.
    """

    url: str = field(repr=False)
    credentials: str | None = None
    ca: str | None = None
    insecure: bool = False
    stream: str = ""
    consumer: str = ""
    create: bool = False
    subjects: tuple[str, ...] = ()
    start: Literal["first", "new"] = "first"
    core: tuple[str, ...] = ()
    queue_group: str = ""
    batch: int = 500
    event_type: str = "nats.message"

    def __post_init__(self) -> None:
        for name, check in (("url", self._check_url), ("stream", self._check_kind), ("subjects", self._check_subjects)):
            try:
                check()
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        if not 1 <= self.batch <= 1000:
            raise ValueError("batch must lie between 1 and 1,000")
        if not self.event_type:
            raise ValueError("event_type must not be empty")

    def _check_url(self) -> None:
        bus_url(self.url)
        check_remote(self.url, self.insecure, login=self.credentials is not None, where="")

    def _check_kind(self) -> None:
        if bool(self.stream) == bool(self.core):
            raise ValueError("and consumer, or core and queue_group: one of the two is needed")
        if self.core:
            if self.consumer or self.subjects or self.create:
                raise ValueError("is not set, and consumer, create and subjects belong to it")
            if not _NAME.fullmatch(self.queue_group):
                raise ValueError(
                    "is not set, and core needs a queue_group: a name that all connectors share of which one is to get each message"
                )
        elif self.queue_group:
            raise ValueError("has a consumer that its readers share; queue_group belongs to core")
        elif not (_NAME.fullmatch(self.stream) and _NAME.fullmatch(self.consumer)):
            raise ValueError("and consumer must be names of a stream and of a durable consumer on it, without dots, spaces and wildcards")

    def _check_subjects(self) -> None:
        if self.subjects and not self.create:
            raise ValueError("are for a consumer that is made here: say create = true, or leave them to the consumer")
        patterns = [subject.split(".") for subject in (*self.subjects, *self.core)]
        for parts in patterns:
            plain = parts[:-1] if parts[-1] == ">" else parts
            if not all(_SUBJECT.fullmatch(part) for part in plain):
                raise ValueError(f"or core: {'.'.join(parts)!r:.80} is no NATS subject like orders.*.created or orders.>")
        if any(overlap(one, two) for one, two in combinations(patterns, 2)):
            raise ValueError("or core: two of them overlap, and a message would come twice")

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[Source]:
        """Gone for good when its connection is: the next open() makes a new one. Raises SourceUnavailable, SourceRefused."""
        async with AsyncExitStack() as stack:
            with _said():  # around nothing that speaks to the other bus, which is published to: its errors are its own
                connection = await self._connect(stack)
                info = {} if self.core else await self._consumer(connection)
            inbox = _Inbox()
            connection.listeners.add(inbox)
            session: _Core | _Consumer
            if self.core:
                session = _Core(self, source, connection, inbox)
            else:
                session = _Consumer(self, source, connection, inbox, info, await positions(_partition(info)))
            stack.push_async_callback(session.close)
            with _said():
                await session.begin()
            yield session

    async def peek(self, source: str, n: int) -> list[tuple[str, CloudEvent | Refused]]:
        """JetStream: read from the stream, behind what the consumer has acknowledged. core: what comes within LOOK seconds."""
        async with AsyncExitStack() as stack:
            with _said():
                connection = await self._connect(stack)
                messages = await (self._listen(connection, n) if self.core else self._lookup(connection, n))
        return [(_text(message.subject), self._event(source, message)) for message in messages]

    async def _connect(self, stack: AsyncExitStack) -> Connection:
        from ..buses.connection import connect

        if self.credentials and not Path(self.credentials).is_file():
            raise SourceRefused(f"there is no file {self.credentials}; credentials is the path of a .creds file")
        access = Access(credentials=self.credentials, ca=self.ca)
        servers = [url.strip() for url in self.url.split(",") if url.strip()]
        return await stack.enter_async_context(connect(servers, "broker_faas connector", access, CONNECT))

    async def _consumer(self, connection: Connection) -> dict[str, Any]:
        """CONSUMER.INFO of what can be read with acknowledgements."""
        where = f"{self.stream}.{self.consumer}"
        try:
            info = await connection.api(f"CONSUMER.INFO.{where}")
        except BusRefused as error:
            if error.code == NO_STREAM:
                raise SourceRefused(f"there is no stream {self.stream!r} in this NATS account; check stream, and the user in url") from None
            if error.code != NO_CONSUMER:
                raise
            if not self.create:
                raise SourceRefused(
                    f"stream {self.stream!r} has no consumer {self.consumer!r}: say create = true, or make one: "
                    f"nats consumer add {self.stream} {self.consumer} --pull --ack explicit"
                ) from None
            info = await connection.api(f"CONSUMER.CREATE.{where}", self._wanted())
            log.info("made a consumer", extra={"stream": self.stream, "consumer": self.consumer, "start": self.start})
        config = info["config"]
        if config.get("deliver_subject"):
            raise SourceRefused(f"consumer {self.consumer!r} pushes; a pull consumer is needed: name another one")
        if config["ack_policy"] == "none":
            raise SourceRefused(
                f"consumer {self.consumer!r} has no acknowledgements, so events would be lost: one with explicit ones is needed"
            )
        if config.get("max_deliver", -1) > 0:
            log.warning(
                "this consumer gives up: what is not stored after so many deliveries never is",
                extra={"stream": self.stream, "consumer": self.consumer, "max_deliver": config["max_deliver"]},
            )
        return info

    def _wanted(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "durable_name": self.consumer,
            "ack_policy": "explicit",
            "ack_wait": 30 * 10**9,
            "max_deliver": -1,
            "max_ack_pending": max(1000, 4 * self.batch),
            "deliver_policy": "all" if self.start == "first" else "new",
            "replay_policy": "instant",
        }
        if len(self.subjects) == 1:
            config["filter_subject"] = self.subjects[0]  # servers before 2.10 know no other
        elif self.subjects:
            config["filter_subjects"] = list(self.subjects)
        return {"stream_name": self.stream, "config": config, "action": "create"}

    async def _lookup(self, connection: Connection, n: int) -> list[_Message]:
        """Stored messages, one request each: it needs no consumer, and no stream refuses it."""
        try:
            info = await connection.api(f"CONSUMER.INFO.{self.stream}.{self.consumer}")
            config, at = info["config"], info["ack_floor"]["stream_seq"] + 1
            patterns = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
        except BusRefused as error:
            if error.code != NO_CONSUMER or not self.create:
                raise
            patterns, at = self.subjects or [">"], 1
            if self.start == "new":
                return []
        found: list[_Message] = []
        while len(found) < n:
            nexts = [await stored(connection, self.stream, seq=at, next_by_subj=pattern) for pattern in patterns]
            if not (there := [one for one in nexts if one]):
                break
            one = min(there, key=lambda one: one.seq)
            at = one.seq + 1
            found.append(_stored(self.stream, one.seq, round(one.stored_at * 1e6), one.subject.encode(), one.headers, one.data))
        return found

    async def _listen(self, connection: Connection, n: int) -> list[_Message]:
        inbox = _Inbox()
        session = _Core(self, "", connection, inbox, group="")  # no group: whoever serves it gets all the same
        connection.listeners.add(inbox)
        await session.begin()
        found: list[_Message] = []
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK
        while len(found) < n and loop.time() < until:
            found += await inbox.take(n - len(found), until - loop.time())
        await session.close()
        return found

    def _event(self, source: str, message: _Message) -> CloudEvent | Refused:
        return translate(message, source, self.event_type)


class _Message(NamedTuple):
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


def _stored(stream: str, sequence: int, microseconds: int, subject: bytes, headers: bytes, data: bytes) -> _Message:
    """The time is a part of the id: a stream that was deleted and made anew counts from 1 again."""
    return _Message(subject, headers, data, f"{stream}/{sequence}@{microseconds}", microseconds, sequence)


# --- what it becomes ----------------------------------------------------------------------------------------


def translate(message: _Message, source: str, event_type: str) -> CloudEvent | Refused:
    """Pure. Of a message that is no CloudEvent: its data, as one of `source`."""
    lines = header_lines(message.headers) if message.headers else []
    headers = dict(reversed(lines))  # the first of several
    try:
        content_type = headers.get("content-type", "")
        if not _REQUIRED.isdisjoint(headers) or kind(content_type) != "binary" or (not content_type and _says_so(message.data)):
            return CloudEvent.from_headers(message.headers, message.data)
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
        return Refused(message.id, str(error), headers, message.data)
    except UnicodeDecodeError:
        return Refused(message.id, f"the subject is not UTF-8: {_text(message.subject)!r:.200}", headers, message.data)


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


def _text(subject: bytes) -> str:
    return subject.decode("utf-8", "replace")


def _parts(messages: Sequence[_Message], one: NatsConnector, source: str) -> list[tuple[str, list[CloudEvent | Refused]]]:
    """Neighbours of one subject together: the order stays."""
    return [
        (_text(subject), [one._event(source, message) for message in neighbours])
        for subject, neighbours in groupby(messages, key=lambda message: message.subject)
    ]


# --- reading ------------------------------------------------------------------------------------------------


class _Inbox:
    """What arrived and was not read yet. Also connection.Listener: its reader hears how the connection ended."""

    def __init__(self) -> None:
        self.messages: deque[_Message] = deque()  # bounded by who puts in
        self.size = 0  # bytes
        self.failure: SourceError | None = None
        self._news = asyncio.Event()

    def put(self, message: _Message) -> None:
        self.messages.append(message)
        self.size += message.size
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    def fail(self, error: SourceError) -> None:
        self.failure = self.failure or error
        self._news.set()

    async def take(self, n: int, seconds: float) -> list[_Message]:
        """n or fewer; none after so many seconds, or when woken. Raises the failure once all is taken."""
        if not self.messages and not self.failure:
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                pass
        if not self.messages and self.failure:
            raise self.failure
        taken = [self.messages.popleft() for _ in range(min(n, len(self.messages)))]
        self.size -= sum(message.size for message in taken)
        return taken

    def lost(self) -> None:
        self.fail(SourceUnavailable("the connection to NATS was lost"))

    def restored(self) -> None:
        """Too late: requests and deliveries that were on their way are lost, and the next open() knows what is missing."""

    def refused(self, subject: str) -> None:
        self.fail(SourceRefused(f"this NATS user may not publish to {subject}, which reading needs; grant it in the server's permissions"))


class _Core:
    """pump.Source of plain subjects."""

    def __init__(self, one: NatsConnector, source: str, connection: Connection, inbox: _Inbox, group: str | None = None) -> None:
        self._one = one
        self._source = source
        self._connection = connection
        self._inbox = inbox
        self._group = one.queue_group if group is None else group
        # Nobody but this connection gets its n-th message, and it only once: that is the position, where there is no other.
        self._place = f"{time_ns()}/{connection.client.client_id}"
        self._count = self._dropped = 0
        self._warned = -WARN_EVERY
        self._sids: list[int] = []

    async def begin(self) -> None:
        for subject in self._one.core:
            self._sids.append(await self._connection.subscribe(subject, self._arrived, self._group))

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while not (messages := await self._inbox.take(self._one.batch, 60.0)):
            pass
        return Batch(_parts(messages, self._one, self._source), None, {})

    async def ack(self, token: object) -> None:
        """Nobody waits for one."""

    async def lag(self) -> int | None:
        return None

    async def close(self) -> None:
        for sid in self._sids:
            self._connection.unsubscribe(sid)
            self._connection.forget(sid)

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        inbox = self._inbox
        self._count += 1
        if inbox.failure or len(inbox.messages) >= MAX_WAITING or (inbox.messages and inbox.size + len(data) + len(headers) > MAX_HELD):
            self._dropped += 1
            now = asyncio.get_running_loop().time()
            if now - self._warned >= WARN_EVERY:
                self._warned = now
                log.warning("dropped: plain subjects are faster than the bus", extra={"source": self._source, "dropped": self._dropped})
            return
        given = next((value for name, value in header_lines(headers) if name == "nats-msg-id"), "") if headers else ""
        inbox.put(_Message(subject, headers, data, given or f"{self._place}/{self._count}"))


class _Consumer:
    """pump.Source of a durable consumer.

    A position says that all up to a sequence of the stream is stored, so it is only given while this session knows that: the consumer
    counts its deliveries, so a gap in that count is one that somebody else got; and what was delivered before the session and not
    acknowledged has to have come again. Until then, and for shared consumers, ids alone keep events from being stored twice.
    """

    def __init__(
        self, one: NatsConnector, source: str, connection: Connection, inbox: _Inbox, info: dict[str, Any], position: str | None
    ) -> None:
        self._one = one
        self._source = source
        self._connection = connection
        self._inbox = inbox
        self._partition = _partition(info)
        config, delivered = info["config"], info["delivered"]
        self._all = config["ack_policy"] == "all"
        self._batch = min(one.batch, config.get("max_batch") or one.batch)
        self._expires = min(int(EXPIRES * 1e9), config.get("max_expires") or int(EXPIRES * 1e9))
        self._max_bytes = min(MAX_HELD // 2, config.get("max_bytes") or MAX_HELD)
        self._before, self._counted = delivered["stream_seq"], delivered["consumer_seq"]
        said = int(position) if position and position.isdecimal() else 0
        self._position = said if said <= self._before else 0  # behind what was ever delivered: the stream is one from an older copy
        self._missing = 0 if self._position >= self._before else info["num_ack_pending"]
        self._seen: set[int] = set()  # of those that are missing; bounded by the consumer's max_ack_pending
        self._alone = True
        self._top = 0  # highest sequence handed to the pump
        self._held: dict[int, tuple[str, int]] = {}  # by sequence: how to acknowledge it, bytes
        self._held_bytes = 0
        self._given: deque[int] = deque()  # handed to the pump and not acknowledged; bounded as _held
        self._acked = 0  # messages, counted as the pump got them
        self._last = (0, "")  # of an "all" consumer: the highest that may be acknowledged
        self._asked = 0
        self._asked_at = 0.0
        self._oversized = False  # the next one is larger than a request may bring: ask for it alone, without a limit
        self._sid = 0
        self._reply = connection.fresh_inbox()
        self._closing = False

    async def begin(self) -> None:
        self._sid = await self._connection.subscribe(self._reply, self._arrived)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while True:
            self._ask()
            if messages := await self._inbox.take(self._batch, EXPIRES + 1):
                return self._given_out(messages)
            if self._asked and asyncio.get_running_loop().time() > self._asked_at + EXPIRES + 1:
                self._asked = 0  # the request got lost, or its end

    def _given_out(self, messages: list[_Message]) -> Batch:
        for message in messages:
            self._given.append(message.sequence)
            self._top = max(self._top, message.sequence)
            if message.sequence <= self._before:
                self._seen.add(message.sequence)
        positions = {}
        if self._alone and len(self._seen) >= self._missing:
            self._position = max(self._position, self._top)
            positions[self._partition] = str(self._position)
        return Batch(_parts(messages, self._one, self._source), self._acked + len(self._given), positions)

    async def ack(self, token: object) -> None:
        assert isinstance(token, int)
        acks = []
        while self._acked < token and self._given:
            sequence = self._given.popleft()
            ack, size = self._held.pop(sequence)
            self._held_bytes -= size
            self._acked += 1
            self._last = max(self._last, (sequence, ack))
            acks.append(ack)
        if self._all:  # one speaks for all before it, so it has to wait for those that have to come again
            acks = [self._last[1]] if acks and len(self._seen) >= self._missing else []
        if acks:
            self._connection.write("".join(f"PUB {ack} 4\r\n+ACK\r\n" for ack in acks).encode())
        self._ask()

    async def lag(self) -> int | None:
        with _said():
            info = await self._connection.api(f"CONSUMER.INFO.{self._one.stream}.{self._one.consumer}")
        if info["ack_floor"]["stream_seq"] >= self._before:
            self._missing = 0
        waiting, delivered = int(info["num_pending"]), int(info["num_ack_pending"])
        if info.get("paused") or (delivered and not waiting and not self._held):
            return None  # it gives none on purpose; or what there is is in other hands, or was, and comes when its lease has ended
        return waiting + delivered

    async def close(self) -> None:
        """Hands back what is not acknowledged, so that it comes again at once and in its order."""
        self._closing = True
        self._connection.unsubscribe(self._sid)
        await self._connection.flush()
        self._connection.forget(self._sid)
        self._connection.write("".join(nak(ack, 0.0) for ack, _ in self._held.values()).encode())
        await self._connection.flush()

    # --- requests ---

    def _ask(self) -> None:
        """For one batch, while the pump has no more than one and the bytes have room."""
        if self._asked or self._closing or len(self._held) > self._batch or self._held_bytes > MAX_HELD // 2:
            return
        batch, limit = (1, "") if self._oversized else (self._batch, f',"max_bytes":{self._max_bytes}')
        body = f'{{"batch":{batch},"expires":{self._expires}{limit}}}'
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._one.stream}.{self._one.consumer}"
        if self._connection.write(f"PUB {subject} {self._reply} {len(body)}\r\n{body}\r\n".encode()):
            self._asked = batch
            self._asked_at = asyncio.get_running_loop().time()

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if self._inbox.failure:
            return
        if not reply:
            self._status(headers)
            return
        ack = reply.decode("utf-8", "replace")
        said = fields(ack)
        numbers = len(said) >= 7 and all(word.isdecimal() and len(word) < 20 for word in said[2:7])
        ours = numbers and said[:2] == [self._one.stream, self._one.consumer]
        if not (ack.startswith("$JS.ACK.") and ours):  # an answer would be to say what somebody else wants said
            log.warning("ignored what this consumer did not deliver", extra={"source": self._source, "reply": ack[:200]})
            return
        sequence, counted, nanoseconds = int(said[3]), int(said[4]), int(said[5])
        self._asked = max(0, self._asked - 1)
        self._oversized = False
        if counted != self._counted + 1:
            self._shared()
        self._counted = counted
        if sequence in self._held:  # its lease ended, and it is on its way to the bus all the same
            self._held[sequence] = (ack, self._held[sequence][1])
        elif sequence <= self._position:  # stored, and the acknowledgement got lost
            self._seen.add(sequence)
            self._connection.write(f"PUB {ack} 4\r\n+ACK\r\n".encode())
        elif not self._inbox.failure:
            message = _stored(self._one.stream, sequence, nanoseconds // 1000, subject, headers, data)
            self._held[sequence] = ack, message.size
            self._held_bytes += message.size
            self._inbox.put(message)
        if not self._asked:
            self._inbox.wake()

    def _shared(self) -> None:
        if self._alone:
            log.info("this consumer has other readers: what is stored is known by its ids alone", extra={"source": self._source})
        self._alone = False
        if self._all:
            self._inbox.fail(
                SourceUnavailable(f"consumer {self._one.consumer!r} acknowledges all before a message, and others read it, too")
            )

    def _status(self, headers: bytes) -> None:
        """The end of a request: `NATS/1.0 408 Request Timeout` and the like."""
        line = headers[9:].partition(b"\r\n")[0].decode("utf-8", "replace")
        low = line.lower()
        if low.startswith("100"):
            return
        self._asked = 0
        self._inbox.wake()
        if "consumer deleted" in low:
            self._inbox.fail(
                SourceRefused(
                    f"consumer {self._one.consumer!r} was deleted while it was read; what it had not delivered is no longer kept for it. "
                    "Start the connector again once there is a new one"
                )
            )
        elif "message size" in low:
            self._oversized = True
        elif not low.startswith(("404", "408")) and "batch completed" not in low:
            self._inbox.fail(SourceUnavailable(f"NATS ended a request for messages: {line or 'without a reason'}"))


def _partition(info: dict[str, Any]) -> str:
    """One consumer made at one time: a later one of its name counts anew, or is there to read all again."""
    return f"{info['stream_name']}/{info['name']}/{info['created']}"


@contextmanager
def _said() -> Iterator[None]:
    """What our own client says of a bus, said of a source."""
    try:
        yield
    except BusRefused as error:
        raise SourceRefused(str(error).replace(" of the bus", "")) from None
    except BusUnavailable as error:
        raise SourceUnavailable(str(error)) from None
    except ConfigError as error:
        raise SourceRefused(str(error).replace("TLS files of the bus", "TLS files")) from None
