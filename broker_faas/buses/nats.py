"""The bus on NATS JetStream (2.15.1 or newer).

connection.py  the socket: nats-py, with raw bytes going past it
commit.py      publishing: group commit
pull.py        delivery: standing pulls, settling
provision.py   streams, consumers, and whether the server syncs
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..bus import Lag, Queue, Record
from ..errors import BusError, BusFull, BusRefused, BusUnavailable, ConfigError, EventTooLarge, TopicInvalid
from ..layout import DEAD, EVENTS, MAX_DATA, MAX_HEADERS, RETRIES, consumers, streams
from .access import Access
from .calls import Call

if TYPE_CHECKING:  # nats-py takes 0.2 s to import: `open()` pays
    from .commit import Lane
    from .connection import Connection
    from .pull import PullSubscription

log = logging.getLogger(__name__)

SOURCES_STOP_AT = 0.85  # of the events stream: the rest is for what functions make, so that events can always be settled
REFUSAL_AGE = 0.02  # seconds: nobody is refused for what was freed meanwhile, and a source that tries again at once asks no more often
DELAYED_STOP_AT = 0.1  # of the events stream: so much may wait in `retries`, which has no limit of its own, before sources are refused
STREAM_OF = {"ev": EVENTS, "out": EVENTS, "re": EVENTS, "at": RETRIES, "go": RETRIES, "dead": DEAD, "pos": EVENTS, "quarantine": DEAD}
ON_WIRE = 160  # bytes of headers that we add: message id, batch
HEADER_LIMIT = 65_535  # bytes: the server's (err 10097)
_SUBJECT = re.compile(r"[!-)+,\-/-=?-~]+(\.[!-)+,\-/-=?-~]+)*")  # printable ASCII without wildcards or empty parts
_MSG_ID = re.compile(r"[!-~]{1,400}")


@dataclass(frozen=True)
class NatsBus:
    """Options of the driver; `open()` connects.

    url: nats://[user:password@]host:port or tls://…; several with commas. name: shown in NATS monitoring.
    max_bytes, dead_bytes: space of the events and the dead stream; None leaves what is there (1 GiB and 128 MiB when made).
    monitor_url: where the server's http port tells whether it syncs; several with commas.
    manage: make streams that are missing. connect_timeout: seconds for the first connection; afterwards it reconnects for ever.
    patience: seconds a publish goes on trying. try_timeout: seconds one try waits for the server's answer.
    """

    url: str = "nats://127.0.0.1:4222"
    name: str = "broker_faas"
    max_bytes: int | None = None
    dead_bytes: int | None = None
    replicas: int | None = None
    access: Access = field(default_factory=Access)
    monitor_url: str | None = None
    manage: bool = True
    connect_timeout: float = 10.0
    patience: float = 30.0
    try_timeout: float = 5.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[JetStreamBus]:
        """Raises ConfigError, BusUnavailable (no server), BusRefused (credentials, permissions, foreign streams)."""
        from .connection import connect
        from .provision import durability, ensure_streams

        urls = [url.strip() for url in self.url.split(",") if url.strip()]
        for url in urls:
            if not url.startswith(("nats://", "tls://")):
                raise ConfigError(f"bus url {url.split('@')[-1]!r} is none of nats://host:port or tls://host:port")
        async with connect(urls, self.name, self.access, self.connect_timeout) as connection:
            if self.manage:
                await ensure_streams(connection, self._streams())
            synced = await durability(url for url in (self.monitor_url or "").split(",") if url)
            if synced != "always":
                # A program that publishes cannot ask a server that has no monitoring: that is for its log, not for its terminal.
                log.log(
                    logging.INFO if synced == "unknown" else logging.WARNING,
                    "this bus is not known to be durable: a power cut may lose acknowledged events; run NATS with `sync_interval: always`",
                    extra={"sync": synced},
                )
            bus = JetStreamBus(connection, synced, patience=self.patience, try_timeout=self.try_timeout)
            async with bus.running():
                yield bus

    def _streams(self) -> list[tuple[dict[str, Any], set[str]]]:
        """(stream configuration, fields to leave as they are where the stream exists)."""
        wanted = streams(max_bytes=self.max_bytes or 1 << 30, dead_bytes=self.dead_bytes or 128 << 20, replicas=self.replicas or 1)
        bytes_of = {EVENTS: self.max_bytes, DEAD: self.dead_bytes}
        keep = set() if self.replicas else {"num_replicas"}
        return [(config, keep if bytes_of.get(config["name"]) else keep | {"max_bytes"}) for config in wanted]


class JetStreamBus:
    """bus.Bus. durability: "always", "unknown" or "interval 2m0s". closed: set when the connection is gone for good."""

    def __init__(self, connection: Connection, durability: str, *, patience: float, try_timeout: float) -> None:
        from .commit import Lane

        self.durability = durability
        self.closed = connection.closed
        self._connection = connection
        self._patience = patience
        self._lanes = {stream: Lane(connection, stream, try_timeout) for stream in (EVENTS, RETRIES, DEAD)}
        self._calls: dict[Call, None] = {}  # publishes under way, first to expire first
        self._timer: asyncio.TimerHandle | None = None
        self._subscriptions: set[PullSubscription] = set()
        self._group = asyncio.TaskGroup()

    @property
    def connection(self) -> Connection:
        """For housekeeping and the command line: reading along, requests that are no JetStream ones."""
        return self._connection

    @property
    def connected(self) -> bool:
        return self._connection.up.is_set()

    @property
    def last_error(self) -> str:
        """What the connection complained of last; "" if nothing."""
        return self._connection.last_error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The background of the bus. What the body raises comes out as it is, not in a group."""
        failure: BaseException | None = None
        async with self._group as group:
            tasks = [group.create_task(lane.run()) for lane in self._lanes.values()]
            tasks.append(group.create_task(self._tick()))
            try:
                await self._lanes[EVENTS].look()  # or the first publish would find room in a full bus
                yield
            except (Exception, asyncio.CancelledError) as e:
                failure = e
            for task in tasks:
                task.cancel()
        if failure:
            raise failure

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for subscription in list(self._subscriptions):
                subscription.tick()

    # --- publish ---

    async def publish(
        self,
        records: Sequence[Record],
        *,
        output: bool = False,
        last: dict[str, int] | None = None,
        sequences: dict[str, int] | None = None,
    ) -> int:
        """See bus.Bus. After BusFull or BusRefused some of the other records may be stored; their ids make a second
        try harmless. A record whose id came twice in one call is stored once and counted as a duplicate.

        sequences: gets the place of each record in its stream, by its id; of a duplicate, the place of the first.
        """
        by_lane: dict[str, list[Record]] = {}
        lanes: dict[str, list[Record]] = {}  # by subject: of a batch, many have the same
        small = min(MAX_HEADERS, self._connection.client.max_payload - ON_WIRE - 400)
        for record in records:
            subject, msg_id, headers, data = record
            lane = lanes.get(subject)
            if lane is None:
                lane = lanes[subject] = by_lane.setdefault(_stream_of(subject), [])
            if len(headers) + len(data) > small:
                self._check_size(record, _stream_of(subject))
            # The first half is for ids of layout.py: 0.1 µs instead of 0.4.
            if not (msg_id.isalnum() and msg_id.isascii() and len(msg_id) < 400) and not _MSG_ID.fullmatch(msg_id):
                raise TopicInvalid(f"id {msg_id[:400]!r} cannot be stored: up to 400 characters of plain ASCII, no spaces")
            lane.append(record)
        if not output:
            await self._leave_room(by_lane)
        if self.closed.is_set():
            raise BusUnavailable(f"the bus is closed ({self.last_error})" if self.last_error else "the bus is closed")
        calls: list[Call] = []
        try:
            for stream, part in by_lane.items():
                calls.append(self._open(len(part), last if stream == EVENTS else None, sequences))
                await self._lanes[stream].submit(part, calls[-1])
            return sum([await call.outcome for call in calls])
        except TimeoutError:
            raise BusUnavailable(
                f"{len(records)} records were not acknowledged within {self._patience:g} s ({self.last_error or self._silent}); "
                "they may or may not be stored: send them again with the same ids"
            ) from None
        finally:
            for call in calls:
                self._calls.pop(call, None)
                call.leave()

    def _open(self, records: int, last: dict[str, int] | None, sequences: dict[str, int] | None) -> Call:
        """A call that fails with TimeoutError at its deadline. One timer for all: asyncio.timeout() would cost each 4 µs."""
        loop = asyncio.get_running_loop()
        call = Call(records, loop.time() + self._patience, loop.create_future(), last=last or None, sequences=sequences)
        self._calls[call] = None
        if self._timer is None:
            self._timer = loop.call_at(call.deadline, self._expire)
        return call

    def _expire(self) -> None:
        """All have the same patience: the first is due first."""
        loop = asyncio.get_running_loop()
        while self._calls and (call := next(iter(self._calls))).deadline <= loop.time():
            del self._calls[call]
            call.failed(TimeoutError())
        self._timer = loop.call_at(next(iter(self._calls)).deadline, self._expire) if self._calls else None

    @property
    def _silent(self) -> str:
        return "connected, and the server stores nothing: is its disk full?" if self.connected else "no error reported"

    def _check_size(self, record: Record, stream: str) -> None:
        headers, data = len(record.headers), len(record.data)
        if stream == EVENTS and data > MAX_DATA:
            raise EventTooLarge(data, MAX_DATA, "data")
        added = ON_WIRE + len(record.msg_id)
        room = MAX_HEADERS if stream == EVENTS else HEADER_LIMIT - added
        if headers > room:
            raise EventTooLarge(headers, room, "attributes")
        limit = self._connection.client.max_payload - added
        if headers + data > limit:  # the server would cut the connection
            raise EventTooLarge(headers + data, limit)

    async def _leave_room(self, streams: Collection[str]) -> None:
        """Lanes look at their stream while they publish; here once more before a refusal."""
        events, retries = self._lanes[EVENTS], self._lanes[RETRIES]
        if EVENTS in streams and await self._beyond(events, events.max_bytes * SOURCES_STOP_AT):
            raise BusFull(
                f"the bus holds {events.used:,} of {events.max_bytes:,} bytes; the last 15 % are kept for what functions send. "
                "Try again when events are settled and freed (`faas lag` shows who is behind), or raise max_bytes"
            )
        if RETRIES in streams and await self._beyond(retries, events.max_bytes * DELAYED_STOP_AT):
            raise BusFull(
                f"{retries.used:,} bytes wait for their time already, and {DELAYED_STOP_AT:.0%} of the bus's {events.max_bytes:,} may. "
                "Try again when some are due, or raise max_bytes"
            )

    async def _beyond(self, lane: Lane, limit: float) -> bool:
        if not 0 < limit < lane.used:
            return False
        await lane.look(REFUSAL_AGE)
        return lane.used > limit

    # --- subscribe, lag ---

    @asynccontextmanager
    async def subscribe(self, queue: Queue, prefetch: int) -> AsyncIterator[PullSubscription]:
        from .admin import ensure_queue
        from .pull import PullSubscription

        durables = await ensure_queue(self._connection, queue)
        subscription = PullSubscription(self._connection, queue, durables, prefetch, self._spawn)
        await subscription.start()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.stop()
            await subscription.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(work)

    async def lag(self, queue: Queue) -> Lag:
        asked: list[tuple[str, dict[str, Any] | None]]
        asked = [(f"CONSUMER.INFO.{stream}.{config['durable_name']}", None) for stream, config in consumers(queue)]
        # A page far behind the last: the server answers how many subjects match, without naming them.
        asked.append((f"STREAM.INFO.{RETRIES}", {"subjects_filter": f"at.{queue.name}.>", "offset": 1 << 30}))
        answers: list[dict[str, Any]] = []
        for answer in await self._connection.apis(asked):
            if isinstance(answer, BusError):
                raise answer
            answers.append(answer)
        *infos, retries = answers
        return Lag(
            waiting=sum(info["num_pending"] for info in infos),
            in_progress=sum(info["num_ack_pending"] for info in infos),
            scheduled=retries.get("total", 0),
        )

    async def api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """JetStream's own API, for the reaper and the CLI: api("STREAM.INFO.events"). BusRefused carries its err_code."""
        return await self._connection.api(verb, body)


def _stream_of(subject: str) -> str:
    """The stream that takes it, or why none does."""
    if len(subject) > 500 or not _SUBJECT.fullmatch(subject):
        raise TopicInvalid(f"subject {subject[:500]!r} cannot be stored: dot-separated words of plain ASCII only")
    stream = STREAM_OF.get(subject.partition(".")[0])
    if stream is None:
        raise BusRefused(f"no stream of the bus takes {subject}; subjects start with {', '.join(STREAM_OF)}")
    return stream
