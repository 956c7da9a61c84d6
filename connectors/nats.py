"""Events of another NATS: of a durable consumer on a JetStream stream, or of plain subjects in a queue group.

JetStream  acknowledged after the publish: at least once. Reading begins where the consumer is.
core       nothing is acknowledged or kept for us: at most once. What comes faster than it can be stored is dropped.

A message with `ce-` headers, with a CloudEvents content type, or whose data is a JSON object with a `specversion` is the event that it
says. Any other is data, and becomes an event of type `event_type`. Headers that mean something to a NATS server are not passed on.

nats_parts/consumer.py, core.py  the two ways to read
nats_parts/messages.py           what a message becomes
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from ..buses.store import stored
from ..errors import BusRefused, SourceRefused
from ..topics import overlap
from .batch import Batch
from .nats_parts.consumer import ConsumerSource, partition
from .nats_parts.core import CoreSource
from .nats_parts.inbox import Inbox, source_errors
from .nats_parts.messages import Message, again, batch, stored_message
from .nats_parts.server import check_server, connected
from .pump import Positions, Source

if TYPE_CHECKING:  # nats-py takes 0.2 s to import: open() pays
    from ..buses.connection import Connection

log = logging.getLogger(__name__)

LOOK = 2.0  # seconds that peek() listens to plain subjects
NO_CONSUMER, NO_STREAM = 10014, 10059  # JetStream's err_codes
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")
_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f]+|\*")


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
        for name, check in (("url", self._check_server), ("stream", self._check_kind), ("subjects", self._check_subjects)):
            try:
                check()
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        if not 1 <= self.batch <= 1000:
            raise ValueError("batch must lie between 1 and 1,000")
        if not self.event_type:
            raise ValueError("event_type must not be empty")

    def _check_server(self) -> None:
        check_server(self)

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
            with source_errors():  # around nothing that speaks to the other bus, which is published to: its errors are its own
                connection = await connected(self, "broker_faas connector", stack)
                info = {} if self.core else await self._consumer(connection)
            inbox = Inbox()
            connection.listeners.add(inbox)
            session: CoreSource | ConsumerSource
            if self.core:
                session = CoreSource(self, source, connection, inbox)
            else:
                session = ConsumerSource(self, source, connection, inbox, info, await positions(partition(info)))
            stack.push_async_callback(session.close)
            with source_errors():
                await session.begin()
            yield session

    def again(self, source: str, data: bytes, rest: object) -> Batch:
        return again(data, rest, source, self.event_type)

    async def peek(self, source: str, n: int) -> Batch:
        """JetStream: read from the stream, behind what the consumer has acknowledged. core: what comes within LOOK seconds."""
        async with AsyncExitStack() as stack:
            with source_errors():
                connection = await connected(self, "broker_faas connector", stack)
                messages = await (self._listen(connection, n) if self.core else self._lookup(connection, n))
        return batch(messages, source, self.event_type)

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

    async def _lookup(self, connection: Connection, n: int) -> list[Message]:
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
        found: list[Message] = []
        while len(found) < n:
            nexts = [await stored(connection, self.stream, seq=at, next_by_subj=pattern) for pattern in patterns]
            if not (there := [one for one in nexts if one]):
                break
            one = min(there, key=lambda one: one.seq)
            at = one.seq + 1
            found.append(stored_message(self.stream, one.seq, round(one.stored_at * 1e6), one.subject.encode(), one.headers, one.data))
        return found

    async def _listen(self, connection: Connection, n: int) -> list[Message]:
        inbox = Inbox()
        session = CoreSource(self, "", connection, inbox, group="")  # no group: whoever serves it gets all the same
        connection.listeners.add(inbox)
        await session.begin()
        found: list[Message] = []
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK
        while len(found) < n and loop.time() < until:
            found += await inbox.take(n - len(found), until - loop.time())
        await session.close()
        return found
