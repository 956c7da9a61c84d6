"""Worker: pulls events, hands them to executors, settles them.

An event is held from its delivery to its settlement, its lease renewed meanwhile. It is settled after what it led to is
stored. So a worker that dies at any instruction loses nothing: what it held is delivered again, elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, time
from typing import cast

from ..bus import Bus, Delivery, Queue, Subscription
from ..decide import FAILED, Decision
from ..errors import BusUnavailable, EventError
from ..event import CloudEvent
from ..function import Spec
from ..layout import dead_record, event_record, faas_headers
from ..service import Stuck, first, patiently
from .dispatch import Fork, Pool
from .executor import Group, Outcome
from .feed import MAX_PREFETCH, Feed, Held
from .settle import Settler

log = logging.getLogger(__name__)

STUCK_AFTER = 60.0  # seconds with waiting events, a connection and no progress, after which the process ends itself
SICK_PAUSE = 5.0  # seconds until an event comes again that no executor could be had for
SUSPECT_PAUSE = 1.0  # seconds before an event runs that may take the worker down: what came with it is stored elsewhere meanwhile
LOST_DELIVERIES = 5  # deliveries beyond max_attempts that dying workers may cost an event before it is dead without another run


@dataclass
class Worker:
    """Everything it uses is in the call.

    project: part of queue names and of its outputs' source. specs: faas.toml's overrides applied. fork: makes executors.
    environ: function → variables for its executors alone. executors: of async functions, at most, per pool.
    sinks: names of those that outputs may leave through.
    recycle_events, recycle_bytes: an executor is replaced after so many events, or above so much memory; 0: never.
    """

    bus: Bus
    project: str
    specs: Sequence[Spec]
    fork: Fork
    sinks: frozenset[str] = frozenset()
    environ: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    executors: int = 2
    recycle_events: int = 0
    recycle_bytes: int = 0
    ack_wait: float = 30.0
    feeds: list[Feed] = field(default_factory=list, init=False)
    ready: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _busy: asyncio.Event = field(default_factory=asyncio.Event, init=False)  # something has arrived
    _suspect: Held | None = field(default=None, init=False)  # an event that workers may have died of: one at a time

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then finish what is held and return. Cancelled: hand everything back at once.

        Raises Stuck, and BusRefused (permissions, a deleted queue): both end the process.
        """
        settler = Settler(self.bus, self.sinks)
        ids = count(1)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._make_feeds(settler, tasks)
                    # Before the queues, which may take long to make: what the first of them deliver is settled meanwhile.
                    others = [tasks.create_task(work) for work in (settler.run(), self._tick(settler), self._renew())]
                    relay = await self._subscribe(stack, Queue("publish", (), ack_wait=self.ack_wait), 100)
                    readers = [tasks.create_task(self._relay(relay, settler))]
                    for feed in self.feeds:
                        feed.subscription = await self._subscribe(stack, feed.queue, min(MAX_PREFETCH, feed.spec.concurrency + 1))
                        readers.append(tasks.create_task(self._read(feed, feed.subscription, ids, settler)))
                    others.append(tasks.create_task(self._watch()))
                    # crash point: worker-ready
                    log.info("worker ready", extra={"functions": [feed.spec.name for feed in self.feeds]})
                    self.ready.set()
                    await stop.wait()
                    # crash point: drain-begun
                    for subscription in [relay, *(feed.subscription for feed in self.feeds if feed.subscription)]:
                        subscription.stop()
                    await asyncio.wait(readers)
                    for feed in self.feeds:
                        await feed.empty.wait()  # nothing new comes
                    # crash point: drained
                    for task in others:
                        task.cancel()
                    await asyncio.gather(*(pool.close() for pool in {feed.pool for feed in self.feeds}))
            except BaseExceptionGroup as failures:
                raise first(failures) from None
            finally:
                for feed in self.feeds:
                    feed.pool.kill("the worker stops")  # first: no event may run here once another worker can get it
                if held := [one for feed in self.feeds for one in feed.held]:  # none, after a drain
                    await settler.hand_back(held)

    async def _subscribe(self, stack: AsyncExitStack, queue: Queue, prefetch: int) -> Subscription:
        return await patiently(lambda: stack.enter_async_context(self.bus.subscribe(queue, prefetch)))

    def _make_feeds(self, settler: Settler, tasks: asyncio.TaskGroup) -> None:
        """The async functions of a module share executors. Sync ones, which would keep each other waiting, have their own, and so
        has a function with an environment of its own."""
        groups: dict[str, list[Spec]] = {}
        for spec in self.specs:
            own = spec.sync or self.environ.get(spec.name)
            groups.setdefault(spec.name if own else f"({spec.module})", []).append(spec)
        self.feeds = []
        for name, specs in groups.items():
            group = Group(name=name, functions=specs, env=dict(self.environ.get(name, {})), sync=specs[0].sync)
            size = max(spec.concurrency for spec in specs) if group.sync else self.executors
            pool = Pool(group, size, self.fork, settler.outcomes, tasks, self.recycle_events, self.recycle_bytes)
            self.feeds += [Feed(spec, queue_of(self.project, spec, self.ack_wait), pool, index) for index, spec in enumerate(specs)]

    async def _read(self, feed: Feed, subscription: Subscription, ids: count[int], settler: Settler) -> None:
        async for batch in subscription:
            self._busy.set()
            # crash point: events-arrived
            new, again = feed.take(batch, ids)
            if feed.spec.ordered:
                _count_unkeyed(feed, new + again)
            if new:
                feed.pool.submit(new)
            for held in again:
                self._again(feed, held, settler)

    def _again(self, feed: Feed, held: Held, settler: Settler) -> None:
        """An event that had an attempt before."""
        lost = held.attempt - feed.spec.retry.max_attempts
        if lost > 0 and feed.spec.on_failure != "block":
            # More deliveries than attempts and no outcome: workers died.
            if lost > LOST_DELIVERIES:
                reason = f"delivered {held.attempt} times without an outcome: did it take its workers down?"
                return settler.store(held, Outcome(held.id, FAILED, reason, "", None, []), Decision("dead", reason=reason))
            if not feed.spec.ordered:
                return self._suspected(feed, held, settler)
            held.attempt = feed.spec.retry.max_attempts
        feed.pool.submit([held], alone=lost > 0 or feed.has_crashed(held))

    def _suspected(self, feed: Feed, held: Held, settler: Settler) -> None:
        """It came with all that dead workers held. One of them runs; the others are stored as they came, or they would be there again
        when it takes this worker down, and be dead in the end without having run."""
        if self._suspect and self._suspect in self._suspect.feed.held:
            return settler.store(held, Outcome(held.id, FAILED, "", "", None, []), Decision("back", SICK_PAUSE))
        self._suspect = held

        def run() -> None:
            if held in feed.held:
                held.attempt = feed.spec.retry.max_attempts
                feed.pool.submit([held], alone=True)

        asyncio.get_running_loop().call_later(SUSPECT_PAUSE, run)

    async def _relay(self, subscription: Subscription, settler: Settler) -> None:
        """Delayed publishes whose time has come: on to the events stream, under their own id."""
        async for batch in subscription:
            records = []
            for delivery in batch:
                try:
                    event = CloudEvent.from_headers(delivery.headers, delivery.data)
                    records.append(event_record(faas_headers(delivery.headers).get("topic", ""), event))
                except EventError as error:
                    queue = Queue("publish", ())
                    records.append(dead_record(queue, delivery, reason=str(error), detail="", attempts=1, now=time(), version=""))
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew_these(subscription, batch))
                # crash point: relay-before-store
                await settler.publish(records)  # which waits while the bus is full
                renewing.cancel()
            # crash point: relay-stored
            subscription.settle(batch)

    async def _renew_these(self, subscription: Subscription, batch: list[Delivery]) -> None:
        while True:
            await asyncio.sleep(self.ack_wait / 3)
            subscription.settle((), (), batch)

    async def _tick(self, settler: Settler) -> None:
        """What time brings. Events of a function that no executor can be had for go back, uncharged: another node may run them."""
        pools = {feed.pool for feed in self.feeds}
        while True:
            now = monotonic()
            for pool in pools:
                pool.tick(now)
            for feed in self.feeds:
                feed.resize(now)
                if feed.pool.sick and not feed.spec.ordered:
                    for call in cast(list[Held], feed.pool.withdraw(feed.index)):
                        settler.store(call, Outcome(call.id, FAILED, "", "", None, []), Decision("back", SICK_PAUSE))
            if any(feed.held for feed in self.feeds):
                await asyncio.sleep(0.025)
            else:
                self._busy.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.25):
                        await self._busy.wait()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.ack_wait / 3)
            for feed in self.feeds:
                feed.renew()

    async def _watch(self) -> None:
        """Connected but stuck is an exit, not silence. One look may see an event that is on its way: two in a row count."""
        suspected: dict[Feed, int] = {}
        while True:
            await asyncio.sleep(STUCK_AFTER / 6)
            waiting = {feed: await self._left_waiting(feed) for feed in self.feeds}
            for feed, events in waiting.items():
                if events and suspected.get(feed):
                    raise Stuck(f"{feed.spec.name}: {events} events wait and none arrived for {STUCK_AFTER:g} s")
            suspected = waiting

    async def _left_waiting(self, feed: Feed) -> int:
        """How many events wait for this function though it has had nothing to do for STUCK_AFTER seconds."""
        if feed.held or monotonic() - feed.moved < STUCK_AFTER:
            return 0
        try:
            lag = await self.bus.lag(feed.queue)
        except BusUnavailable:
            feed.moved = monotonic()  # not connected: reconnecting is the driver's work
            return 0
        if feed.held or monotonic() - feed.moved < STUCK_AFTER:
            return 0
        # Of an ordered function they may wait for an event of their partition that another worker has.
        return 0 if feed.spec.ordered and lag.in_progress else lag.waiting


def queue_of(project: str, spec: Spec, ack_wait: float = 30.0) -> Queue:
    return Queue(f"{project}--{spec.name}", tuple(spec.topics), spec.ordered, spec.start, ack_wait)


def _count_unkeyed(feed: Feed, events: list[Held]) -> None:
    unkeyed = sum(held.delivery.source.endswith("--unkeyed") for held in events)
    feed.counts.unkeyed += unkeyed
    if 0 < feed.counts.unkeyed == unkeyed:  # the first of them
        log.warning("ordered function got an event without a key; events without a key have no order", extra={"function": feed.spec.name})
