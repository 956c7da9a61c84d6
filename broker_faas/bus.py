"""What the rest asks of a bus. Drivers: buses/nats.py, buses/memory.py; one contract suite: tests/contract/test_bus.py.

A bus stores Records and hands out Deliveries. It knows nothing of functions, retries or dead letters:
layout.py turns those into records, workers/ settles deliveries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec


class Record(NamedTuple):
    """One message as it lies on disk. layout.py makes them.

    subject: starts with the stream's prefix (`ev.`, `re.`, `at.`, `dead.`).
    msg_id: within the duplicate window (2 min) a second record with this id is not stored again.
    headers: `name: value\\r\\n` lines, ASCII, without the `NATS/1.0` line and the final empty one.
    data: the event's data, untouched.
    """

    subject: str
    msg_id: str
    headers: bytes
    data: bytes


class Delivery(msgspec.Struct, gc=False, eq=False):
    """One record handed to one worker, until it is settled or its lease ends. (A Struct is made in a third of the time.)

    deliveries: how often the bus has handed this record out, this time included (a lower bound: a server crash may lose counts).
    stored_at: unix seconds. source: which durable consumer it came from; token: the driver's own handle.
    """

    subject: str
    headers: bytes
    data: bytes
    seq: int
    deliveries: int
    stored_at: float
    source: str
    token: str


@dataclass(frozen=True, slots=True)
class Queue:
    """One function's place on the bus. Names and filters are derived by layout.consumers().

    name: `{project}--{function}`. topics: patterns as users write them (`a.b`, `c.*`, `d.>`).
    partitions: 0 = plain; 16 or 256 = ordered, one event of a partition at a time.
    start: "new", "first" or an RFC 3339 time: where a queue that does not exist yet begins.
    ack_wait: seconds after which an unsettled, unrenewed delivery is handed out again.
    """

    name: str
    topics: tuple[str, ...]
    partitions: int = 0
    start: str = "new"
    ack_wait: float = 30.0


@dataclass(frozen=True, slots=True)
class Lag:
    """Events of one queue that are not settled: waiting + in progress (delayed retries included) + scheduled retries."""

    waiting: int
    in_progress: int
    scheduled: int

    @property
    def total(self) -> int:
        return self.waiting + self.in_progress + self.scheduled


class Position(NamedTuple):
    """How far a partition of a source is stored. said: None if nothing is. sequence: of the record that says so; 0: there is none."""

    said: str | None = None
    sequence: int = 0


class Subscription(Protocol):
    """Deliveries of one queue. Iterate for batches; iteration ends after stop()."""

    prefetch: int
    """How many deliveries may be unsettled at once. May be changed at any time; bytes are bounded by the driver."""

    def __aiter__(self) -> AsyncIterator[list[Delivery]]:
        """Batches of ≥ 1. One reader."""

    def settle(self, done: Iterable[Delivery], again: Iterable[tuple[Delivery, float]] = (), renew: Iterable[Delivery] = ()) -> None:
        """In one write: ack `done`; hand `again` back, to be redelivered after so many seconds (≤ 30);
        restart the lease of `renew`. A hint to the bus, not a promise: what gets lost is redelivered."""

    def stop(self) -> None:
        """No new deliveries from now on; iteration ends once those already here are read. Settling still works."""


class Bus(Protocol):
    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        """Return when all are on disk: how many of them were duplicates. Order is kept; a position (`pos.`) is stored if all before it are.

        output: made by a function (an output, retry or dead letter): may use the last 15 % of the space.
        last: {subject of a position among these: sequence of the last record there, 0 if there is none}. Then all that is no duplicate
        is stored, or nothing: raises Overtaken if another record lies there. Has the new sequences afterwards. A position's id must name
        the sequence it follows, so that one that is stored already is told from another's.
        Raises EventTooLarge before anything is sent, BusUnavailable, BusFull, BusRefused.
        """

    def subscribe(self, queue: Queue, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        """Makes the queue if there is none (at its `start`), then delivers. Leaving the context stops."""

    async def lag(self, queue: Queue) -> Lag:
        """Raises BusUnavailable; BusRefused (code 10014) if the queue does not exist."""
