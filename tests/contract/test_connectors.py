"""What every connector does, with pump(): on a scripted source, and on the real systems."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import orjson
import pytest
import pytest_asyncio

from broker_faas.bus import Delivery
from broker_faas.connectors import pump as module
from broker_faas.connectors.batch import Refused, Route, records
from broker_faas.connectors.pump import Connector, Pump
from broker_faas.connectors.replay import Translator, again
from broker_faas.errors import BusUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import faas_headers
from tests.helpers import eventually
from tests.sources import Scripted, Store
from tests.systems.kafka import kafka_system
from tests.systems.nats import nats_system
from tests.systems.rabbitmq import rabbitmq_system

pytestmark = pytest.mark.timeout(240)  # a real system takes its time to start


class System(Protocol):
    """A system with one place to read from, empty at first."""

    replayable: bool
    """Whether what was acknowledged can be read again: then the bus knows how far it is stored."""

    async def produce(self, *data: bytes) -> None:
        """Foreign messages, in order, on disk there when this returns."""

    async def produce_native(self, event: CloudEvent) -> None:
        """As an SDK sends it there."""

    async def produce_poison(self) -> None:
        """Something that claims to be a CloudEvent and is none."""

    def connector(self) -> Connector: ...

    async def acked(self) -> int:
        """Messages that are acknowledged there: another reader would not get them."""

    async def cut(self) -> None:
        """Every connection to it is lost; it takes new ones at once."""


class ScriptedSystem:
    replayable = True

    def __init__(self) -> None:
        self.source = Scripted()

    async def produce(self, *data: bytes) -> None:
        begin = len(self.source.log)
        self.source.add(*(CloudEvent(type="t", source="/s", id=str(n), data=one) for n, one in enumerate(data, begin)))

    async def produce_native(self, event: CloudEvent) -> None:
        self.source.add(event)

    async def produce_poison(self) -> None:
        self.source.add(Refused(str(len(self.source.log)), "poison", {}, b"\xff"))

    def connector(self) -> Connector:
        return self.source

    async def acked(self) -> int:
        return self.source.acked

    async def cut(self) -> None:
        self.source.ends.add(len(self.source.log))
        self.source.news.set()


Make = Callable[[Any], AbstractAsyncContextManager[System]]


@asynccontextmanager
async def scripted_system(server: str) -> AsyncIterator[System]:
    yield ScriptedSystem()


SYSTEMS: dict[str, Make] = {"scripted": scripted_system, "kafka": kafka_system, "rabbitmq": rabbitmq_system, "nats": nats_system}
"""{fixture that is a server, or has its address: what makes a system there}."""


@pytest.fixture
def scripted() -> str:
    return "here"


@pytest.fixture
def nats(bus_url: str) -> str:
    """Another account is another NATS."""
    return bus_url


@pytest.fixture(params=SYSTEMS)
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[System]:
    """Not async: such a fixture cannot ask for another one by its name."""
    return SYSTEMS[request.param](request.getfixturevalue(request.param))


@pytest_asyncio.fixture
async def system(opening: AbstractAsyncContextManager[System]) -> AsyncIterator[System]:
    async with opening as system:
        yield system


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PAUSE", 0.01)


@asynccontextmanager
async def pumping(system: System, store: Store) -> AsyncIterator[Pump]:
    pump = Pump(system.connector(), Route(name="c", source="/p/c", to="t"), store, store.position)  # type: ignore[arg-type]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pump.run(stop))
        yield pump
        stop.set()
        async with asyncio.timeout(20):
            await task


def numbered(n: int, begin: int = 0) -> list[bytes]:
    return [b'{"n": %d}' % i for i in range(begin, begin + n)]


def numbers(store: Store) -> list[int]:
    return [orjson.loads(record.data)["n"] for record in store.on("ev.")]


def stored(store: Store, n: int) -> Callable[[], bool]:
    return lambda: len(store.on("ev.")) >= n


async def all_acked(system: System, n: int) -> None:
    async def reached() -> bool:
        return await system.acked() >= n

    await eventually(reached, 30)


async def test_what_is_there_and_what_comes_is_stored_in_order_and_acknowledged(system: System) -> None:
    store = Store()
    await system.produce(*numbered(500))
    async with pumping(system, store):
        await eventually(stored(store, 500), 30)
        await system.produce(*numbered(500, 500))
        await eventually(stored(store, 1000), 30)
        await all_acked(system, 1000)

    assert numbers(store) == list(range(1000))


async def test_nothing_is_acknowledged_while_the_bus_takes_nothing_and_the_source_waits(system: System) -> None:
    store = Store()
    store.gate.clear()
    await system.produce(*numbered(5000))
    async with pumping(system, store) as pump:
        await eventually(lambda: pump.status.state == "reading", 30)
        await asyncio.sleep(1.0)  # time in which a connector that does not wait would read on
        acked_meanwhile = await system.acked()
        store.gate.set()
        await eventually(stored(store, 5000), 60)

    assert acked_meanwhile == 0
    assert numbers(store) == list(range(5000))


async def test_what_the_bus_did_not_take_comes_before_what_is_behind_it(system: System) -> None:
    store = Store()
    store.fails = [None, BusUnavailable("away"), None, BusUnavailable("away"), BusUnavailable("away")]
    await system.produce(*numbered(3000))
    async with pumping(system, store):
        await eventually(stored(store, 3000), 60)

    assert numbers(store) == list(range(3000))


async def test_a_connector_that_dies_after_storing_and_before_acknowledging_loses_nothing(system: System) -> None:
    store = Store()
    await system.produce(*numbered(100))
    pump = Pump(system.connector(), Route(name="c", source="/p/c", to="t"), store, store.position)  # type: ignore[arg-type]
    task = asyncio.ensure_future(pump.run(asyncio.Event()))
    await eventually(lambda: store.on("ev."), 30)
    task.cancel()
    await asyncio.wait([task])
    async with pumping(system, store):
        await system.produce(*numbered(100, 100))
        await eventually(stored(store, 200), 60)

    assert numbers(store) == list(range(200))


async def test_a_source_that_was_cut_off_is_read_on_by_itself(system: System) -> None:
    store = Store()
    await system.produce(*numbered(50))
    async with pumping(system, store):
        await eventually(stored(store, 50), 30)
        await system.cut()
        await system.produce(*numbered(50, 50))
        await eventually(stored(store, 100), 60)

    assert numbers(store) == list(range(100))


async def test_a_native_event_is_kept_as_it_is(system: System) -> None:
    store = Store()
    event = CloudEvent(type="größe.geändert", source="/lager", id="1 2%", data=b"\x00\xffdata", datacontenttype="a/b", plant="Köln")
    await system.produce_native(event)
    async with pumping(system, store):
        await eventually(stored(store, 1), 30)
    [record] = store.on("ev.")

    assert CloudEvent.from_headers(record.headers, record.data) == event


async def test_a_foreign_message_has_the_same_id_whenever_it_is_read(system: System) -> None:
    await system.produce(*numbered(3))
    ids = []
    for _ in range(2):
        ids.append([item.id for _, item in (await system.connector().peek("/p/c", 3)).items if isinstance(item, CloudEvent)])

    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3


async def test_a_dry_run_acknowledges_nothing_and_hides_nothing_from_others(system: System) -> None:
    store = Store()
    await system.produce(*numbered(5))
    seen = (await system.connector().peek("/p/c", 3)).items
    acked = await system.acked()
    async with pumping(system, store):
        await eventually(stored(store, 5), 30)

    assert [orjson.loads(item.data or b"")["n"] for _, item in _events(seen)] == [0, 1, 2]
    assert acked == 0
    assert numbers(store) == list(range(5))


async def test_what_cannot_become_an_event_is_quarantined_and_the_rest_goes_on(system: System) -> None:
    store = Store()
    await system.produce(*numbered(1))
    await system.produce_poison()
    await system.produce(*numbered(1, 1))
    async with pumping(system, store):
        await eventually(stored(store, 2), 30)
        await all_acked(system, 3)
    [refused] = store.on("quarantine.c")

    assert numbers(store) == [0, 1]
    assert faas_headers(refused.headers)["reason"]


async def test_what_is_kept_of_a_message_in_quarantine_is_enough_to_translate_it_again(system: System) -> None:
    native = CloudEvent(type="größe", source="/lager", id="1 2%", data=b"\x00\xffdata", datacontenttype="a/b", plant="Köln")
    await system.produce(*numbered(1))
    await system.produce_native(native)
    await system.produce_poison()
    await system.produce(b"\xff\x00")
    connector = system.connector()
    read = await connector.peek("/p/c", 4)
    ready = records(Route(name="c", source="/p/c", to="no topic!"), read, 0.0)
    kept = [Delivery(one.subject, one.headers, one.data, n, 1, 0.0, "", "") for n, one in enumerate(ready.quarantine)]
    translated = again(connector, "/p/c", kept)

    assert len(read.items) == len(kept) == 4
    if isinstance(connector, Translator):
        assert translated.items == read.items
    else:  # of its events we know enough all the same
        assert _events(translated.items) == _events(read.items)


async def test_a_bus_restored_from_an_older_copy_gets_what_it_lacks(system: System) -> None:
    if not system.replayable:
        pytest.skip("this system cannot be read again")
    store = Store()
    await system.produce(*numbered(20))
    async with pumping(system, store):
        await eventually(stored(store, 20), 30)
        await all_acked(system, 20)
    positions = [n for n, record in enumerate(store.records) if record.subject.startswith("pos.")]
    store.records = store.records[: positions[0] + 1] if len(positions) > 1 else []
    async with pumping(system, store):
        await system.produce(*numbered(1, 20))
        await eventually(stored(store, 21), 30)

    assert numbers(store) == list(range(21))


def _events(seen: Sequence[tuple[str, CloudEvent | Refused]]) -> list[tuple[str, CloudEvent]]:
    return [(name, item) for name, item in seen if isinstance(item, CloudEvent)]
