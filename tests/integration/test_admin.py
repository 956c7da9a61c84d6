"""What operators' commands do on a real server: queues made, changed, renamed, deleted; looking without touching."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from broker_faas import layout
from broker_faas.bus import Delivery, Lag, Queue
from broker_faas.buses import admin, consumers, store
from broker_faas.buses.changes import plan
from broker_faas.buses.connection import Connection
from broker_faas.buses.listing import events, hears, lags, list_queues, peek
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.errors import BusRefused, ConfigError
from broker_faas.event import CloudEvent
from broker_faas.layout import DEAD, EVENTS, RETRIES, dead_record, event_record, event_subject, retry_record
from tests.helpers import eventually
from tests.integration.pulls import Pull, ids, pulling

F = Queue("p--f", ("a.b", "c.*"))
ORDERED = Queue("p--o", ("a.b",), 16)


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[JetStreamBus]:
    async with NatsBus(bus_url, max_bytes=64 << 20, dead_bytes=8 << 20).open() as bus:
        yield bus


@pytest.fixture
def connection(bus: JetStreamBus) -> Connection:
    return bus.connection


@pytest_asyncio.fixture
async def pull(bus_url: str) -> AsyncIterator[Pull]:
    async with pulling(bus_url) as pull:
        yield pull


def event(n: int, topic: str = "a.b", key: str | None = None) -> CloudEvent:
    extensions: dict[str, Any] = {"partitionkey": key} if key else {}
    return CloudEvent(type="t", source=f"/{topic}", id=str(n), data=b"x" * 100, **extensions)


async def publish(bus: JetStreamBus, topic: str, *numbers: int, key: str | None = None) -> None:
    await bus.publish([event_record(topic, event(n, topic, key)) for n in numbers])


async def settle_down(bus: JetStreamBus, name: str, total: int) -> None:
    """The server counts what waits a moment after it has stored it."""

    async def counted() -> bool:
        return (await lags(bus))[name].total == total

    await eventually(counted)


async def names(bus: JetStreamBus, stream: str = EVENTS) -> set[str]:
    return {one["name"] for one in await consumers.listing(bus, stream)}


# --- streams ---


async def test_streams_as_they_should_be_differ_in_nothing(bus: JetStreamBus) -> None:
    assert await admin.differences(bus, layout.streams(max_bytes=64 << 20, dead_bytes=8 << 20)) == []


async def test_each_option_of_a_stream_that_differs_is_named(bus: JetStreamBus) -> None:
    found = await admin.differences(bus, layout.streams(max_bytes=1 << 30, dead_bytes=8 << 20))

    assert [str(one) for one in found] == [f"stream events has max_bytes = {64 << 20}, not {1 << 30}"]


# --- ensure_queue ---


@pytest.mark.parametrize("queue", [F, ORDERED, Queue("p--fine", ("a.b",), 256)], ids=["plain", "16", "256"])
async def test_making_a_queue_twice_makes_it_once(bus: JetStreamBus, queue: Queue) -> None:
    await admin.ensure_queue(bus, queue)
    before = await consumers.listing(bus, EVENTS)
    await admin.ensure_queue(bus, queue)

    assert [(one["name"], one["config"]) for one in before] == [
        (one["name"], one["config"]) for one in await consumers.listing(bus, EVENTS)
    ]
    assert {one["name"] for one in before} == {config["durable_name"] for stream, config in layout.consumers(queue) if stream == EVENTS}


async def test_two_workers_may_make_a_queue_at_once(bus: JetStreamBus) -> None:
    await asyncio.gather(*(admin.ensure_queue(bus, ORDERED) for _ in range(4)))

    assert len(await names(bus)) == 17


async def test_a_queue_that_was_made_in_part_begins_where_its_first_part_did(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, ORDERED)
    key = next(str(n) for n in range(100) if event_subject("a.b", str(n)).split(".")[3] == "7")
    await consumers.remove(bus, EVENTS, "p--o--7")
    await publish(bus, "a.b", 1, key=key)
    await admin.ensure_queue(bus, ORDERED)

    assert ids(await pull("p--o--7", 1)) == [1]


async def test_a_topic_may_be_added_while_events_wait(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await publish(bus, "a.b", 1)
    await admin.ensure_queue(bus, Queue("p--f", ("a.b", "c.*", "new")))
    await publish(bus, "new", 2)

    assert ids(await pull("p--f", 2)) == [1, 2]
    assert await hears(bus, "new") == ["p--f"]


async def test_a_topic_is_not_taken_away_while_events_wait(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await publish(bus, "a.b", 1)
    with pytest.raises(ConfigError, match=r"p--f has 1 events waiting .* its topics were a.b, c.\* and are now c.\*"):
        await admin.ensure_queue(bus, Queue("p--f", ("c.*",)))
    await pull("p--f", 1)
    await admin.ensure_queue(bus, Queue("p--f", ("c.*",)))

    assert await hears(bus, "a.b") == []


async def test_a_wider_pattern_loses_nothing(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await publish(bus, "c.x", 1)
    await admin.ensure_queue(bus, Queue("p--f", ("a.b", "c.>")))

    assert ids(await pull("p--f", 1)) == [1]


def partition_of(queue: Queue, key: str) -> str:
    """The durable that gets the events of a key."""
    digits = event_subject("a.b", key).split(".")[-2:]
    return {0: queue.name, 16: f"{queue.name}--{digits[0]}", 256: f"{queue.name}--{digits[0]}{digits[1]}"}[queue.partitions]


@pytest.mark.parametrize(("before", "after"), [(0, 16), (16, 0), (16, 256)])
async def test_plain_and_ordered_switch_only_when_drained(bus: JetStreamBus, pull: Pull, before: int, after: int) -> None:
    old, new = Queue("p--q", ("a.b",), before), Queue("p--q", ("a.b",), after)
    await admin.ensure_queue(bus, old)
    await publish(bus, "a.b", 1, key="k")
    with pytest.raises(ConfigError, match=r"with 1 events waiting.*Drain it first"):
        await admin.ensure_queue(bus, new)
    await pull(partition_of(old, "k"), 1)
    await admin.ensure_queue(bus, new)
    await publish(bus, "a.b", 2, key="k")

    assert await names(bus) == {config["durable_name"] for stream, config in layout.consumers(new) if stream == EVENTS}
    assert ids(await pull(partition_of(new, "k"), 1)) == [2]


async def test_a_switch_that_was_killed_half_way_is_finished(bus: JetStreamBus, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Queue("p--q", ("a.b",)), Queue("p--q", ("a.b",), 16)
    await admin.ensure_queue(bus, old)
    with monkeypatch.context() as patch:
        patch.setattr(consumers, "remove", _killed)
        with pytest.raises(asyncio.CancelledError):
            await admin.ensure_queue(bus, new)
    await publish(bus, "a.b", 1)
    await admin.ensure_queue(bus, new)

    assert "p--q" not in await names(bus)
    assert ids(await pull("p--q--unkeyed", 1)) == [1]


async def _killed(*_: object) -> None:
    raise asyncio.CancelledError


# --- rename ---


async def test_a_renamed_queue_goes_on_where_it_stood(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",)))
    await publish(bus, "a.b", *range(10))
    await pull("p--old", 4)

    assert await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))
    assert ids(await pull("p--new", 6)) == [4, 5, 6, 7, 8, 9]
    assert (await names(bus), await names(bus, RETRIES)) == ({"p--new"}, {"p--new"})
    assert not await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))


async def test_an_event_in_flight_while_its_queue_is_renamed_comes_again(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",)))
    await publish(bus, "a.b", 1, 2)
    await pull("p--old", 1, settle=False)
    await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))

    assert ids(await pull("p--new", 2)) == [1, 2]


async def test_an_idle_queue_does_not_hear_history_after_a_rename(bus: JetStreamBus) -> None:
    """Its floor stands at an old sequence, and the new topics would match what came since."""
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",)))
    await publish(bus, "busy", *range(10))
    await admin.rename(bus, "p--old", Queue("p--new", ("a.b", "busy")))
    await publish(bus, "busy", 10)

    await settle_down(bus, "p--new", 1)


async def test_an_ordered_queue_is_renamed_partition_by_partition(bus: JetStreamBus) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",), 16))
    for n in range(20):
        await publish(bus, "a.b", n, key=str(n))
    await settle_down(bus, "p--old", 20)
    await admin.rename(bus, "p--old", Queue("p--new", ("a.b",), 16))

    row = (await list_queues(bus, "p"))[0]
    assert (row.name, row.lag, row.former) == ("p--new", Lag(20, 0, 0), ("p--old",))


async def test_retries_and_dead_letters_of_the_old_name_are_served_under_the_new_one(bus: JetStreamBus, pull: Pull) -> None:
    old, new, newest = (Queue(f"p--{name}", ("a.b",)) for name in ("old", "new", "newest"))
    await admin.ensure_queue(bus, old)
    await publish(bus, "a.b", 1)
    (delivery,) = await pull("p--old", 1)
    await bus.publish([retry_record(old, delivery, 1, time.time() + 1.0), retry_record(old, delivery, 2, time.time() + 3600)], output=True)
    await bus.publish([dead_record(old, delivery, reason="r", detail="", attempts=1, now=0.0, version="v")], output=True)
    await admin.rename(bus, "p--old", new)
    await admin.ensure_queue(bus, new)  # what a worker does; it does not stop hearing the old name
    await admin.rename(bus, "p--new", newest)
    await settle_down(bus, "p--newest", 2)
    row = (await list_queues(bus, "p"))[0]

    assert (row.name, row.lag.total, row.dead, row.former) == ("p--newest", 2, 1, ("p--new", "p--old"))
    assert ids(await pull("p--newest", 1, stream=RETRIES)) == [1]
    with pytest.raises(ConfigError, match="p--old was renamed to p--newest, which still has 1 retries to serve and 1 dead letters"):
        await admin.ensure_queue(bus, old)


async def test_an_old_name_may_be_used_again_once_nothing_is_left_of_it(bus: JetStreamBus) -> None:
    old, new = Queue("p--old", ("a.b",), 16), Queue("p--new", ("a.b",), 16)
    await admin.ensure_queue(bus, old)
    await admin.rename(bus, "p--old", new)
    await admin.ensure_queue(bus, old)

    assert [(row.name, row.former) for row in await list_queues(bus)] == [("p--new", ()), ("p--old", ())]


async def test_a_rename_that_was_killed_half_way_is_finished(bus: JetStreamBus, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",)))
    await publish(bus, "a.b", 1)
    with monkeypatch.context() as patch:
        patch.setattr(consumers, "remove", _killed)
        with pytest.raises(asyncio.CancelledError):
            await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))
    await publish(bus, "a.b", 2)
    await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))

    assert await names(bus) == {"p--new"}
    assert ids(await pull("p--new", 2)) == [1, 2]


async def test_a_rename_of_an_ordered_queue_that_was_killed_while_deleting_is_finished(
    bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",), 16))
    for n in range(20):
        await publish(bus, "a.b", n, key=str(n))
    remove, removed = consumers.remove, 0

    async def killed_at_the_fifth(bus: store.Api, stream: str, name: str) -> None:
        nonlocal removed
        removed += 1
        await (remove(bus, stream, name) if removed < 5 else _killed())

    with monkeypatch.context() as patch:
        patch.setattr(consumers, "remove", killed_at_the_fifth)
        with pytest.raises(asyncio.CancelledError):
            await admin.rename(bus, "p--old", Queue("p--new", ("a.b",), 16))
    await admin.rename(bus, "p--old", Queue("p--new", ("a.b",), 16))

    await settle_down(bus, "p--new", 20)


async def test_a_queue_may_get_its_old_name_back(bus: JetStreamBus, pull: Pull) -> None:
    one, two = Queue("p--one", ("a.b",)), Queue("p--two", ("a.b",))
    await admin.ensure_queue(bus, one)
    await publish(bus, "a.b", 1)
    await admin.rename(bus, "p--one", two)
    await admin.rename(bus, "p--two", one)

    assert [(row.name, row.former) for row in await list_queues(bus)] == [("p--one", ("p--two",))]
    assert ids(await pull("p--one", 1)) == [1]


async def test_a_rename_does_not_swallow_a_queue_that_exists_beside_it(bus: JetStreamBus) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b",)))
    await publish(bus, "a.b", 1)
    await admin.ensure_queue(bus, Queue("p--new", ("a.b",)))

    with pytest.raises(ConfigError, match="both exist, and p--old has 1 events left"):
        await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))


async def test_a_rename_that_drops_a_topic_or_switches_kind_waits_for_the_drain(bus: JetStreamBus) -> None:
    await admin.ensure_queue(bus, Queue("p--old", ("a.b", "c")))
    await publish(bus, "c", 1)
    with pytest.raises(ConfigError, match="would not hear all of them"):
        await admin.rename(bus, "p--old", Queue("p--new", ("a.b",)))
    with pytest.raises(ConfigError, match="switches between plain and ordered, with 1 events waiting"):
        await admin.rename(bus, "p--old", Queue("p--new", ("a.b", "c"), 16))

    assert await names(bus) == {"p--old"}


# --- list, delete, plan ---


async def test_a_row_says_how_a_queue_stands(bus: JetStreamBus, pull: Pull) -> None:
    began = time.time()
    await admin.ensure_queue(bus, F)
    await admin.ensure_queue(bus, Queue("other--g", ("a.b",)))
    await publish(bus, "a.b", *range(5))
    [first, second] = await pull("p--f", 2, settle=False)
    await bus.publish([retry_record(F, first, 1, time.time() + 3600)], output=True)
    await bus.publish([dead_record(F, second, reason="r", detail="", attempts=1, now=0.0, version="v")], output=True)

    await settle_down(bus, "p--f", 6)
    await settle_down(bus, "other--g", 5)
    [row] = await list_queues(bus, "p")
    size = (await store.info(bus, EVENTS))["state"]["bytes"]

    assert (row.name, row.topics, row.partitions, row.lag, row.dead) == ("p--f", ("a.b", "c.*"), 0, Lag(3, 2, 1), 1)
    assert row.held == size
    assert began - 1 < row.since <= (row.active or 0) <= time.time() + 1
    assert await lags(bus) == {"other--g": Lag(5, 0, 0), "p--f": Lag(3, 2, 1)}


async def test_more_consumers_than_a_page_are_all_listed(bus: JetStreamBus) -> None:
    await admin.ensure_queue(bus, Queue("p--a", ("a",), 256))
    await admin.ensure_queue(bus, Queue("p--b", ("b",), 256))
    await admin.ensure_queue(bus, Queue("p--c", ("c",)))

    assert len(await names(bus)) == 257 + 257 + 1


async def test_deleting_a_queue_says_what_that_discards_and_keeps_dead_letters(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await publish(bus, "a.b", *range(5))
    [first] = await pull("p--f", 1, settle=False)
    await bus.publish([retry_record(F, first, 1, time.time() + 3600)], output=True)
    await bus.publish([dead_record(F, first, reason="r", detail="", attempts=1, now=0.0, version="v")], output=True)

    await settle_down(bus, "p--f", 6)

    assert await admin.delete_queue(bus, "p--f") == Lag(4, 1, 1)
    assert await list_queues(bus) == []
    assert await store.subjects(bus, RETRIES, ">") == {}
    assert await store.subjects(bus, DEAD, ">") == {"dead.p--f": 1}
    assert await admin.delete_queue(bus, "p--f") == Lag(0, 0, 0)


async def test_a_plan_is_made_from_what_is_there(bus: JetStreamBus) -> None:
    for queue in (F, Queue("p--gone", ("a.b",)), Queue("p--old", ("x",))):
        await admin.ensure_queue(bus, queue)
    await publish(bus, "a.b", 1)
    await settle_down(bus, "p--f", 1)
    code = [Queue("p--f", ("c.*",)), Queue("p--fresh", ("x",)), Queue("p--new", ("x",))]

    changes = plan(code, await list_queues(bus, "p"), {"p--new": "p--old"})

    assert [(one.kind, one.queue, one.refused) for one in changes] == [
        ("topics", "p--f", True),
        ("new", "p--fresh", False),
        ("renamed", "p--new", False),
        ("gone", "p--gone", False),
    ]


# --- looking ---


async def test_a_topic_reaches_the_queues_that_listen_to_it(bus: JetStreamBus) -> None:
    for queue in (F, ORDERED, Queue("p--all", (">",))):
        await admin.ensure_queue(bus, queue)

    assert await hears(bus, "a.b") == ["p--all", "p--f", "p--o"]
    assert await hears(bus, "c.d") == ["p--all", "p--f"]
    assert await hears(bus, "d") == ["p--all"]


async def test_peeking_shows_what_comes_next_and_consumes_nothing(bus: JetStreamBus, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    for n in range(6):
        await publish(bus, "a.b" if n % 2 else "c.x", n)
    await publish(bus, "unheard", 99)
    await pull("p--f", 1)
    await pull("p--f", 1, settle=False)

    seen = await peek(bus, "p--f", 4)

    assert ids([one.delivery for one in seen]) == [1, 2, 3, 4]
    assert [one.delivered for one in seen] == [True, False, False, False]
    assert (await lags(bus))["p--f"] == Lag(4, 1, 0)


async def test_peeking_at_an_ordered_queue_merges_its_partitions(bus: JetStreamBus) -> None:
    await admin.ensure_queue(bus, ORDERED)
    for n in range(12):
        await publish(bus, "a.b", n, key=str(n))

    assert ids([one.delivery for one in await peek(bus, "p--o", 10)]) == list(range(10))


async def test_peeking_at_no_queue_says_so(bus: JetStreamBus) -> None:
    with pytest.raises(BusRefused, match="no queue p--x on the bus"):
        await peek(bus, "p--x")


async def test_stored_events_are_read_in_order_with_their_bytes(bus: JetStreamBus, connection: Connection) -> None:
    for start in range(0, 1000, 250):
        await publish(bus, "a.b", *range(start, start + 250))
    await publish(bus, "c", 1)

    seen = [one async for one in events(connection, "a.b")]

    assert ids(seen) == list(range(1000))
    assert (seen[7].subject, seen[7].data) == ("ev.a.b.-.-", b"x" * 100)
    assert abs(seen[0].stored_at - time.time()) < 30
    assert len([one async for one in events(connection)]) == 1001
    assert [one async for one in events(connection, "nothing.here")] == []


async def test_events_may_be_read_from_a_time_on(bus: JetStreamBus, connection: Connection) -> None:
    await publish(bus, "a.b", 1)
    await publish(bus, "a.b", 2)
    second = (await peek_all(bus))[1].stored_at

    assert ids([one async for one in events(connection, since=second)]) == [2]
    assert [one async for one in events(connection, since=time.time() + 60)] == []


async def peek_all(bus: JetStreamBus) -> list[Delivery]:
    last = (await store.info(bus, EVENTS))["state"]["last_seq"]
    return [found for seq in range(1, last + 1) if (found := await store.stored(bus, EVENTS, seq=seq))]


async def test_following_goes_on_over_a_restart_of_the_server(own_nats: Any) -> None:
    own = await own_nats()
    async with NatsBus(own.url).open() as bus:
        await publish(bus, "a.b", 1)
        seen: list[int] = []

        async def follow() -> None:
            async for one in events(bus.connection, "a.b", follow=True):
                seen.extend(ids([one]))
                if len(seen) == 3:
                    return

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            await eventually(lambda: seen == [1])
            await publish(bus, "a.b", 2)
            await eventually(lambda: seen == [1, 2])
            await own.kill()
            await own.start()
            await publish(bus, "a.b", 3)

    assert seen == [1, 2, 3]


async def test_a_reader_is_no_queue_and_leaves_nothing_behind(bus: JetStreamBus, connection: Connection) -> None:
    await publish(bus, "a.b", 1, 2)
    async for _ in events(connection):
        during = await store.info(bus, EVENTS)

        assert (await list_queues(bus), during["state"]["consumer_count"]) == ([], 1)
    await eventually(lambda: _no_consumer(bus))


async def _no_consumer(bus: JetStreamBus) -> bool:
    return bool((await store.info(bus, EVENTS))["state"]["consumer_count"] == 0)
