"""What user programs publish with, on a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from broker_faas import CloudEvent, connect, connect_sync
from broker_faas.bus import Delivery, Queue
from broker_faas.client import find_bus, program_source
from broker_faas.errors import BusRefused, BusUnavailable, EventInvalid, EventTooLarge, TopicInvalid
from broker_faas.layout import MAX_DATA

from ..helpers import OwnNats

REPOSITORY = Path(__file__).parents[2]
EVERYTHING = Queue("test--reader", (">",), start="first")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL", raising=False)


async def stored(url: str, count: int, queue: Queue = EVERYTHING) -> list[Delivery]:
    """What lies on the bus, in its order; waits until it is `count`."""
    from broker_faas.buses.nats import NatsBus

    found: list[Delivery] = []
    async with asyncio.timeout(10), NatsBus(url).open() as bus, bus.subscribe(queue, 10_000) as subscription:
        async for batch in subscription:
            found += batch
            subscription.settle(batch)
            if len(found) >= count:
                return found
    raise AssertionError


def events(deliveries: list[Delivery]) -> list[CloudEvent]:
    return [CloudEvent.from_headers(delivery.headers, delivery.data) for delivery in deliveries]


async def test_publish_returns_the_event_that_is_stored(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        plain = await bus.publish("orders.created", {"id": 1})
        full = await bus.publish(
            "orders.created", "ü", key="42", id="x", source="/s", type="t", subject="j", time="2026-01-01T00:00:00Z",
            datacontenttype="text/plain", traceparent="00-1",
        )  # fmt: skip
        own = await bus.publish("orders.paid", CloudEvent(type="t", source="/s", id="own"), key="7")
        assert plain.timestamp is not None

        assert events(await stored(bus_url, 3)) == [plain, full, own]
        assert (plain.type, plain.source, plain.json(), len(plain.id)) == ("orders.created", program_source(), {"id": 1}, 32)
        assert datetime.now(UTC) - plain.timestamp < timedelta(seconds=10)
        assert (full.text(), full.partitionkey, full["traceparent"], own.partitionkey) == ("ü", "42", "00-1", "7")


async def test_publishes_at_once_are_all_stored_and_the_same_id_once(bus_url: str) -> None:
    async with connect(bus_url) as bus, asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(bus.publish("many.x", number, id=str(number % 100)))

    assert sorted(event.id for event in events(await stored(bus_url, 100))) == sorted(map(str, range(100)))


async def test_publish_many_keeps_the_order(bus_url: str) -> None:
    def numbered() -> list[CloudEvent]:
        return [CloudEvent(type="t", source="/s", id=str(number)) for number in range(2500)]

    async with connect(bus_url) as bus:
        count = await bus.publish_many(numbered(), topic="many.x")
        pairs = await bus.publish_many([("other.x", numbered()[0])])

    assert (count, pairs) == (2500, 1)
    assert [event.id for event in events(await stored(bus_url, 2501))] == [*map(str, range(2500)), "0"]


async def test_an_event_that_cannot_be_stored_leaves_the_chunks_before_it_stored(bus_url: str) -> None:
    numbered = [CloudEvent(type="t", source="/s", id=str(number)) for number in range(2500)]
    wrong = CloudEvent(type="t", source="/s", id="wrong", data=b"x" * (MAX_DATA + 1))
    async with connect(bus_url) as bus:
        with pytest.raises(EventTooLarge):
            await bus.publish_many([*numbered[:2100], wrong, *numbered[2100:]], topic="many.x")

    assert [event.id for event in events(await stored(bus_url, 2000))] == [*map(str, range(2000))]


async def test_publish_many_that_is_cancelled_ends_at_once_and_leaves_the_client_usable(bus_url: str) -> None:
    def endless() -> Iterator[CloudEvent]:
        for number in count():
            yield CloudEvent(type="t", source="/s", id=str(number))

    async with connect(bus_url) as bus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await bus.publish_many(endless(), topic="many.x")
        last = await bus.publish("other.x", 1)

    assert events(await stored(bus_url, 1, Queue("others", ("other.x",), start="first"))) == [last]


async def test_a_delayed_publish_comes_due(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        delayed = await bus.publish("orders.created", 1, delay=1)
        dated = await bus.publish("orders.created", 2, at=datetime.now(UTC) + timedelta(seconds=1))
    due = await stored(bus_url, 2, Queue("publish", ()))

    assert {event.id for event in events(due)} == {delayed.id, dated.id}
    assert {delivery.subject for delivery in due} == {"go.publish"}


async def test_what_can_never_be_stored_says_why(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        with pytest.raises(TopicInvalid, match="empty part"):
            await bus.publish("orders..created")
        with pytest.raises(EventInvalid):
            await bus.publish("orders.created", object())
        with pytest.raises(EventTooLarge):
            await bus.publish("orders.created", b"x" * (MAX_DATA + 1))
        with pytest.raises(ValueError, match="not both"):
            await bus.publish("orders.created", delay=1, at=1)
        with pytest.raises(ValueError, match="no time zone"):
            await bus.publish("orders.created", at=datetime(2030, 1, 1))
        with pytest.raises(TopicInvalid, match=r"event 0 \(1\) has no topic"):
            await bus.publish_many([CloudEvent(type="t", source="/s", id="1")])
        last = await bus.publish("orders.created", b"x" * MAX_DATA)

    assert events(await stored(bus_url, 1)) == [last]


async def test_a_server_that_comes_back_is_waited_for(own_nats: Callable[..., AsyncIterator[OwnNats]]) -> None:
    server = await own_nats()  # type: ignore[misc]
    async with connect(server.url, patience=20) as bus:
        before = await bus.publish("a.b", 1)
        await server.kill()
        async with asyncio.TaskGroup() as group:
            during = group.create_task(bus.publish("a.b", 2))
            await server.start()

        assert events(await stored(server.url, 2)) == [before, during.result()]


async def test_a_server_that_stays_away_is_unavailable(own_nats: Callable[..., AsyncIterator[OwnNats]]) -> None:
    server = await own_nats()  # type: ignore[misc]
    async with connect(server.url, patience=0.2) as bus:
        await server.kill()
        with pytest.raises(BusUnavailable):
            await bus.publish("a.b", 2)


# --- threads


async def test_many_threads_share_one_blocking_client(bus_url: str) -> None:
    def program() -> list[str]:
        with connect_sync(bus_url) as bus, ThreadPoolExecutor(8) as pool:
            single = [event.id for event in pool.map(lambda number: bus.publish("a.b", number), range(100))]
            assert bus.publish_many(("a.c", CloudEvent(type="t", source="/s", id=str(number))) for number in range(10)) == 10
            return single

    ids = await asyncio.to_thread(program)

    assert sorted(event.id for event in events(await stored(bus_url, 110))) == sorted([*ids, *map(str, range(10))])


async def test_blocking_errors_are_the_same_and_a_closed_client_says_so(bus_url: str) -> None:
    def program() -> None:
        with connect_sync(bus_url) as bus:
            with pytest.raises(TopicInvalid):
                bus.publish("a..b")
            with pytest.raises(EventTooLarge):
                bus.publish("a.b", b"x" * (MAX_DATA + 1))
        with pytest.raises(BusUnavailable, match="closed: publish inside"):
            bus.publish("a.b")

    before = threading.active_count()
    await asyncio.to_thread(program)

    assert threading.active_count() <= before + 1, "only to_thread's own"


async def test_publishes_under_way_finish_when_another_thread_leaves(bus_url: str) -> None:
    def program() -> int:
        with ThreadPoolExecutor(4) as pool:
            with connect_sync(bus_url) as bus:
                many = [CloudEvent(type="t", source="/s", id=str(number)) for number in range(800)]
                done = [pool.submit(bus.publish, "a.b", event) for event in many]
            return sum(one.exception() is None for one in done)

    finished = await asyncio.to_thread(program)

    assert len({event.id for event in events(await stored(bus_url, finished))}) == finished


def run_program(url: str, text: str, **options: object) -> subprocess.Popen[str]:
    environ = os.environ | {"NATS_URL": url, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-c", text], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


async def test_a_fork_is_told_to_open_its_own(bus_url: str) -> None:
    program = run_program(
        bus_url,
        """
