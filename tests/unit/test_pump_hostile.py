"""pump() against what goes wrong in the same moment: parts of a publish, cancellations, sources that end, limits of servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from broker_faas.bus import Position, Record
from broker_faas.connectors import pump as module
from broker_faas.connectors.batch import Refused, Route
from broker_faas.connectors.pump import Pump
from broker_faas.errors import BusFull, BusRefused, BusUnavailable, EventTooLarge, SourceUnavailable
from tests.helpers import eventually
from tests.sources import Scripted, Store
from tests.unit.test_pump import event, running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PAUSE", 0.001)


class PartlyFull(Store):
    """As bus.Bus says of BusFull and BusRefused: of several that were published together, others may be stored, but no position."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        if self.error and any(len(record.data) > 1000 for record in records):
            stored = [record for record in records if len(record.data) <= 1000]
            await super().publish([record for record in stored if not record.subject.startswith("pos.")])
            raise self.error
        return await super().publish(records, last=last)


@pytest.mark.parametrize("error", [BusFull("no room for this one"), BusRefused("no permission for its topic")])
async def test_a_position_is_never_stored_before_all_that_it_speaks_for(error: Exception) -> None:
    """The connector ends while the bus refuses one event, and begins again when it takes it."""
    source, store = Scripted([event(0), event(1, b"x" * 2000), event(2)]), PartlyFull(error)
    pump = Pump(source, Route(name="c", source="/p/c"), store, store.position)  # type: ignore[arg-type]
    task = asyncio.ensure_future(pump.run(asyncio.Event()))
    await eventually(lambda: store.events)
    task.cancel()
    with suppress(asyncio.CancelledError, BusRefused):
        await task
    store.error = None
    source.add(event(3))
    async with running(source, store):
        await eventually(lambda: source.acked == 4)

    assert sorted(store.events) == ["0", "1", "2", "3"]


class StreamLimit(Store):
    """A stream with a max_msg_size of its own: JetStream says 10054, and not how much it takes."""

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        if large := [record for record in records if len(record.data) > 4000]:
            raise EventTooLarge(len(large[0].data), 0, "record")  # as buses/records.py: refusal() makes it
        return await super().publish(records, last=last)


async def test_one_event_that_is_too_large_for_the_stream_takes_no_other_with_it() -> None:
    source, store = Scripted([event(0), event(1, b"x" * 5000), event(2)]), StreamLimit()
    async with running(source, store):
        await eventually(lambda: source.acked == 3)

    assert store.events == ["0", "2"]
    assert [one.data[:1] for one in store.on("quarantine")] == [b"x"]


class Loop(Store):
    """A bus that gives up on a caller that never does."""

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        self.tries = getattr(self, "tries", 0) + 1
        if self.tries > 1000:
            raise BusRefused("a thousand tries")
        return await super().publish(records, last=last)


async def test_what_is_quarantined_and_too_large_for_this_server_is_cut() -> None:
    source, store = Scripted([event(0), Refused("o/1", "no event", {}, b"x" * 5000), event(2)]), Loop()
    store.largest = 4000
    async with running(source, store):
        await eventually(lambda: source.acked == 3)

    assert store.events == ["0", "2"]


class Ending(Scripted):
    @asynccontextmanager
    async def open(self, source: str, positions: object) -> AsyncIterator[Ending]:  # type: ignore[override]
        self.opens += 1
        if self.opens > 1000:
            raise BusRefused("opened a thousand times")
        yield self

    async def __aiter__(self) -> AsyncIterator[object]:
        await asyncio.sleep(0)
        if self.log:
            yield self.log

    async def lag(self) -> int | None:
        return None


async def test_a_source_whose_batches_end_is_not_opened_without_a_pause() -> None:
    source, store = Ending(), Store()
    stop = asyncio.Event()
    task = asyncio.ensure_future(Pump(source, Route(name="c", source="/p/c"), store, store.position).run(stop))  # type: ignore[arg-type]
    await asyncio.sleep(0.2)
    stop.set()
    await task

    assert source.opens < 100


class SlowAcks(Scripted):
    """Acknowledges as Kafka does: after a round trip."""

    began: bool = False

    @asynccontextmanager
    async def open(self, source: str, positions: object) -> AsyncIterator[object]:  # type: ignore[override]
        async with super().open(source, positions) as session:  # type: ignore[arg-type]
            acknowledge = session.ack

            async def slow(token: object) -> None:
                self.began = True
                await asyncio.sleep(0.05)
                await acknowledge(token)

            session.ack = slow  # type: ignore[method-assign]
            yield session


async def test_stopped_while_it_acknowledges_it_finishes_that() -> None:
    source, store = SlowAcks([event(n) for n in range(3)]), Store()
    async with running(source, store):
        await eventually(lambda: source.began)

    assert source.acked == 3


async def test_a_bus_that_is_away_while_the_source_is_opened_is_waited_for() -> None:
    source, store = Scripted([event(0)]), Store()
    away = [BusUnavailable("away")]

    async def position(partition: str) -> Position:
        if away:
            raise away.pop()
        return await store.position(partition)

    stop = asyncio.Event()
    pump = Pump(source, Route(name="c", source="/p/c"), store, position)  # type: ignore[arg-type]
    task = asyncio.ensure_future(pump.run(stop))
    await eventually(lambda: task.done() or source.acked == 1)
    stop.set()
    await task

    assert store.events == ["0"]


class Fragile(Scripted):
    """A client that reports a cancelled request as a failed one."""

    @asynccontextmanager
    async def open(self, source: str, positions: object) -> AsyncIterator[object]:  # type: ignore[override]
        async with super().open(source, positions) as session:  # type: ignore[arg-type]

            async def ack(token: object) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    raise SourceUnavailable("cut off") from None

            session.ack = ack  # type: ignore[method-assign]
            yield session


async def test_a_cancellation_is_obeyed_whatever_fails_meanwhile() -> None:
    source, store = Fragile([event(0)]), Store()
    task = asyncio.ensure_future(Pump(source, Route(name="c", source="/p/c"), store, store.position).run(asyncio.Event()))  # type: ignore[arg-type]
    await eventually(lambda: store.events)
    await asyncio.sleep(0.01)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1)
    task.cancel()
    await asyncio.wait([task])

    assert done


async def test_what_is_quarantined_already_is_not_quarantined_again_while_the_bus_is_full() -> None:
    source, store = Scripted([Refused("o/0", "no event", {}, b"?"), event(1)]), Store()
    store.fails = [None, BusFull("full"), None, BusFull("full"), None, BusFull("full")]
    times: list[str] = []
    publish = store.publish

    async def counted(records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        times.extend(record.msg_id for record in records if record.subject.startswith("quarantine"))
        return await publish(records, output=output, last=last)

    store.publish = counted  # type: ignore[method-assign]
    async with running(source, store):
        await eventually(lambda: source.acked == 2)

    assert len(times) == 1


async def test_headers_that_are_no_clean_text_are_quarantined_all_the_same() -> None:
    source, store = Scripted([Refused("o/0", "no event", {"k": b"\xff".decode("utf-8", "surrogateescape")}, b"?"), event(1)]), Store()
    async with running(source, store):
        await eventually(lambda: source.acked == 2)
