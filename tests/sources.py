"""A source that tests script, and a bus that keeps what it is given: what a connector's host does, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker_faas.bus import Position, Record
from broker_faas.connectors.batch import Batch, Refused
from broker_faas.connectors.pump import Positions
from broker_faas.errors import EventTooLarge, Overtaken, SourceUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import position_subject


@dataclass
class Scripted:
    """A log of one partition that can be read again. acked: how far; a new open() begins there, or where `positions` says.

    size: of a batch. ends: open sessions to be cut off at these offsets, once each. acks_fail: acknowledgements that get lost.
    silent: it has something and gives nothing. forgotten: so is the first session, and its lag says so.
    """

    log: list[CloudEvent | Refused] = field(default_factory=list)
    size: int = 3
    name: str = "orders"
    acked: int = 0
    reads: list[int] = field(default_factory=list)  # offsets of the batches, as they were read
    opens: int = 0
    ends: set[int] = field(default_factory=set)
    acks_fail: int = 0
    silent: bool = False
    forgotten: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, *items: CloudEvent | Refused) -> None:
        self.log.extend(items)
        self.news.set()

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[Session]:
        self.opens += 1
        stored = await positions("0")
        yield Session(self, self.acked if stored is None else int(stored) + 1)

    async def peek(self, source: str, n: int) -> Batch:
        return Batch([(self.name, self.log[self.acked : self.acked + n])], None, {})


class Session:
    def __init__(self, scripted: Scripted, at: int) -> None:
        self._scripted = scripted
        self._at = at

    async def __aiter__(self) -> AsyncIterator[Batch]:
        scripted = self._scripted
        while True:
            if self._at in scripted.ends:
                scripted.ends.discard(self._at)
                raise SourceUnavailable("the source went away")
            items: Sequence[CloudEvent | Refused] = scripted.log[self._at : self._at + scripted.size]
            if items and not scripted.silent and not (scripted.forgotten and scripted.opens == 1):
                scripted.reads.append(self._at)
                self._at += len(items)
                yield Batch([(scripted.name, items)], self._at, {"0": str(self._at - 1)})
            else:
                scripted.news.clear()
                await scripted.news.wait()

    async def ack(self, token: object) -> None:
        if self._scripted.acks_fail:
            self._scripted.acks_fail -= 1
            raise SourceUnavailable("the acknowledgement was not heard")
        assert isinstance(token, int)
        self._scripted.acked = max(self._scripted.acked, token)

    async def lag(self) -> int | None:
        if self._scripted.forgotten and self._scripted.opens == 1:
            raise SourceUnavailable("it has no consumer any more")
        return len(self._scripted.log) - self._scripted.acked


class Held:
    """A bus with a way to it that stands still: waiting, until gate is set. fails: what it raises then, once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.waiting = False
        self.fails: Exception | None = None
        self.position = store.position

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        self.waiting = True
        await self.gate.wait()
        if self.fails:
            error, self.fails = self.fails, None
            raise error
        return await self._store.publish(records, output=output, last=last)


class Store:
    """A bus that keeps what it is given. fails: what the next publishes raise; None: they succeed. gate: publishing waits for it.

    lost: raised by those that have stored what they were given. forgets: what was stored until then is known by no id any more.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fails: list[Exception | None] = []
        self.lost: list[Exception] = []
        self.forgets = False
        self._forgotten = 0  # records
        self.gate = asyncio.Event()
        self.gate.set()
        self.largest = 1 << 30

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        """last: as bus.Bus has it; a record's sequence is its place here, from 1."""
        await self.gate.wait()
        if self.fails and (error := self.fails.pop(0)):
            raise error
        if large := [len(record.data) for record in records if len(record.data) > self.largest]:
            raise EventTooLarge(large[0], self.largest)
        known = {record.msg_id for record in self.records[self._forgotten :]}
        fresh = [record for record in records if record.msg_id not in known]
        if fresh and any(self._last(subject)[1] != sequence for subject, sequence in (last or {}).items()):
            raise Overtaken("another was faster")
        self.records += fresh
        if self.lost:
            if self.forgets:
                self.forget()
            raise self.lost.pop(0)
        if last:
            last |= {subject: self._last(subject)[1] for subject in last}
        return sum(record.msg_id in known and record.subject.startswith("ev.") for record in records)

    def forget(self) -> None:
        """As after two minutes."""
        self._forgotten = len(self.records)

    def on(self, prefix: str) -> list[Record]:
        return [record for record in self.records if record.subject.startswith(prefix)]

    @property
    def events(self) -> list[str]:
        return [CloudEvent.from_headers(record.headers, record.data).id for record in self.on("ev.")]

    async def position(self, partition: str) -> Position:
        said, sequence = self._last(position_subject("c", partition))
        return Position(said.decode() if sequence else None, sequence)

    def _last(self, subject: str) -> tuple[bytes, int]:
        found = [(record.data, n) for n, record in enumerate(self.records, 1) if record.subject == subject]
        return found[-1] if found else (b"", 0)
