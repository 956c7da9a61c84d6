"""pump: from a source to the bus. Read, make records, publish, and only then acknowledge; once for all connectors.

    source ── Batch ──▶ records ──▶ bus.publish ──▶ source.ack
              read and translated while the batch before it is being stored, if that is a large one

One batch is stored at a time, so the bus has a source's order, whatever fails meanwhile. A bus that is full or away stops the reading:
a source is never read faster than what it gives is on disk.
Each batch says which position it follows, and the bus stores it only if that is so (decision 12): who was overtaken reads anew.
Drivers: kafka.py and its neighbours; their contract: tests/contract/test_connectors.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from time import time
from typing import Protocol, TypeVar

from ..bus import Bus, Position
from ..errors import BusFull, BusUnavailable, EventTooLarge, Overtaken, SourceError, SourceRefused, SourceUnavailable
from ..service import Stuck, first
from ..service import pause as pausing
from .batch import Batch, Known, Ready, Route, following, records, smaller
from .decoder import Decoder, Decoding, decoded

log = logging.getLogger(__name__)

T = TypeVar("T")

STUCK_AFTER = 60.0  # seconds without a batch, though the source has some, after which the process ends itself
LEAST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries, of the bus and of the source; what is back is read within 15
REMEMBERED = 60.0  # seconds that a source must have been read for its pauses to begin small again
FEW = 50  # events, behind which nothing is read ahead: storing any costs the server milliseconds, and what comes meanwhile shares the next


Positions = Callable[[str], Awaitable[str | None]]
"""Of a partition of the source: how far it is stored on the bus; None if nothing of it is."""


class Source(Protocol):
    """An open source. It reads nothing ahead but what its buffers, which have a bound, hold."""

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Batches of ≥ 1. One reader. Raises SourceUnavailable, SourceRefused."""

    async def ack(self, token: object) -> None:
        """Everything up to and including this batch is on disk. A hint: what the source does not hear comes again."""

    async def lag(self) -> int | None:
        """What the source has and this connector has not stored yet; None if it cannot tell, or does not answer.

        Raises SourceUnavailable if nothing will come any more though the connection stands: a consumer that the broker has forgotten.
        """


class Connector(Protocol):
    """Options of one source: a frozen dataclass; what open() gives is the connection. A third method, again(): replay.py."""

    def open(self, source: str, positions: Positions) -> AbstractAsyncContextManager[Source]:
        """source: CloudEvents `source` of events made here. Raises SourceUnavailable, SourceRefused."""

    async def peek(self, source: str, n: int) -> Batch:
        """The next n or fewer. Acknowledges nothing and disturbs no other reader. Raises as open()."""


@dataclass(slots=True)
class Status:
    """Counts since the start: read = stored + filtered + quarantined, and what is on its way. repeated: of stored, those that were there.

    state: connecting, reading, waiting for the bus, waiting for the decoder, ended. error: the last one, "" if none.
    """

    read: int = 0
    stored: int = 0
    repeated: int = 0
    filtered: int = 0
    quarantined: int = 0
    state: str = "connecting"
    error: str = ""
    lag: int | None = None


