"""Settler: what becomes of outcomes. Stores what an event led to, then lets go of it; never the other way round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import NamedTuple, cast

from ..bus import Bus, Record
from ..decide import CRASHED, DONE, OK, Decision, decide, spread
from ..errors import BusError, BusFull, BusUnavailable, EventError, EventTooLarge, TopicInvalid
from ..event import CloudEvent
from ..layout import back_record, cut, dead_record, event_records, retry_record
from ..topics import sink_of
from .executor import Call, Outcome
from .feed import Feed, Held

log = logging.getLogger(__name__)

TOGETHER = 250  # events whose outputs are one publish
HAND_BACK = 2.0  # seconds that a worker which stops at once takes to store what it hands back

AsRecord = Callable[[str, dict[str, str], bytes | None], Record]


class Unstored(NamedTuple):
    """What must be on disk before the event is settled."""

    held: Held
    outcome: Outcome
    decision: Decision
    records: list[Record]


class Settler:
    """One a worker. outcomes() is called by pools; run() is the task that stores."""

    def __init__(self, bus: Bus, sinks: frozenset[str] = frozenset()) -> None:
        self._bus = bus
        self._sinks = sinks
        self._outbox: list[tuple[Held, Outcome, Decision]] = []  # bounded by what feeds may hold, as all of this
        self._filled = asyncio.Event()
        self._waiting: list[Unstored] = []  # the bus was away, or had no room for this one
        self._refused = asyncio.Event()
        self._why = ""

    def outcomes(self, calls: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        """calls: done, and nothing to store; of one function each. Of the others, decide each; settle at once what can be, leave the
        rest to run()."""
        done = {held[0].feed: held for held in cast(list[list[Held]], calls) if held}
        again: dict[Feed, list[tuple[Held, float]]] = {}
        for feed, settled in done.items():
            feed.counts.done += len(settled)
        for held, outcome in cast(list[tuple[Held, Outcome]], others):
            decision = _decided(held, outcome)
            if decision.fate == "discarded":
                done.setdefault(held.feed, []).append(held)
                held.feed.counts.discarded += 1
            elif decision.fate == "held":
                again.setdefault(held.feed, []).append((held, decision.delay))
            else:
                self.store(held, outcome, decision)
        for feed in {**done, **again}:
            feed.settle(done.get(feed, []), again.get(feed, []))

    def store(self, held: Held, outcome: Outcome, decision: Decision) -> None:
        self._outbox.append((held, outcome, decision))
        self._filled.set()

    async def run(self) -> None:
        """For ever. What came together is one publish, or a few: events are let go of while the next of them are being stored."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._try_again())
            while True:
                await self._filled.wait()
                self._filled.clear()
                ready, self._outbox = self._outbox, []
                for start in range(0, len(ready), TOGETHER):
                    output = _outputs(self._sinks)
                    tasks.create_task(self._store([_unstored(*one, output) for one in ready[start : start + TOGETHER]]))

    async def hand_back(self, events: list[Held]) -> None:
        """Lets go of events that did not run, or not to their end, because this worker stops: without charging them an attempt.

        Ordered ones keep their place instead, and so do all if the bus takes nothing now: then the delivery counts.
        """
        stored = [held for held in events if not held.feed.spec.ordered]
        try:
            # crash point: hand-back-before-store
            async with asyncio.timeout(HAND_BACK):
                await self._bus.publish([_back(held, 0.0) for held in stored], output=True)
        except (BusError, EventTooLarge, TimeoutError):
            stored = []
        # crash point: hand-back-stored
        for feed in {held.feed for held in events}:
            feed.hand_back([held for held in stored if held.feed is feed])

    async def _store(self, batch: list[Unstored]) -> None:
        """All in one publish, else each by itself: only what is settled can be freed, so one that finds no room holds up no other."""
        # crash point: outcomes-before-store
        try:
            await self._bus.publish([record for one in batch for record in one.records], output=True)
        except (BusFull, BusUnavailable, EventTooLarge) as error:
            if len(batch) > 1 and not isinstance(error, BusUnavailable):
                for one in batch:
                    await self._store([one])
            elif isinstance(error, EventTooLarge):
                await self._store([_smaller(batch[0], error)])
            else:
                self._waiting += batch
                self._why = str(error)
                self._refused.set()
        else:
            # crash point: outcomes-stored
            self._stored(batch)
            # crash point: outcomes-settled

    async def _try_again(self) -> None:
        """A bus that is away or full makes outputs wait, and their events stay held. Nothing is dropped."""
        delay = 0.1
        while True:
            await self._refused.wait()
            self._refused.clear()
            log.warning("outputs wait for the bus", extra={"events": len(self._waiting), "reason": self._why, "retry_s": delay})
            await asyncio.sleep(delay)
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                await self._store([one])
            delay = min(5.0, delay * 2) if self._waiting else 0.1

    async def publish(self, records: list[Record]) -> None:
        """What a client published, until it is stored."""
        delay = 0.1
        while True:
            try:
                await self._bus.publish(records)
                return
            except (BusUnavailable, BusFull) as error:
                log.warning("delayed events wait for the bus", extra={"records": len(records), "reason": str(error), "retry_s": delay})
                await asyncio.sleep(delay)
                delay = min(5.0, delay * 2)
            except EventTooLarge:
                for record in [_cut(records[0])] if len(records) == 1 else records:
                    await self.publish([record])
                return

    def _stored(self, batch: list[Unstored]) -> None:
        done: dict[Feed, list[Held]] = {}
        for held, _, decision, records in batch:
            counts = held.feed.counts
            match decision.fate:
                case "done":
                    counts.done += 1
                    counts.outputs += len(records)
                case "dead":
                    counts.dead += 1
                case "scheduled":  # accepted again when it comes again
                    counts.retried += 1
                    counts.accepted -= 1
                case "back":
                    counts.handed_back += 1
            done.setdefault(held.feed, []).append(held)
        for feed, held_events in done.items():
            feed.settle(held_events, [])