import os, sys
from broker_faas import connect_sync
from broker_faas.errors import BusUnavailable

with connect_sync() as bus:
    bus.publish("a.b", 1)
    child = os.fork()
    if not child:
        try:
            bus.publish("a.b", 2)
        except BusUnavailable as error:
            print("child:", error, flush=True)
        with connect_sync() as own:
            own.publish("a.b", 3)
    else:
        assert os.waitpid(child, 0)[1] == 0
        bus.publish("a.b", 4)
""",
    )
    output, _ = await asyncio.to_thread(program.communicate, timeout=30)

    assert program.returncode == 0, output
    assert "cannot be used in its fork" in output
    assert sorted(event.json() for event in events(await stored(bus_url, 3))) == [1, 3, 4]


async def test_ctrl_c_leaves_at_once_and_cleanly(own_nats: Callable[..., AsyncIterator[OwnNats]]) -> None:
    server = await own_nats()  # type: ignore[misc]
    program = run_program(
        server.url,
        """
import sys
from broker_faas import connect_sync

try:
    with connect_sync(patience=20) as bus:
        bus.publish("a.b", 1)
        print("ready", flush=True)
        while True:
            bus.publish("a.b", 1)
except KeyboardInterrupt:
    print("interrupted")
""",
    )
    assert program.stdout is not None
    await asyncio.to_thread(program.stdout.readline)
    program.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(program.communicate, timeout=10)

    assert (program.returncode, output.strip()) == (0, "interrupted")


# --- finding the bus


async def test_nats_url_comes_first_then_the_folders_own_server(
    own_nats: Callable[..., AsyncIterator[OwnNats]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await own_nats(folder=tmp_path / ".faas")  # type: ignore[misc]
    (tmp_path / "faas.toml").touch()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    found = find_bus()
    monkeypatch.setenv("NATS_URL", "nats://elsewhere")

    assert (found, find_bus()) == (server.url, "nats://elsewhere")


async def test_without_any_bus_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BusUnavailable, match=r"NATS_URL is not set, and neither .* has a faas\.toml\. Start `faas dev`"):
        async with connect():
            pass
    (tmp_path / "faas.toml").touch()
    with pytest.raises(BusUnavailable, match="no `faas dev` is running in "), connect_sync():
        pass


async def test_a_server_that_refuses_us_is_an_error_of_ours(nats_server: object, bus_url: str) -> None:
    wrong = bus_url.replace("://", "://nobody:wrong@", 1) if "@" not in bus_url else "nats://nobody:wrong@" + bus_url.rpartition("@")[2]
    with pytest.raises((BusRefused, BusUnavailable)):
        async with connect(wrong):
            pass
    with pytest.raises((BusRefused, BusUnavailable)), connect_sync(wrong):
        pass
