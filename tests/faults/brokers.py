"""Other systems in a run: a real broker that a connector reads, started and kept running like the other processes; and the load through it.

The eight producers write to it: one event after the other, each until the broker has confirmed it, and then it counts as acknowledged.
Events of every other producer are CloudEvents, those between are records of another kind, whose data begin with the ledger's id. What a
write that was not confirmed has left behind nobody knows: it is tried again with the same id as another `copy`, and both may be there.

    drivers: foreign_kafka.py, foreign_rabbitmq.py
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..helpers import eventually
from .ledger import Ledger, Stored, digest
from .process import Process

if TYPE_CHECKING:
    from .run import Run

TOPIC = "load"
PRODUCERS, KEYS = 8, 16
POISON = 40  # behind so many events of a producer comes something that can be no event
COPY = "copy"  # the attribute that tells the writes of one event apart


class Written(NamedTuple):
    """One write. native: as a CloudEvent. poison: as one that is none."""

    id: str
    copy: int
    key: str
    data: bytes
    native: bool
    poison: bool = False


Write = Callable[[Written], Awaitable[None]]
"""Returns when the broker has confirmed it. Raises whatever went wrong; then the connection is given up for another."""


class Broker(Protocol):
    """One system. process: the broker, which system() keeps running. environ: what the connector's options name."""

    process: Process

    @property
    def environ(self) -> Mapping[str, str]: ...

    async def make(self) -> None:
        """Before its first start."""

    async def settle(self) -> None:
        """When it is up for the first time: makes what is read."""

    async def kill(self) -> int:
        """SIGKILL, of all its processes; its exit status. It is started again, when it may."""

    def writer(self) -> AbstractAsyncContextManager[Write]: ...

    async def unread(self) -> bool:
        """Whether it holds anything that the connector has not acknowledged."""

    async def holds(self) -> Counter[tuple[str, str]] | None:
        """How often it has each (id, position), see Stored, now that all is over. None: it forgets what was acknowledged."""


def broker(kind: str, place: Path, log: Path) -> Broker:
    """kind: of Scenario.broker. place: for its data. Nothing is started."""
    if kind == "kafka":
        from .foreign_kafka import Kafka

        return Kafka(place, log)
    from .foreign_rabbitmq import Rabbitmq

    return Rabbitmq(place, log, kind.partition("/")[2] or "quorum")


async def write(run: Run, producer: int, ledger: Ledger, stop: asyncio.Event, rng: random.Random) -> None:
    """As system._produce(), to the broker."""
    n = 0
    to = _Writer(run)
    try:
        while not stop.is_set():
            id, key = f"p{producer}-{n}", f"k{producer + PRODUCERS * (n % (KEYS // PRODUCERS))}"
            data = b"%b %b" % (id.encode(), rng.randbytes(rng.choice(run.scenario.sizes)))
            ledger.write("attempt", id, key, digest(data))
            if not await to.confirmed(Written(id, 0, key, data, native=producer % 2 == 0), stop):
                return  # attempted and never acknowledged
            ledger.write("ack", id, "-")
            n += 1
            run.published += 1
            run.latest = id
            if n % POISON == producer:
                poison = Written(id, 0, key, b"%b is poison" % id.encode(), native=True, poison=True)
                if await to.confirmed(poison, stop):
                    run.poisoned.add(poison.data)
            await asyncio.sleep(PRODUCERS / run.scenario.rate)  # who was held up does not hurry: what is behind is seen as it is
    finally:
        await to.close()


async def flows(run: Run) -> None:
    """Until functions have had what came through the connector."""
    functions = run.folder / "functions"
    await eventually(lambda: functions.exists() and functions.stat().st_size > 20_000, 90)


async def through(run: Run) -> None:
    """Until an event that is acknowledged from now on has been run."""
    functions = run.folder / "functions"
    at = functions.stat().st_size
    await run.acknowledged(1)
    wanted = f"\t{run.latest}\t".encode()

    async def there() -> bool:
        await asyncio.sleep(0.2)
        with open(functions, "rb") as file:
            file.seek(at)
            return wanted in file.read()

    await eventually(there, 180)  # behind a backlog, too


async def gone(run: Run, seconds: float = 0.0) -> None:
    """Killed, and not started again for so long. Healed when it is ready. No event runs again for that."""
    assert run.broker
    broker, process = run.broker, run.broker.process
    async with run.fault(f"{process.name} down" if seconds else f"kill {process.name}") as seen:
        process.wanted.clear()
        starts, status = process.starts, await broker.kill()
        seen(f"ended with {status}")
        await asyncio.sleep(seconds)
        process.wanted.set()
        await eventually(lambda: process.starts > starts and process.up.is_set(), 120)


async def gone_often(run: Run) -> None:
    """Killed and started again, and in the end gone for a minute. Each time what is acknowledged then must have come through."""
    for _ in range(run.times(4, short=1)):
        await run.pause(1, 4)
        await gone(run)
        await through(run)
    await gone(run, run.times(60, short=5))
    await through(run)


class _Writer:
    """One producer's connection, opened anew when something went wrong."""

    def __init__(self, run: Run) -> None:
        assert run.broker
        self._run, self._broker = run, run.broker
        self._write: Write | None = None
        self._open = AsyncExitStack()

    async def confirmed(self, written: Written, stop: asyncio.Event) -> bool:
        """False: the run is over."""
        while True:
            try:
                async with asyncio.timeout(15):
                    if self._write is None:
                        self._write = await self._open.enter_async_context(self._broker.writer())
                    await self._write(written)
                return True
            except Exception as error:  # a producer's library, and a broker that is killed
                self._run.refused[type(error).__name__] += 1
                written = written._replace(copy=written.copy + (self._write is not None))
                await self.close()
                if stop.is_set():
                    return False
                await asyncio.sleep(0.2)

    async def close(self) -> None:
        self._write = None
        await self._open.aclose()


def judge(run: Run, stored: list[Stored], quarantined: list[bytes], holds: Counter[tuple[str, str]] | None, acked: set[str]) -> None:
    """What only the source can tell: its own losses, copies that it holds, what was to be quarantined."""
    if holds is not None:
        ids = Counter(id for id, _ in holds.elements())
        if gone := sorted(acked - ids.keys()):
            run.problems.append(("source", f"the broker itself has lost what it had confirmed: {gone[:10]}"))
        if twice := sorted(place for place, n in holds.items() if n > 1):
            run.problems.append(("source", f"one write is at two positions of the broker: {twice[:10]}"))
        if strange := sorted({(one.id, one.position) for one in stored} - holds.keys()):
            run.problems.append(("source", f"the bus has what the source has not: {strange[:10]}"))
        run.duplicates += len(run.scenario.functions) * sum(n - 1 for n in ids.values())
        again = Counter(one.id for one in stored)
        run.notes.append(
            f"{sum(n - 1 for n in ids.values())} writes that were not confirmed are in the broker all the same, "
            f"{sum(n - 1 for n in again.values())} of them on the bus"
        )
    missing = run.poisoned - {*quarantined}
    if missing:
        run.problems.append(("quarantine", f"{len(missing)} of {len(run.poisoned)} are not there: {sorted(missing)[:5]}"))
    run.notes.append(f"{len(run.poisoned)} that could be no event were quarantined")
