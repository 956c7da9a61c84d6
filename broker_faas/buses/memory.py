"""A bus in memory, for tests: the streams, consumers and rules of layout.py as JetStream keeps them, with no server and no disk."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .. import layout
from ..bus import Delivery, Lag, Queue, Record
from ..errors import BusFull, BusRefused, BusUnavailable, EventTooLarge

SOURCES_SHARE = 0.85  # of a stream's bytes; the rest is for outputs, retries and dead letters


@dataclass(frozen=True, slots=True)
class MemoryBus:
    """max_bytes, dead_bytes: space of the streams `events` and `dead`. prefetch_bytes: a subscription that holds as much gets no more.
    clock: unix seconds. After moving a clock by hand, call `wake()` on the open bus."""

    max_bytes: int = 256 << 20
    dead_bytes: int = 64 << 20
    prefetch_bytes: int = 64 << 20
    clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Memory]:
        bus = Memory(self)
        try:
            yield bus
        finally:
            bus.close()


class Memory:
    """The open bus. Beyond bus.Bus: `due()` and `wake()`, for clocks moved by hand."""

    def __init__(self, options: MemoryBus) -> None:
        self.clock = options.clock
        self._prefetch_bytes = options.prefetch_bytes
        configs = layout.streams(max_bytes=options.max_bytes, dead_bytes=options.dead_bytes)
        self._streams = {config["name"]: _Stream(config, self) for config in configs}
        self._consumers: dict[str, _Consumer] = {}
        self._subscriptions: set[MemorySubscription] = set()
        self._timers: list[tuple[float, int, _Stream | _Consumer, int]] = []  # heap of (when, order, whose, sequence)
        self._order = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None  # rings at the earliest timer
        self._closed = False

    async def publish(self, records: Sequence[Record], *, output: bool = False) -> int:
        parts: dict[_Stream, list[Record]] = {}
        for record in records:
            if len(record.data) > layout.MAX_DATA:
                raise EventTooLarge(len(record.data), layout.MAX_DATA, "data")
            if record.subject.startswith(layout.EVENT) and len(record.headers) > layout.MAX_HEADERS:
                raise EventTooLarge(len(record.headers), layout.MAX_HEADERS, "attributes")
            parts.setdefault(self._stream(record.subject), []).append(record)
        # Every stream says yes before any stores, like an atomic batch.
        fresh = {stream: stream.fresh(part, 1.0 if output else SOURCES_SHARE) for stream, part in parts.items()}
        for stream, part in fresh.items():
            for record in part:
                stream.append(record)
        self.wake()
        await asyncio.sleep(0)  # a server would let others run meanwhile
        return len(records) - sum(map(len, fresh.values()))

    @asynccontextmanager
    async def subscribe(self, queue: Queue, prefetch: int) -> AsyncIterator[MemorySubscription]:
        self._check_open()
        for stream, config in layout.consumers(queue):
            name = f"{stream}/{config['durable_name']}"
            if name in self._consumers:
                self._consumers[name].configure(config)
            else:
                self._consumers[name] = _Consumer(name, self._streams[stream], config, self)
        subscription = MemorySubscription(self, self._of(queue), prefetch, self._prefetch_bytes)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            subscription.stop()
            self._subscriptions.discard(subscription)

    async def lag(self, queue: Queue) -> Lag:
        self._check_open()
        consumers = self._of(queue)
        scheduled = sum(record.subject.startswith(f"at.{queue.name}.") for record, _ in self._streams[layout.RETRIES].log.values())
        return Lag(sum(one.waiting() for one in consumers), sum(len(one.pending) for one in consumers), scheduled)

    def due(self) -> float | None:
        """When the next lease ends, held retry returns or schedule fires if nothing else happens: unix seconds."""
        while self._timers and not self._timers[0][2].is_due(self._timers[0][3], self._timers[0][0]):
            heapq.heappop(self._timers)  # settled, renewed or replaced meanwhile
        return self._timers[0][0] if self._timers else None

    def wake(self) -> None:
        """Do what is due and let every subscription look again."""
        while (at := self.due()) is not None and at <= self.clock():
            _, _, owner, seq = heapq.heappop(self._timers)
            owner.fire(seq)
        for subscription in self._subscriptions:
            subscription.wake()

    def timer(self, at: float, owner: _Stream | _Consumer, seq: int) -> None:
        heapq.heappush(self._timers, (at, next(self._order), owner, seq))
        if self._timers[0][0] == at:
            self._set_alarm()

    def close(self) -> None:
        self._closed = True
        self._set_alarm()
        for subscription in self._subscriptions:
            subscription.stop()

    def _set_alarm(self) -> None:
        if self._alarm:
            self._alarm.cancel()
        if (at := self.due()) is not None and not self._closed:
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, at - self.clock()), self._ring)

    def _ring(self) -> None:
        self.wake()
        self._set_alarm()

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable("the memory bus is closed")

    def _stream(self, subject: str) -> _Stream:
        self._check_open()
        for stream in self._streams.values():
            if stream.takes(subject):
                return stream
        raise BusRefused(f"no stream takes subject {subject!r}")

    def _of(self, queue: Queue) -> list[_Consumer]:
        try:
            return [self._consumers[f"{stream}/{config['durable_name']}"] for stream, config in layout.consumers(queue)]
        except KeyError as missing:
            raise BusRefused(f"queue {queue.name} does not exist (no consumer {missing})", 10014) from None


class MemorySubscription:
    """bus.Subscription; iterating waits for what `take()` gives at once."""

    def __init__(self, bus: Memory, consumers: list[_Consumer], prefetch: int, max_bytes: int) -> None:
        self._bus = bus
        self._consumers = {consumer.name: consumer for consumer in consumers}
        self._prefetch = prefetch
        self._max_bytes = max_bytes
        self._held: dict[tuple[str, int], Delivery] = {}  # unsettled, by (consumer, sequence)
        self._news = asyncio.Event()
        self._stopped = False

    @property
    def prefetch(self) -> int:
        return self._prefetch

    @prefetch.setter
    def prefetch(self, deliveries: int) -> None:
        self._prefetch = deliveries
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[list[Delivery]]:
        while not self._stopped:
            self._news.clear()
            if batch := self.take():
                yield batch
            else:
                await self._news.wait()

    def take(self) -> list[Delivery]:
        """What can be delivered now, without waiting."""
        # A delivery whose lease has ended is held no longer: else one that is never settled would keep its own redelivery out.
        self._held = {key: one for key, one in self._held.items() if self._consumers[one.source].is_leased(one)}
        taken: list[Delivery] = []
        size = sum(map(_bytes, self._held.values()))
        for consumer in self._consumers.values():
            while not self._stopped and len(self._held) < self._prefetch and size < self._max_bytes and (delivery := consumer.take()):
                self._held[delivery.source, delivery.seq] = delivery
                size += _bytes(delivery)
                taken.append(delivery)
        return taken

    def settle(self, done: Iterable[Delivery], again: Iterable[tuple[Delivery, float]] = (), renew: Iterable[Delivery] = ()) -> None:
        for delivery in done:
            self._held.pop((delivery.source, delivery.seq), None)
            if self._consumers[delivery.source].may_settle(delivery):
                self._consumers[delivery.source].pending.pop(delivery.seq, None)
        for delivery, delay in again:
            self._held.pop((delivery.source, delivery.seq), None)
            if self._consumers[delivery.source].may_settle(delivery):
                self._consumers[delivery.source].lease(delivery.seq, delay)
        for delivery in renew:
            if self._consumers[delivery.source].is_leased(delivery):
                self._consumers[delivery.source].lease(delivery.seq)
        self._bus.wake()

    def stop(self) -> None:
        self._stopped = True
        self._news.set()

    def wake(self) -> None:
        self._news.set()


class _Stream:
    """Records by sequence. Limits retention: only a schedule that fired or was replaced goes away."""

    def __init__(self, config: dict[str, Any], bus: Memory) -> None:
        self.name: str = config["name"]
        self.takes = _matcher(config["subjects"])
        self.log: dict[int, tuple[Record, float]] = {}  # sequence → record, stored at
        self.last = 0
        self._bus = bus
        self._max_bytes: float = config.get("max_bytes", float("inf"))
        self._bytes = 0
        self._ids: dict[str, float] = {}  # message id → stored at, oldest first
        self._schedules: dict[str, int] = {}  # subject → sequence

    def fresh(self, records: Sequence[Record], share: float) -> list[Record]:
        """Those that are no duplicates. BusFull if they need more than this share of the space."""
        while self._ids and self._ids[oldest := next(iter(self._ids))] <= self._bus.clock() - layout.DUPLICATE_WINDOW:
            del self._ids[oldest]
        fresh = {record.msg_id: record for record in reversed(records) if record.msg_id not in self._ids}
        needed = sum(map(_size, fresh.values()))
        if needed and self._bytes + needed > self._max_bytes * share:
            raise BusFull(
                f"stream {self.name} holds {self._bytes:,} of {self._max_bytes:,} bytes and cannot take {needed:,} more "
                f"(events of this kind may use {share:.0%}); try again when settled events are freed, or raise max_bytes"
            )
        return list(fresh.values())[::-1]

    def append(self, record: Record) -> None:
        self.last += 1
        self.log[self.last] = record, self._bus.clock()
        self._bytes += _size(record)
        if record.msg_id:
            self._ids[record.msg_id] = self._bus.clock()
        if record.subject.startswith("at."):
            if earlier := self._schedules.pop(record.subject, None):
                self._remove(earlier)
            self._schedules[record.subject] = self.last
            self._bus.timer(datetime.fromisoformat(_header(record, "nats-schedule").removeprefix("@at ")).timestamp(), self, self.last)

    def is_due(self, seq: int, at: float) -> bool:
        return seq in self.log

    def fire(self, seq: int) -> None:
        """A schedule's time has come: it becomes a record on its target."""
        record = self._remove(seq)
        del self._schedules[record.subject]
        kept = [line + b"\r\n" for line in record.headers.split(b"\r\n") if line and not line.lower().startswith(b"nats-schedule")]
        self.append(Record(_header(record, "nats-schedule-target"), "", b"".join(kept), record.data))

    def _remove(self, seq: int) -> Record:
        record, _ = self.log.pop(seq)
        self._bytes -= _size(record)
        return record


