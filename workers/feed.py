"""Feed: one function's stream of events through one worker; Held: an event from its delivery to its settlement."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from time import monotonic

from ..bus import Delivery, Queue, Subscription
from ..function import Spec
from ..layout import EVENT, Origin, origin
from .dispatch import Pool
from .executor import Call

HORIZON = 0.5  # seconds of work held ahead of the executors: hides the bus's round trip, hoards nothing
MAX_PREFETCH = 8000
MAX_TOPICS = 1_000
MAX_CRASHED = 10_000  # events remembered as having crashed an executor


@dataclass(slots=True)
class Counts:
    """Of one function, since this worker started. accepted = done + dead + discarded + handed_back + held now.

    A retried event is accepted again when it comes again; outputs counts events published, unkeyed those an ordered function
    got without a key.
    """

    accepted: int = 0
    done: int = 0
    dead: int = 0
    discarded: int = 0
    handed_back: int = 0
    retried: int = 0
    outputs: int = 0
    unkeyed: int = 0


class Held(Call, gc=False, eq=False, kw_only=True):
    """A call with where it came from and whose it is."""

    delivery: Delivery
    feed: Feed
    _origin: Origin | None = None

    @property
    def origin(self) -> Origin:
        """Looked at only when something goes wrong: 0.7 µs."""
        if self._origin is None:
            self._origin = origin(self.delivery)
        return self._origin


class Feed:
    """index: of the function within its pool's group."""

    def __init__(self, spec: Spec, queue: Queue, pool: Pool, index: int) -> None:
        self.spec = spec
        self.queue = queue
        self.pool = pool
        self.index = index
        self.counts = Counts()
        self.held: set[Held] = set()
        self.subscription: Subscription | None = None
        self.moved = monotonic()  # when something last arrived or ended
        self.empty = asyncio.Event()  # nothing is held
        self.empty.set()
        self._topics: dict[str, str] = {}  # of subjects seen lately
        self._crashed: dict[str, None] = {}
        self._ended = 0
        self._measured = monotonic()
        self._rate = 0.0

    def take(self, batch: list[Delivery], ids: count[int]) -> tuple[list[Held], list[Held]]:
        """Holds them: those that are new, in their order, and those that had an attempt before.

        Without what is held already: its lease ended while the bus could not be reached. It goes on, under the new lease.
        """
        topics, index = self._topics, self.index
        new: list[Held] = []
        again: list[Held] = []
        here: dict[tuple[str, int], Held] | None = None
        seen = 0  # of `new`, those that are in `here`
        for delivery in batch:
            topic = topics.get(delivery.subject)
            if topic is not None and delivery.deliveries == 1:
                new.append(Held(next(ids), index, topic, 1, delivery.headers, delivery.data, delivery=delivery, feed=self))
                continue
            if delivery.deliveries > 1:
                if here is None:
                    here = _by_place(self.held)
                here |= _by_place(new[seen:])  # a worker that was stopped for long reads both deliveries at once
                seen = len(new)
                if held := here.get((delivery.source, delivery.seq)):
                    held.delivery = delivery
                    continue
            held = self._strange(delivery, next(ids))
            (new if held.attempt == 1 else again).append(held)
            if here is not None:
                here[delivery.source, delivery.seq] = held
        self.held.update(new, again)
        now = monotonic()
        if now - self.moved > 0.1:  # it had nothing to do, which says nothing about how fast it is
            self._ended, self._measured = 0, now
        if self.held:
            self.empty.clear()
        self.counts.accepted += len(new) + len(again)
        self.moved = now
        return new, again

    def _strange(self, delivery: Delivery, id: int) -> Held:
        """From a subject that was not seen lately, or a retry or replay, which says more in its headers."""
        from_ = origin(delivery)
        if delivery.subject.startswith(EVENT):
            if len(self._topics) >= MAX_TOPICS:
                self._topics.clear()
            self._topics[delivery.subject] = from_.topic
        attempt = from_.attempts + delivery.deliveries
        return Held(id, self.index, from_.topic, attempt, delivery.headers, delivery.data, delivery=delivery, feed=self)

    def settle(self, done: list[Held], again: list[tuple[Held, float]]) -> None:
        """Lets go of events: acknowledged, or handed back for so many seconds. One write."""
        self.held.difference_update(done)
        for held, _ in again:
            self.held.remove(held)
        self.counts.retried += len(again)
        self.counts.accepted -= len(again)
        if not self.held:
            self.empty.set()
        self._ended += len(done) + len(again)
        self.moved = now = monotonic()
        if self.subscription:
            if self._ended >= self.subscription.prefetch:
                self.resize(now)
            self.subscription.settle([held.delivery for held in done], [(held.delivery, delay) for held, delay in again])

    def renew(self) -> None:
        if self.held and self.subscription:
            self.subscription.settle((), (), [held.delivery for held in self.held])

    def hand_back(self, stored: list[Held]) -> None:
        """All of it, to be delivered to another worker at once. stored: of these a copy is on its way there."""
        self.counts.handed_back += len(self.held)
        self.held.difference_update(stored)
        if self.subscription:
            self.subscription.settle([held.delivery for held in stored], [(held.delivery, 0.0) for held in self.held])
        self.held.clear()

    def crashed(self, held: Held) -> None:
        """Remember it: it runs alone when it comes again."""
        self._crashed[held.origin.sequence] = None
        if len(self._crashed) > MAX_CRASHED:
            del self._crashed[next(iter(self._crashed))]

    def has_crashed(self, held: Held) -> bool:
        """An earlier attempt of it here crashed."""
        return held.attempt > 1 and held.origin.sequence in self._crashed

    def resize(self, now: float) -> None:
        """Prefetch: what can run at once and one retry, plus HORIZON seconds of work at the rate seen lately.

        So nothing ages past its lease, and a slow function hoards nothing that an idle worker could run. Called every now and then,
        and when as many events ended as are prefetched: the first of a thousand no-ops are enough to see how fast they are.
        """
        elapsed = now - self._measured
        if elapsed >= 1.0 or (self.subscription and self._ended >= self.subscription.prefetch):
            fresh = self._ended / max(elapsed, 0.001)
            self._rate = max(fresh, (self._rate + fresh) / 2)
            self._ended, self._measured = 0, now
        if self.subscription:
            # Sync calls do not overlap within an executor: the pool forks as many as `concurrency` for them.
            # Of async ones, so many that another executor would have something to do: the pool grows when calls wait.
            at_once = self.spec.concurrency * (1 if self.spec.sync else min(self.pool.size, len(self.pool.executors) + 1))
            probe = self.pool.sick and not self.spec.ordered
            self.subscription.prefetch = 1 if probe else min(MAX_PREFETCH, at_once + 1 + int(self._rate * HORIZON))


def _by_place(events: Iterable[Held]) -> dict[tuple[str, int], Held]:
    return {(held.delivery.source, held.delivery.seq): held for held in events}
