"""Feed: one function's stream of events through one worker; Held: an event from its delivery to its settlement."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

from ..bus import Delivery, Queue, Subscription
from ..function import Spec
from ..layout import Origin
from .dispatch import Pool
from .executor import Call

HORIZON = 0.5  # seconds of work held ahead of the executors: hides the bus's round trip, hoards nothing
MAX_PREFETCH = 2000
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


class Held(Call):
    """A call with where it came from and whose it is."""

    __slots__ = ("delivery", "feed", "origin")
    delivery: Delivery
    feed: Feed
    origin: Origin


class Feed:
    """index: of the function within its pool's group."""

    def __init__(self, spec: Spec, queue: Queue, pool: Pool, index: int) -> None:
        self.spec = spec
        self.queue = queue
        self.pool = pool
        self.index = index
        self.counts = Counts()
        self.held: dict[int, Held] = {}
        self.subscription: Subscription | None = None
        self.moved = monotonic()  # when something last arrived or ended
        self.empty = asyncio.Event()  # nothing is held
        self.empty.set()
        self._crashed: dict[str, None] = {}
        self._ended = 0
        self._measured = monotonic()
        self._rate = 0.0

    def take(self, id: int, delivery: Delivery, origin: Origin) -> Held:
        held = Held(id, self.index, origin.topic, origin.attempts + delivery.deliveries, delivery.headers, delivery.data)
        held.delivery, held.feed, held.origin = delivery, self, origin
        self.held[id] = held
        self.empty.clear()
        self.counts.accepted += 1
        return held

    def fresh(self, batch: list[Delivery]) -> list[Delivery]:
        """Without those that are held already: their lease ended while the bus could not be reached. They go on, under the new lease."""
        if all(delivery.deliveries == 1 for delivery in batch):
            return batch
        here = {(held.delivery.source, held.delivery.seq): held for held in self.held.values()}
        fresh = []
        for delivery in batch:
            if held := here.get((delivery.source, delivery.seq)):
                held.delivery = delivery
            else:
                fresh.append(delivery)
        return fresh

    def settle(self, done: list[Held], again: list[tuple[Held, float]]) -> None:
        """Lets go of events: acknowledged, or handed back for so many seconds. One write."""
        for held in done:
            del self.held[held.id]
        for held, _ in again:
            del self.held[held.id]
        self.counts.retried += len(again)
        self.counts.accepted -= len(again)
        if not self.held:
            self.empty.set()
        self._ended += len(done) + len(again)
        self.moved = monotonic()
        if self.subscription:
            self.subscription.settle([held.delivery for held in done], [(held.delivery, delay) for held, delay in again])

    def renew(self) -> None:
        if self.held and self.subscription:
            self.subscription.settle((), (), [held.delivery for held in self.held.values()])

    def hand_back(self, stored: list[Held]) -> None:
        """All of it, to be delivered to another worker at once. stored: of these a copy is on its way there."""
        self.counts.handed_back += len(self.held)
        for held in stored:
            self.held.pop(held.id, None)
        if self.subscription:
            self.subscription.settle([held.delivery for held in stored], [(held.delivery, 0.0) for held in self.held.values()])
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

        So nothing ages past its lease, and a slow function hoards nothing that an idle worker could run.
        """
        if now - self._measured >= 0.1:
            fresh = self._ended / (now - self._measured)
            self._rate = fresh if fresh > self._rate else self._rate * 0.7 + fresh * 0.3
            self._ended, self._measured = 0, now
        if self.subscription:
            # Sync calls do not overlap within an executor: the pool forks as many as `concurrency` for them.
            # Of async ones, so many that another executor would have something to do: the pool grows when calls wait.
            at_once = self.spec.concurrency * (1 if self.spec.sync else min(self.pool.size, len(self.pool.executors) + 1))
            probe = self.pool.sick and not self.spec.ordered
            self.subscription.prefetch = 1 if probe else min(MAX_PREFETCH, at_once + 1 + int(self._rate * HORIZON))
