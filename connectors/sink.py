"""From the bus to a sink: what functions send as `sends = "orders-out:orders.done"`. Once for all sinks; the way back of pump.py.

    queue ── batch ──▶ events ──▶ sink.send ──▶ settle
                                      └─ what is not taken: another attempt, or a dead letter, as a function's event

A sink that is away keeps its events waiting, in their order, and costs none of them an attempt.
Drivers: sinks/kafka.py and its neighbours; their contract: tests/contract/test_sinks.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from time import time
from typing import NamedTuple, Protocol

from ..bus import Bus, Delivery, Queue, Record, Subscription
from ..decide import FAILED, REJECTED, decide, spread
from ..errors import BusFull, BusUnavailable, EventError, EventTooLarge, SinkRefused, SinkUnavailable
from ..event import CloudEvent
from ..layout import cut, dead_record, origin, retry_record
from ..retry import RetryPolicy
from ..service import first, patiently
from ..service import pause as pausing
from ..topics import sink_of

log = logging.getLogger(__name__)

PREFETCH = 2000  # events held at most: one batch is sent, the next one is here
LEAST_PAUSE, LONGEST_PAUSE = 0.2, 15.0  # seconds between two tries, of the sink and of the bus
REMEMBERED = 60.0  # seconds that a sink must have been open for its pauses to begin small again
PATIENCE = 120.0  # seconds for one send(): each driver has a shorter time of its own
SUSPECT_AFTER = 3  # connections that were lost with one event alone, after which another one is tried


class Outgoing(NamedTuple):
    """target: topic, routing key, subject or path there: dot-separated words. Its key is event.partitionkey."""

    target: str
    event: CloudEvent


class Undelivered(NamedTuple):
    """reason: one line, without secrets. again: whether another attempt can help. after: seconds until then, if the system says."""

    reason: str
    again: bool = True
    after: float | None = None


class Sink(Protocol):
    """An open connection. most: events that one send() takes: what is sent together is settled together."""

    most: int

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Undelivered | None]:
        """In order. Returns when the system has confirmed what it takes: None for each of these, else why not.

        Raises SinkUnavailable when the connection is gone: then all of them are sent again.
        """


class SinkDriver(Protocol):
    """Options of one sink: a frozen dataclass; what open() gives is the connection."""

    def open(self) -> AbstractAsyncContextManager[Sink]:
        """Raises SinkUnavailable, SinkRefused."""


_GUILTY = Undelivered(f"the connection was lost {SUSPECT_AFTER} times when it was sent alone, and not with another event")


@dataclass(slots=True)
class SinkStatus:
    """Counts since the start. retried: attempts that failed and come again. state: connecting, sending, ended. error: the last one."""

    delivered: int = 0
    retried: int = 0
    dead: int = 0
    held: int = 0
    state: str = "connecting"
    error: str = ""


@dataclass
class Outlet:
    """A service for one sink. version: of dead letters, which name the code that failed."""

    name: str
    driver: SinkDriver
    queue: Queue
    bus: Bus
    retry: RetryPolicy
    version: str = ""
    status: SinkStatus = field(default_factory=SinkStatus)
    _held: dict[tuple[str, int], Delivery] = field(default_factory=dict, init=False)  # by place, in the order they came
    _news: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _most: int = field(default=PREFETCH, init=False)
    _fell: int = field(default=0, init=False)  # connections that were lost in a row while one event was sent alone
    _suspect: tuple[str, int] | None = field(default=None, init=False)  # that event; if another one gets through, it is its fault
    _guilty: list[str] = field(default_factory=list, init=False)  # sequences of those that it was shown of; the latest

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is held is sent, or handed back if the sink is away. Raises SinkRefused, BusRefused."""
        async with AsyncExitStack() as stack:
            subscription = await patiently(lambda: stack.enter_async_context(self.bus.subscribe(self.queue, PREFETCH)))
            try:
                async with asyncio.TaskGroup() as tasks:
                    reading = tasks.create_task(self._read(subscription))
                    others = [tasks.create_task(self._renew(subscription)), tasks.create_task(self._stop(stop, subscription))]
                    await self._connected(subscription, stop, reading)
                    await reading
                    for task in others:
                        task.cancel()
            except BaseExceptionGroup as failures:
                error = first(failures)
                raise (SinkRefused(f"sink {self.name}: {error}") if isinstance(error, SinkRefused) else error) from None
            finally:
                if self._held:
                    subscription.settle((), [(delivery, 0.0) for delivery in self._held.values()])
                self._held.clear()
                self.status.state = "ended"

    async def _read(self, subscription: Subscription) -> None:
        async for batch in subscription:
            # One that was held for longer than its lease comes again: it keeps its place, and has a new token.
            self._held.update(((one.source, one.seq), one) for one in batch)
            self.status.held = len(self._held)
            self._news.set()

    async def _renew(self, subscription: Subscription) -> None:
        while True:
            await asyncio.sleep(self.queue.ack_wait / 3)
            subscription.settle((), (), self._held.values())

    async def _stop(self, stop: asyncio.Event, subscription: Subscription) -> None:
        await stop.wait()
        subscription.stop()
        self._news.set()

    async def _connected(self, subscription: Subscription, stop: asyncio.Event, reading: asyncio.Task[None]) -> None:
        """Connects, and connects again, until all is sent after `stop`; a sink that is away then ends it."""
        loop = asyncio.get_running_loop()
        pause = LEAST_PAUSE
        while True:
            began = loop.time()
            self.status.state = "connecting"
            try:
                async with self.driver.open() as sink:
                    self.status.state = "sending"
                    return await self._sent(sink, subscription, stop, reading)
            except SinkUnavailable as error:
                self.status.error = str(error)
                pause = LEAST_PAUSE if loop.time() - began > REMEMBERED else min(LONGEST_PAUSE, pause * 2)
                log.warning("sink is connected again", extra={"sink": self.name, "reason": str(error), "retry_s": pause})
            if stop.is_set():
                return
            await pausing(stop, pause)

    async def _sent(self, sink: Sink, subscription: Subscription, stop: asyncio.Event, reading: asyncio.Task[None]) -> None:
        """Until `stop`, and all that is held then is sent."""
        while True:
            if not self._held:
                if stop.is_set():
                    await reading
                    if not self._held:
                        return
                else:
                    self._news.clear()
                    await self._news.wait()
                continue
            # A suspect is tried with another one, and by itself where there is none.
            aside = self._suspect if len(self._held) > 1 else None
            batch = list(islice((one for place, one in self._held.items() if place != aside), min(self._most, sink.most)))
            answers = await self._send(sink, batch)
            if aside:
                batch.append(guilty := self._held[aside])
                answers.append(_GUILTY)
                self._guilty = [*self._guilty[-100:], origin(guilty).sequence]
            self._suspect = None
            done, again, records = self._decided(batch, answers)
            # crash point: sink-sent
            await self._store(records)
            # crash point: sink-stored
            # By place, not as they were sent: what came again meanwhile has a new token.
            now = {place: self._held.pop(place) for place in [*done, *(place for place, _ in again)]}
            subscription.settle([now[place] for place in done], [(now[place], delay) for place, delay in again])
            self.status.held = len(self._held)

    async def _send(self, sink: Sink, batch: Sequence[Delivery]) -> list[Undelivered | None]:
        """An answer for each. Raises SinkUnavailable; then the next batch is smaller, until what takes connections down is found."""
        answers: list[Undelivered | None] = [None] * len(batch)
        sent: list[int] = []
        events: list[Outgoing] = []
        for place, delivery in enumerate(batch):
            try:
                event = CloudEvent.from_headers(delivery.headers, delivery.data)
                events.append(Outgoing(sink_of(origin(delivery).topic)[1], event))
                sent.append(place)
            except EventError as error:
                answers[place] = Undelivered(f"is no event: {error}", again=False)
        try:
            async with asyncio.timeout(PATIENCE):
                said = await sink.send(events) if events else ()
        except TimeoutError:
            raise SinkUnavailable(f"confirmed nothing within {PATIENCE:g} s") from None
        except SinkUnavailable:
            self._most = max(1, len(batch) // 2)
            self._fell = self._fell + 1 if len(batch) == 1 and not self._suspect else 0
            self._suspect = (batch[0].source, batch[0].seq) if self._fell >= SUSPECT_AFTER else None
            if self._suspect is None or origin(batch[0]).sequence not in self._guilty:
                raise
            self._suspect = None
            said = [_GUILTY]
        self._fell = 0
        self._most = min(PREFETCH, 2 * self._most)
        for place, answer in zip(sent, said, strict=True):
            answers[place] = answer
        return answers

    def _decided(
        self, batch: Sequence[Delivery], answers: Sequence[Undelivered | None]
    ) -> tuple[list[tuple[str, int]], list[tuple[tuple[str, int], float]], list[tuple[Delivery, Record]]]:
        """(places that are settled, those that come again after so many seconds, what must be stored before)."""
        done: list[tuple[str, int]] = []
        again: list[tuple[tuple[str, int], float]] = []
        records: list[tuple[Delivery, Record]] = []
        for delivery, answer in zip(batch, answers, strict=True):
            place = (delivery.source, delivery.seq)
            if answer is None:
                done.append(place)
                self.status.delivered += 1
                continue
            from_ = origin(delivery)
            attempt = from_.attempts + delivery.deliveries
            status = FAILED if answer.again else REJECTED
            decision = decide(status, answer.reason, answer.after, attempt, self.retry, spread=spread(from_.sequence))
            fields = {"sink": self.name, "event": from_.sequence, "attempt": attempt, "reason": answer.reason}
            log.warning("not delivered", extra=fields | {"fate": decision.fate, "delay_s": round(decision.delay, 3)})
            self.status.error = answer.reason
            if decision.fate == "held":
                again.append((place, decision.delay))
                self.status.retried += 1
                continue
            done.append(place)
            if decision.fate == "scheduled":
                records.append((delivery, retry_record(self.queue, delivery, attempt, time() + decision.delay)))
                self.status.retried += 1
            else:
                records.append((delivery, self._dead(delivery, answer.reason)))
                self.status.dead += 1
        return done, again, records

    def _dead(self, delivery: Delivery, reason: str) -> Record:
        attempts = origin(delivery).attempts + delivery.deliveries
        return dead_record(self.queue, delivery, reason=reason, detail="", attempts=attempts, now=time(), version=self.version)

    async def _store(self, records: list[tuple[Delivery, Record]]) -> None:
        """Until it is on disk."""
        pause = LEAST_PAUSE
        while records:
            try:
                await self.bus.publish([record for _, record in records], output=True)
                return
            except EventTooLarge as error:  # than this server takes: what we add was too much
                if len(records) > 1:
                    for one in records:
                        await self._store([one])
                    return
                [(delivery, record)] = records
                is_dead = record.subject.startswith("dead.")
                records = [(delivery, cut(record) if is_dead else self._dead(delivery, f"cannot be stored for a later attempt: {error}"))]
            except (BusUnavailable, BusFull) as error:
                log.warning("what was not delivered waits for the bus", extra={"sink": self.name, "reason": str(error), "retry_s": pause})
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