@dataclass
class Pump:
    """A service for one connector. position: asks the bus for that of a partition, which is what pumps have published as its record."""

    connector: Connector
    route: Route
    bus: Bus
    position: Callable[[str], Awaitable[Position]]
    decoder: Decoder | None = None
    status: Status = field(default_factory=Status)
    _moved: float = field(default=0.0, init=False)  # loop time of the last batch that was stored
    _known: dict[str, Known] = field(default_factory=dict, init=False)  # by partition, since its driver last asked
    _unstored: int = field(default=0, init=False)  # batches that were read
    _settled: asyncio.Event = field(default_factory=asyncio.Event, init=False)  # there are none
    _decoding: Decoding | None = field(default=None, init=False)
    _in_decoder: bool = field(default=False, init=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what was read is stored and acknowledged.

        Raises SourceRefused, BusRefused, ConfigError (of the decoder), Stuck: they end the process.
        """
        async with AsyncExitStack() as stack:
            if self.decoder:
                self._decoding = await stack.enter_async_context(self.decoder.open())
            try:
                await self._sessions(stop)
            except SourceRefused as error:
                raise SourceRefused(f"connector {self.route.name}: {error}") from None

    async def renew(self) -> None:
        """The decoder's code has changed. Raises ConfigError, SourceUnavailable: what was imported before goes on."""
        if self._decoding is not None:
            await self._decoding.renew()

    async def _sessions(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        pause = LEAST_PAUSE
        while not stop.is_set():
            began = loop.time()
            try:
                await self._session(stop)
            except (SourceUnavailable, BusUnavailable, Overtaken) as error:  # BusUnavailable: for the positions that open() asks
                self.status.state, self.status.error = "connecting", str(error)
                anew = loop.time() - began > REMEMBERED or (isinstance(error, SourceUnavailable) and error.waited)
                pause = LEAST_PAUSE if anew else min(LONGEST_PAUSE, pause * 2)
                log.warning("source is opened again", extra={"connector": self.route.name, "reason": str(error), "retry_s": pause})
                await pausing(stop, pause)
        self.status.state = "ended"

    async def _session(self, stop: asyncio.Event) -> None:
        self._moved = asyncio.get_running_loop().time()
        self._known, self._unstored = {}, 0
        self._settled.set()
        ours: list[asyncio.Task[object]] = []
        cancelled = False
        try:
            async with self.connector.open(self.route.source, self._begin) as source, asyncio.TaskGroup() as tasks:
                try:
                    await self._read(source, stop, tasks, ours)
                except asyncio.CancelledError:  # by whoever runs this, or by the group, since something in it has failed
                    cancelled = not any(task.done() and not task.cancelled() and task.exception() for task in ours)
                    raise
        except BaseExceptionGroup as failures:
            if cancelled:  # which a group forgets when something fails while it ends
                raise asyncio.CancelledError from None
            _uncancel()
            raise first(failures) from None

    async def _read(self, source: Source, stop: asyncio.Event, tasks: asyncio.TaskGroup, ours: list[asyncio.Task[object]]) -> None:
        """Until `stop`. ours: gets the tasks that it makes."""

        def begin(work: Coroutine[object, object, T]) -> asyncio.Task[T]:
            ours.append(task := tasks.create_task(work))
            return task

        self.status.state = "reading"
        acks = _Acks(source)
        others = [begin(acks.run()), begin(self._watch(source)), stopping := begin(_until(stop))]
        batches = aiter(source)
        reading = begin(self._next(batches))
        while True:
            await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                break
            ready = reading.result()
            if isinstance(ready, SourceError):
                await acks.last()
                raise ready
            if ready is None:
                raise SourceUnavailable("it ended, and said nothing of an error")
            ours.remove(reading)
            ahead = begin(self._next(batches)) if ready.read > FEW and not stopping.done() else None
            await self._store(ready)
            acks.put(ready.token)
            if ahead is None and stopping.done():
                break
            reading = ahead or begin(self._next(batches))
        # crash point: pump-draining
        await acks.last()
        for task in others:
            task.cancel()

    async def _begin(self, partition: str) -> str | None:
        """Positions of this pump. What it reads from now on follows what it finds here.

        What was read before keeps what was known then: another may have stored it meanwhile, and then the bus must refuse it. It is
        waited for, so that the partition goes on behind it.
        """
        await self._settled.wait()
        said, sequence = await self.position(partition)
        self._known[partition] = Known(sequence)
        return said

    async def _next(self, batches: AsyncIterator[Batch]) -> Ready | SourceError | None:
        """An error is told, not raised: the batch before it is still being stored."""
        await asyncio.sleep(0)  # that one is written first, or the bus would stand still while this one is translated
        try:
            batch = await anext(batches, None)
        except SourceError as error:
            return error
        if batch is None:
            return None
        self._unstored += 1
        self._settled.clear()
        known = {one: self._known[one] for one in batch.positions if one in self._known}
        # crash point: pump-read
        route = self.route
        if self._decoding is not None:
            try:
                batch = await self._decoded(batch, self._decoding)
            except SourceError as error:
                return error
            route = replace(route, where=None)  # it has had its say
        return records(route, batch, time())._replace(known=known)

    async def _decoded(self, batch: Batch, decoding: Decoding) -> Batch:
        pause = LEAST_PAUSE

        async def waits(why: str) -> None:
            nonlocal pause
            self.status.state, self.status.error = "waiting for the decoder", why
            log.warning("the decoder asks for another try: the source waits", extra={"connector": self.route.name, "reason": why})
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

        self._in_decoder = True  # which has an eye on its own time
        try:
            return await decoded(self.route, batch, decoding, waits)
        finally:
            self._in_decoder = False
            self._moved = asyncio.get_running_loop().time()

    async def _store(self, ready: Ready) -> None:
        """Until it is on disk: nothing is acknowledged before, and nothing behind it is stored first."""
        pause = LEAST_PAUSE
        while True:
            try:
                if ready.quarantine:  # first: the position behind it speaks for it, too
                    await self._check(ready)
                    await self.bus.publish(ready.quarantine)
                    ready = ready._replace(quarantine=[])
                # crash point: pump-quarantined
                events, last = following(self.route, ready)
                repeated = await self.bus.publish(events, last=last)
                break
            except EventTooLarge as error:  # than this server takes, which may be less than the bus is made for
                ready = smaller(self.route, ready, error.limit or error.size - 1, time())
            except (BusUnavailable, BusFull) as error:
                self.status.state, self.status.error = "waiting for the bus", str(error)
                log.warning("the bus does not take events: the source waits", extra={"connector": self.route.name, "reason": str(error)})
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
        # crash point: pump-stored
        for known, sequence in zip(ready.known.values(), last.values(), strict=True):
            known.sequence = sequence
        self._unstored -= 1
        if not self._unstored:
            self._settled.set()
        status = self.status
        status.state = "reading"
        status.read += ready.read
        status.stored += ready.stored
        status.filtered += ready.filtered
        status.quarantined += ready.quarantined
        status.repeated += repeated
        self._moved = asyncio.get_running_loop().time()

    async def _check(self, ready: Ready) -> None:
        """No batch of the bus spans two streams: what is quarantined is sent if nobody was faster, and not refused if somebody was."""
        for partition, known in ready.known.items():
            if (await self.position(partition)).sequence != known.sequence:
                raise Overtaken(f"another has stored {partition} since it was read: reading goes on behind that")

    async def _watch(self, source: Source) -> None:
        """Connected but stuck is an exit, not silence: two looks in a row at a source that has something and gives nothing."""
        suspected = False
        while True:
            await asyncio.sleep(STUCK_AFTER / 6)
            self.status.lag = await source.lag()
            idle = asyncio.get_running_loop().time() - self._moved
            stuck = bool(self.status.lag) and idle > STUCK_AFTER and self.status.state == "reading" and not self._in_decoder
            if stuck and suspected:
                raise Stuck(f"connector {self.route.name}: {self.status.lag} events wait at its source and none came for {idle:.0f} s")
            suspected = stuck


class _Acks:
    """Acknowledges behind the work, one at a time: an ack speaks for all before it, so only the latest is sent."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._latest: list[object] = []  # none or one
        self._news = asyncio.Event()
        self._busy = asyncio.Lock()

    def put(self, token: object) -> None:
        self._latest[:] = [token]
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            await self.last()

    async def last(self) -> None:
        """Sends what waits; returns when nothing is on its way."""
        async with self._busy:
            self._news.clear()
            if self._latest:
                token = self._latest.pop()
                # crash point: pump-before-ack
                await self._source.ack(token)


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()


def _uncancel() -> None:
    """A group that failed while it was being left has asked for our cancellation, and up to Python 3.12 does not take that back."""
    own = asyncio.current_task()
    while own and own.cancelling():
        own.uncancel()
