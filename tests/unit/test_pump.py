"""pump(): nothing is acknowledged before it is stored, nothing is lost or reordered, whatever the bus and the source do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from broker_faas.bus import Position
from broker_faas.connectors import pump as module
from broker_faas.connectors.batch import Refused, Route
from broker_faas.connectors.pump import Pump
from broker_faas.errors import BusFull, BusRefused, BusUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import faas_headers
from broker_faas.service import Stuck
from broker_faas.where import prefix
from tests.helpers import eventually
from tests.sources import Held, Scripted, Store


def event(n: int, data: bytes = b"{}", type: str = "t") -> CloudEvent:
    return CloudEvent(type=type, source="/s", id=str(n), data=data)


@asynccontextmanager
async def running(source: Scripted, store: Store | Held, **route: object) -> AsyncIterator[Pump]:
    pump = Pump(source, Route(name="c", source="/p/c", **route), store, store.position)  # type: ignore[arg-type]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pump.run(stop))
        yield pump
        stop.set()
        await task


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PAUSE", 0.001)


async def test_what_a_source_has_is_stored_in_its_order_and_then_acknowledged() -> None:
    source, store = Scripted([event(n) for n in range(10)]), Store()
    async with running(source, store) as pump:
        await eventually(lambda: source.acked == 10)

    assert store.events == [str(n) for n in range(10)]
    assert {record.subject for record in store.on("ev.")} == {"ev.orders.-.-"}
    assert (pump.status.read, pump.status.stored, pump.status.state) == (10, 10, "ended")


async def test_nothing_is_acknowledged_before_it_is_stored_and_one_large_batch_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 2)
    source, store = Scripted([event(n) for n in range(100)]), Store()
    store.gate.clear()
    async with running(source, store):
        await eventually(lambda: source.reads == [0, 3])
        await asyncio.sleep(0.05)
        assert (source.acked, source.reads, store.records) == (0, [0, 3], [])
        store.gate.set()
        await eventually(lambda: source.acked == 100)


async def test_behind_a_few_events_nothing_is_read_before_they_are_stored() -> None:
    source, store = Scripted([event(n) for n in range(100)]), Store()
    store.gate.clear()
    async with running(source, store):
        await eventually(lambda: source.reads == [0])
        await asyncio.sleep(0.05)
        assert source.reads == [0]
        store.gate.set()
        await eventually(lambda: source.acked == 100)


@pytest.mark.parametrize("error", [BusUnavailable("away"), BusFull("full")])
async def test_a_bus_that_does_not_take_events_gets_the_same_ones_again_before_any_other(error: Exception) -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    store.fails = [None, error, None, error, error, error]
    async with running(source, store):
        await eventually(lambda: source.acked == 9)

    assert store.events == [str(n) for n in range(9)]
    assert source.opens == 1


async def test_a_source_that_goes_away_is_opened_again_and_what_was_stored_is_not_stored_twice() -> None:
    source, store = Scripted([event(n) for n in range(12)], ends={6}, acks_fail=2), Store()
    async with running(source, store) as pump:
        await eventually(lambda: source.acked == 12)

    assert store.events == [str(n) for n in range(12)]
    assert pump.status.repeated == 0
    assert source.opens > 1


async def test_a_bus_that_was_restored_from_an_older_copy_gets_what_it_has_not() -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    async with running(source, store):
        await eventually(lambda: source.acked == 9)
    store.records = store.records[:4]  # three events and their position
    async with running(source, store):
        await eventually(lambda: len(store.events) == 9)

    assert store.events == [str(n) for n in range(9)]


async def test_what_the_filter_drops_is_acknowledged_and_counted() -> None:
    source, store = Scripted([event(n, type="a" if n % 2 else "b") for n in range(10)]), Store()
    async with running(source, store, where=prefix(type="a"), to="x.y") as pump:
        await eventually(lambda: source.acked == 10)

    assert store.events == ["1", "3", "5", "7", "9"]
    assert {record.subject for record in store.on("ev.")} == {"ev.x.y.-.-"}
    assert (pump.status.read, pump.status.stored, pump.status.filtered) == (10, 5, 5)


async def test_what_cannot_become_an_event_is_quarantined_before_its_position_is_stored() -> None:
    source, store = Scripted([event(0), Refused("orders/0/1", "no UTF-8", {"k": "v"}, b"\xff\0"), event(2)]), Store()
    store.fails = [BusFull("no room"), BusFull("no room")]
    async with running(source, store) as pump:
        await eventually(lambda: source.acked == 3)
    [refused] = store.on("quarantine.c")

    assert [record.subject.split(".")[0] for record in store.records] == ["quarantine", "ev", "ev", "pos"]
    assert refused.data == b"\xff\0"
    assert faas_headers(refused.headers)["reason"] == "no UTF-8"
    assert faas_headers(refused.headers)["position"] == "orders/0/1"
    assert faas_headers(refused.headers)["headers"] == '{"k": "v"}'
    assert (pump.status.stored, pump.status.quarantined) == (2, 1)


async def test_an_event_that_no_topic_or_bus_takes_is_quarantined_and_the_others_are_stored() -> None:
    source, store = Scripted([event(0), event(1, b"x" * (2 << 20)), event(2)]), Store()
    async with running(source, store):
        await eventually(lambda: source.acked == 3)
    bad, other = Scripted([event(3)], name="no topic!"), Store()
    async with running(bad, other):
        await eventually(lambda: bad.acked == 1)
    [large], [nowhere] = store.on("quarantine"), other.on("quarantine")

    assert store.events == ["0", "2"]
    assert "exceeds the bus limit" in faas_headers(large.headers)["reason"]
    assert "Topics are dot-separated words" in faas_headers(nowhere.headers)["reason"]


async def test_what_is_too_large_for_this_server_is_quarantined_as_far_as_it_fits() -> None:
    source, store = Scripted([event(0), event(1, b"x" * 5000), event(2)]), Store()
    store.largest = 4000
    async with running(source, store) as pump:
        await eventually(lambda: source.acked == 3)

    assert store.events == ["0", "2"]
    assert [len(one.headers) + len(one.data) for one in store.on("quarantine")] == [4000]
    assert (pump.status.stored, pump.status.quarantined) == (2, 1)


async def test_a_refusal_of_the_bus_ends_it() -> None:
    source, store = Scripted([event(0)]), Store()
    store.fails = [BusRefused("no permission")]
    with pytest.raises(BusRefused, match="no permission"):
        await Pump(source, Route(name="c", source="/p/c"), store, store.position).run(asyncio.Event())  # type: ignore[arg-type]

    assert source.acked == 0


async def test_a_source_that_has_something_and_gives_nothing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_AFTER", 0.1)
    source, store = Scripted([event(0)], silent=True), Store()
    with pytest.raises(Stuck, match="connector c: 1 events wait at its source"):
        await Pump(source, Route(name="c", source="/p/c"), store, store.position).run(asyncio.Event())  # type: ignore[arg-type]


async def test_a_source_whose_broker_has_forgotten_it_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_AFTER", 0.1)
    source, store = Scripted([event(0)], forgotten=True), Store()
    async with running(source, store):
        await eventually(lambda: source.acked == 1)

    assert (store.events, source.opens) == (["0"], 2)


async def test_cancelled_while_it_publishes_it_lets_go() -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    store.gate.clear()
    pump = Pump(source, Route(name="c", source="/p/c"), store, store.position)  # type: ignore[arg-type]
    task = asyncio.ensure_future(pump.run(asyncio.Event()))
    await eventually(lambda: source.reads == [0])
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    assert source.acked == 0


# --- several instances of one connector -----------------------------------------------------------------------


async def test_who_was_overtaken_stores_nothing_and_goes_on_behind_what_others_have_stored() -> None:
    """One stands still with a batch in its hands, while another stores that and more."""
    source, store = Scripted([event(n) for n in range(9)]), Store()
    source.acked = 0
    held = Held(store)
    async with running(source, held) as pump:
        await eventually(lambda: held.waiting)
        async with running(Scripted([event(n) for n in range(9)], size=4), store):
            await eventually(lambda: len(store.events) == 9)
        store.forget()
        held.gate.set()
        await eventually(lambda: source.opens == 2)
        source.add(event(9))
        await eventually(lambda: len(store.events) == 10)

    assert store.events == [str(n) for n in range(10)]
    assert [record.data for record in store.on("pos.")] == [b"3", b"7", b"8", b"9"]
    assert "another" in pump.status.error


async def test_what_was_read_before_its_partition_was_given_to_another_is_not_stored_though_it_was_given_back() -> None:
    """The partition is asked for anew while the batch of before waits for the bus: what is known now is not what it follows."""
    source, store = Scripted([event(n) for n in range(3)]), Store()
    held = Held(store)
    held.fails = BusUnavailable("away")
    async with running(source, held) as pump:
        await eventually(lambda: held.waiting)
        async with running(Scripted([event(n) for n in range(3)], size=2), store):
            await eventually(lambda: len(store.events) == 3)
        store.forget()
        pump._settled.set()  # as if it were not waited for
        assert await pump._begin("0") == "2"
        held.gate.set()
        await eventually(lambda: source.opens == 2)

    assert store.events == ["0", "1", "2"]


async def test_how_far_a_partition_is_stored_is_asked_when_what_was_read_of_it_is_stored() -> None:
    source, store = Scripted([event(n) for n in range(3)]), Store()
    held = Held(store)
    async with running(source, held) as pump:
        await eventually(lambda: held.waiting)
        asking = asyncio.ensure_future(pump._begin("0"))
        await asyncio.sleep(0.01)
        assert not asking.done()
        held.gate.set()

        assert await asking == "2"


async def test_what_is_in_quarantine_is_not_put_there_again_by_one_that_was_overtaken() -> None:
    log: list[CloudEvent | Refused] = [event(0), Refused("orders/0/1", "no UTF-8", {}, b"\xff"), event(2)]
    source, store = Scripted([*log]), Store()
    asked, overtaken = asyncio.Event(), asyncio.Event()

    async def position(partition: str) -> Position:
        if source.reads:
            asked.set()
            await overtaken.wait()
        return await store.position(partition)

    pump = Pump(source, Route(name="c", source="/p/c"), store, position)  # type: ignore[arg-type]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pump.run(stop))
        await asked.wait()
        async with running(Scripted([*log]), store):
            await eventually(lambda: len(store.events) == 2)
        store.forget()
        overtaken.set()
        await eventually(lambda: source.opens == 2)
        stop.set()

    assert store.events == ["0", "2"]
    assert len(store.on("quarantine")) == 1


async def test_a_bus_that_is_restored_from_an_older_copy_under_a_connector_gets_what_it_has_not() -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    async with running(source, store):
        await eventually(lambda: source.acked == 9)
        store.records = store.records[:4]  # three events and their position
        source.add(event(9))
        await eventually(lambda: len(store.events) == 10)

    assert store.events == [str(n) for n in range(10)]


async def test_a_publish_whose_answer_was_lost_is_known_as_its_own() -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    store.lost = [BusUnavailable("no answer"), BusUnavailable("no answer")]
    async with running(source, store):
        await eventually(lambda: source.acked == 9)

    assert store.events == [str(n) for n in range(9)]
    assert source.opens == 1


async def test_after_an_answer_was_lost_for_longer_than_ids_are_known_it_is_read_how_far_it_came() -> None:
    source, store = Scripted([event(n) for n in range(9)]), Store()
    store.lost = [BusUnavailable("no answer")]
    store.forgets = True
    async with running(source, store):
        await eventually(lambda: source.acked == 9)

    assert store.events == [str(n) for n in range(9)]
    assert source.opens == 2
