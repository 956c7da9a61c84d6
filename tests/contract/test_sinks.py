"""What every sink does, with its outlet: on a scripted one, and on the real systems."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio

from broker_faas.buses.memory import Memory, MemoryBus
from broker_faas.connectors import sink as module
from broker_faas.connectors.sink import Outgoing, Outlet, SinkDriver
from broker_faas.errors import BusRefused
from broker_faas.event import CloudEvent
from broker_faas.layout import event_record, sink_queue
from broker_faas.retry import RetryPolicy
from tests.helpers import eventually
from tests.sinks import ScriptedSink
from tests.systems.http import http_sink_system
from tests.systems.kafka import kafka_system
from tests.systems.nats import nats_system
from tests.systems.rabbitmq import rabbitmq_system

pytestmark = pytest.mark.timeout(240)  # a real system takes its time to start

QUEUE = sink_queue("shop", "out")


class SinkSystem(Protocol):
    """A system that a sink can send to. keys: whether it has a key beside the event."""

    def sink(self) -> SinkDriver: ...

    async def target(self) -> str:
        """A place there of the test's own, empty."""

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        """(key, event) of all that is there, in its order, once there are n."""

    def away(self) -> None:
        """Nobody answers there, until back()."""

    def back(self) -> None: ...


class ScriptedSystem:
    def __init__(self) -> None:
        self._sink = ScriptedSink(most=1000)

    def sink(self) -> SinkDriver:
        return self._sink

    async def target(self) -> str:
        return "orders.done"

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        await eventually(lambda: len(self._sink.received) >= n, 30)
        return [(one.event.partitionkey, one.event) for one in self._sink.received if one.target == target]

    def away(self) -> None:
        self._sink.away = True

    def back(self) -> None:
        self._sink.away = False


Make = Callable[[Any], AbstractAsyncContextManager[SinkSystem]]


@asynccontextmanager
async def scripted_system(server: str) -> AsyncIterator[SinkSystem]:
    yield ScriptedSystem()


SYSTEMS: dict[str, Make] = {
    "scripted": scripted_system,
    "kafka": kafka_system,
    "rabbitmq": rabbitmq_system,
    "nats": nats_system,
    "http": http_sink_system,
}
"""{fixture that is a server, or has its address: what makes a system there}."""


@pytest.fixture
def scripted() -> str:
    return "here"


@pytest.fixture
def nats(bus_url: str) -> str:
    """Another account is another NATS."""
    return bus_url


@pytest.fixture
def http(tmp_path: Path) -> Path:
    return tmp_path / "http"


@pytest.fixture(params=SYSTEMS)
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[SinkSystem]:
    """Not async: such a fixture cannot ask for another one by its name."""
    return SYSTEMS[request.param](request.getfixturevalue(request.param))


@pytest_asyncio.fixture
async def system(opening: AbstractAsyncContextManager[SinkSystem]) -> AsyncIterator[SinkSystem]:
    async with opening as system:
        yield system


@pytest_asyncio.fixture
async def bus() -> AsyncIterator[Memory]:
    async with MemoryBus().open() as bus:
        yield bus


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PAUSE", 0.01)


@asynccontextmanager
async def leaving(system: SinkSystem, bus: Memory) -> AsyncIterator[Outlet]:
    outlet = Outlet("out", system.sink(), QUEUE, bus, RetryPolicy(min_backoff=0.1))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outlet.run(stop))
        yield outlet
        stop.set()
        async with asyncio.timeout(60):
            await task


def numbered(n: int, begin: int = 0, keys: int = 4) -> list[CloudEvent]:
    return [
        CloudEvent(type="t", source="/s", id=str(number), data={"n": number}, partitionkey=f"k{number % keys}")
        for number in range(begin, begin + n)
    ]


async def send(bus: Memory, target: str, events: list[CloudEvent]) -> None:
    """As a function's outputs are stored."""
    await bus.publish([event_record(f"out:{target}", event) for event in events])


async def settled(bus: Memory) -> bool:
    try:
        return (await bus.lag(QUEUE)).total == 0
    except BusRefused:  # the queue is not made yet
        return False


def by_key(seen: list[tuple[str | None, CloudEvent]]) -> dict[str | None, list[int]]:
    """Numbers of the events of each key in their order, without what came again."""
    found: dict[str | None, dict[int, None]] = {}
    for key, event in seen:
        found.setdefault(key, {})[int(event.id)] = None
    return {key: list(numbers) for key, numbers in found.items()}