class _Consumer:
    """A durable consumer: a cursor into its stream, and leases on what it handed out."""

    def __init__(self, name: str, stream: _Stream, config: dict[str, Any], bus: Memory) -> None:
        self.name = name
        self.pending: dict[int, tuple[float, int]] = {}  # unsettled sequence → (end of its lease, deliveries)
        self._stream = stream
        self._bus = bus
        self._back: list[int] = []  # heap of sequences whose lease has ended
        self._next = 1
        if config["deliver_policy"] == "new":
            self._next = stream.last + 1
        elif start := config.get("opt_start_time"):
            since = datetime.fromisoformat(start).timestamp()
            self._next = next((seq for seq, (_, stored) in stream.log.items() if stored >= since), stream.last + 1)
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        self._matches = _matcher(config.get("filter_subjects") or [config["filter_subject"]])
        self._ack_wait = config["ack_wait"] / 1e9
        self._max_pending = config["max_ack_pending"]

    def take(self) -> Delivery | None:
        """The next record, leased: first what came back, then what was never delivered."""
        now = self._bus.clock()
        while self._back:
            seq = heapq.heappop(self._back)
            if seq in self.pending and self.pending[seq][0] <= now:
                return self._deliver(seq)
        while self._next <= self._stream.last and len(self.pending) < self._max_pending:
            seq, self._next = self._next, self._next + 1
            if seq in self._stream.log and self._matches(self._stream.log[seq][0].subject):
                return self._deliver(seq)
        return None

    def _deliver(self, seq: int) -> Delivery:
        record, stored = self._stream.log[seq]
        deliveries = self.pending.get(seq, (0.0, 0))[1] + 1
        self.pending[seq] = (0.0, deliveries)
        self.lease(seq)
        return Delivery(record.subject, record.headers, record.data, seq, deliveries, stored, self.name, f"{seq}.{deliveries}")

    def lease(self, seq: int, seconds: float | None = None) -> None:
        """So many seconds from now (default: ack_wait) it is delivered again, unless it is settled before."""
        if seq in self.pending:
            until = self._bus.clock() + (self._ack_wait if seconds is None else seconds)
            self.pending[seq] = (until, self.pending[seq][1])
            self._bus.timer(until, self, seq)

    def may_settle(self, delivery: Delivery) -> bool:
        """Of a partition nothing is settled late: another worker may be at it, and the next of its key would overtake it."""
        return self._max_pending > 1 or self.is_leased(delivery)

    def is_leased(self, delivery: Delivery) -> bool:
        until, deliveries = self.pending.get(delivery.seq, (0.0, 0))
        return until > self._bus.clock() and deliveries == delivery.deliveries

    def is_due(self, seq: int, at: float) -> bool:
        return seq in self.pending and self.pending[seq][0] == at

    def fire(self, seq: int) -> None:
        heapq.heappush(self._back, seq)

    def waiting(self) -> int:
        return sum(seq >= self._next and bool(self._matches(record.subject)) for seq, (record, _) in self._stream.log.items())


def _matcher(patterns: list[str]) -> Callable[[str], object]:
    """Whether a subject fits one of the patterns: `*` is one part, `>` one or more at the end."""
    part = {"*": "[^.]+", ">": ".+"}
    return re.compile("|".join(r"\.".join(part.get(word) or re.escape(word) for word in one.split(".")) for one in patterns)).fullmatch


def _header(record: Record, name: str) -> str:
    return next(value for key, value in layout.header_lines(record.headers) if key == name)


def _bytes(delivery: Delivery) -> int:
    return len(delivery.headers) + len(delivery.data)


def _size(record: Record) -> int:
    return len(record.subject) + len(record.headers) + len(record.data) + 40  # about what JetStream's file store adds