def _decided(held: Held, outcome: Outcome) -> Decision:
    if outcome.status == OK:
        return DONE
    spec = held.feed.spec
    if outcome.status == CRASHED:
        held.feed.crashed(held)
    decision = decide(
        outcome.status,
        outcome.reason,
        outcome.after,
        held.attempt,
        spec.retry,
        ordered=bool(spec.ordered),
        on_failure=spec.on_failure,
        spread=spread(held.origin.sequence),
    )
    if decision.reason:
        fields = {"function": spec.name, "event": held.origin.sequence, "attempt": held.attempt, "reason": outcome.reason}
        log.warning("attempt failed", extra=fields | {"fate": decision.fate, "delay_s": round(decision.delay, 3), "detail": outcome.detail})
    return decision


def _unstored(held: Held, outcome: Outcome, decision: Decision, output: AsRecord) -> Unstored:
    """Outputs that no bus would take make the event a dead letter."""
    if decision.fate == "done":
        try:
            return Unstored(held, outcome, decision, [output(*sent) for sent in outcome.outputs])
        except (EventError, TypeError, ValueError) as error:
            return _dead(held, outcome, f"its output cannot be published: {error}")
    if decision.fate == "scheduled":
        retry = retry_record(held.feed.queue, held.delivery, held.attempt, time() + decision.delay)
        return Unstored(held, outcome, decision, [retry])
    if decision.fate == "back":
        return Unstored(held, outcome, decision, [_back(held, decision.delay)])
    return _dead(held, outcome, decision.reason)


def _back(held: Held, delay: float) -> Record:
    return back_record(held.feed.queue, held.delivery, held.attempt - 1, time() + delay)


def _smaller(one: Unstored, error: EventTooLarge) -> Unstored:
    """Instead of what this bus does not take."""
    match one.decision.fate:
        case "done":
            return _dead(one.held, one.outcome, f"its output cannot be published: {error}")
        case "scheduled" | "back":
            return _dead(one.held, one.outcome, f"too large to be stored again for a later attempt: {one.decision.reason}")
    if one.outcome.detail:  # the traceback can be spared, the event cannot
        return _dead(one.held, one.outcome._replace(detail=""), one.decision.reason)
    return one._replace(records=[_cut(record) for record in one.records])


def _dead(held: Held, outcome: Outcome, reason: str) -> Unstored:
    record = dead_record(
        held.feed.queue,
        held.delivery,
        reason=reason,
        detail=outcome.detail,
        attempts=held.attempt,
        now=time(),
        version=held.feed.spec.version,
    )
    return Unstored(held, outcome, Decision("dead", reason=reason), [record])


def _cut(dead: Record) -> Record:
    """Only another client's records come to this: ours leave room for what a dead letter adds."""
    log.error(
        "dead letter cut: the bus does not take it whole", extra={"subject": dead.subject, "bytes": len(dead.headers) + len(dead.data)}
    )
    return cut(dead)


def _outputs(sinks: frozenset[str]) -> AsRecord:
    """Makes records of a batch's outputs. Executors are not trusted with the bus's format: everything is checked here."""
    topics: dict[str, Callable[[CloudEvent], Record]] = {}

    def record(topic: str, attributes: dict[str, str], data: bytes | None) -> Record:
        if topic not in topics:
            if ":" in topic and sink_of(topic)[0] not in sinks:
                raise TopicInvalid(f"{topic!r:.80} leaves through no [[sink]] of this project")
            topics[topic] = event_records(topic)
        if "specversion" not in attributes:
            attributes = {"specversion": "1.0", **attributes}
        return topics[topic](CloudEvent.from_attributes(attributes, data))

    return record