async def test_what_functions_send_arrives_in_the_order_of_its_key_and_leaves_the_bus(system: SinkSystem, bus: Memory) -> None:
    target = await system.target()
    await send(bus, target, numbered(1500))
    async with leaving(system, bus) as outlet:
        seen = await system.received(target, 1500)
        await eventually(lambda: settled(bus))

    assert by_key(seen) == {f"k{key}": list(range(key, 1500, 4)) for key in range(4)}
    assert len(seen) == outlet.status.delivered == 1500


async def test_an_event_arrives_as_it_was_sent(system: SinkSystem, bus: Memory) -> None:
    target = await system.target()
    events = [
        CloudEvent(
            type="größe.geändert",
            source="/lager/%C3%BC",
            id="1 2%",
            data=bytes(range(256)),
            datacontenttype="application/octet-stream",
            subject="Köln; a=b",
            plant='a "b" c',
            partitionkey="schlüssel",
        ),
        CloudEvent(type="t", source="/s", id="empty", data=b"", partitionkey="schlüssel"),
        CloudEvent(type="t", source="/s", id="json", data={"ü": [1, None, "€"]}, partitionkey="schlüssel"),
        CloudEvent(type="t", source="/s", id="large", data=b"x" * 900_000, partitionkey="schlüssel"),
    ]
    await send(bus, target, events)
    async with leaving(system, bus):
        seen = await system.received(target, len(events))

    assert [event.id for _, event in seen] == [event.id for event in events]
    for sent, (key, event) in zip(events, seen, strict=True):
        assert key == "schlüssel"
        assert (dict(event.attributes), event.data or b"") == (dict(sent.attributes), sent.data or b"")


async def test_a_system_that_is_away_gets_everything_when_it_is_back_and_nothing_is_charged(system: SinkSystem, bus: Memory) -> None:
    target = await system.target()
    await send(bus, target, numbered(100))
    async with leaving(system, bus) as outlet:
        await system.received(target, 100)
        system.away()
        await send(bus, target, numbered(100, 100))
        await eventually(lambda: outlet.status.state == "connecting", 60)
        waiting = (await bus.lag(QUEUE)).total
        system.back()
        seen = await system.received(target, 200)
        await eventually(lambda: settled(bus), 30)

    assert waiting >= 100
    assert by_key(seen) == {f"k{key}": list(range(key, 200, 4)) for key in range(4)}
    assert outlet.status.dead == outlet.status.retried == 0


async def test_a_sink_that_is_stopped_while_its_system_is_away_ends_and_its_events_wait(system: SinkSystem, bus: Memory) -> None:
    target = await system.target()
    system.away()
    await send(bus, target, numbered(10))
    async with leaving(system, bus) as outlet:
        await eventually(lambda: outlet.status.held == 10)
        await eventually(lambda: outlet.status.error, 60)
    waiting = (await bus.lag(QUEUE)).total
    system.back()
    async with leaving(system, bus):
        seen = await system.received(target, 10)

    assert waiting == 10
    assert sorted(int(event.id) for _, event in seen) == list(range(10))


async def test_a_sink_that_is_killed_after_a_confirmation_sends_again_and_loses_nothing(system: SinkSystem, bus: Memory) -> None:
    target = await system.target()
    await send(bus, target, numbered(50))
    outlet = Outlet("out", system.sink(), QUEUE, bus, RetryPolicy())
    task = asyncio.ensure_future(outlet.run(asyncio.Event()))
    await eventually(lambda: outlet.status.held or outlet.status.delivered, 30)
    task.cancel()
    await asyncio.wait([task])
    async with leaving(system, bus):
        await eventually(lambda: settled(bus), 60)
        seen = await system.received(target, 50)

    assert {int(event.id) for _, event in seen} == set(range(50))


async def test_leaving_a_sink_takes_its_connections_along(system: SinkSystem) -> None:
    target = await system.target()
    before = asyncio.all_tasks()
    async with system.sink().open() as sink:
        said = await sink.send([Outgoing(target, event) for event in numbered(3)])
    await eventually(lambda: asyncio.all_tasks() == before)  # transports close in the next turns of the loop

    assert list(said) == [None, None, None]
