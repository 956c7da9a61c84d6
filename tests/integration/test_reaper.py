"""The reaper on a real server, most of it with a bus of 2 MiB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest_asyncio

from broker_faas import layout
from broker_faas.bus import Delivery, Queue
from broker_faas.buses import admin, consumers, store
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.errors import BusFull
from broker_faas.event import CloudEvent
from broker_faas.layout import EVENTS, RETRIES, event_record, event_subject, position_record, position_subject, retry_record
from broker_faas.reaper import ENOUGH, SHORT, reap, run
from tests.helpers import eventually
from tests.integration.pulls import Pull, ids, pulling

SMALL = 2 << 20  # bytes
EVENT = 10_000  # bytes of data of one event: 200 fill a small bus
LATER = 3600.0  # seconds: longer than the duplicate window
DAY = 86400.0


@asynccontextmanager
async def bus_with(url: str, *, max_bytes: int = SMALL, window: float | None = None) -> AsyncIterator[JetStreamBus]:
    """window: another duplicate window in seconds than the one that is shipped."""
    async with NatsBus(url, manage=False).open() as bus:
        configs = layout.streams(max_bytes=max_bytes, dead_bytes=1 << 20)
        if window:
            configs = [config | {"duplicate_window": int(window * 1e9)} for config in configs]
        for config in configs:
            await bus.api(f"STREAM.CREATE.{config['name']}", config)
        yield bus


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[JetStreamBus]:
    async with bus_with(bus_url) as bus:
        yield bus


@pytest_asyncio.fixture
async def pull(bus_url: str) -> AsyncIterator[Pull]:
    async with pulling(bus_url) as pull:
        yield pull


async def publish(bus: JetStreamBus, topic: str, numbers: range, *, key: str | None = None, output: bool = True) -> None:
    extensions: dict[str, Any] = {"partitionkey": key} if key else {}
    events = [CloudEvent(type="t", source=f"/{topic}", id=str(n), data=b"x" * EVENT, **extensions) for n in numbers]
    await bus.publish([event_record(topic, event) for event in events], output=output)


async def state(bus: JetStreamBus, stream: str = EVENTS) -> dict[str, Any]:
    return dict((await store.info(bus, stream))["state"])


async def ensure(bus: JetStreamBus, *queues: Queue) -> None:
    for queue in queues:
        await admin.ensure_queue(bus, queue)


F = Queue("p--f", ("a",))
G = Queue("p--g", ("b",))


async def test_a_small_bus_runs_for_ever(bus_url: str, pull: Pull) -> None:
    """Ten times its size is published and settled while the reaper runs, and no output is ever refused."""
    async with bus_with(bus_url, window=0.2) as bus:
        await ensure(bus, F)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(bus, stop, keep=DAY, interval=0.05))
            for start in range(0, 2000, 20):
                await publish(bus, "a", range(start, start + 20))
                await pull(F.name, 20)
                await eventually(lambda: _room(bus))
            stop.set()

        assert (await state(bus))["last_seq"] == 2000


async def test_a_source_is_never_refused_as_long_as_two_windows_of_it_fit(bus_url: str, pull: Pull) -> None:
    """Ten times the size of the bus, from a source that may use 85 % of it and waits for nothing."""
    async with bus_with(bus_url, window=0.1) as bus:
        await ensure(bus, F)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(bus, stop, keep=DAY, interval=0.05))
            due = loop.time()
            for turn in range(100):
                await asyncio.sleep(max(0.0, due - loop.time()))  # its pace; what a slow machine delays is not made up for
                due = max(due, loop.time()) + 0.05
                await publish(bus, "a", range(20 * turn, 20 * turn + 20), output=False)
                await pull(F.name, 20)
            stop.set()

        assert (await state(bus))["last_seq"] == 2000


async def _room(bus: JetStreamBus) -> bool:
    """What a source waits for: less than 85 % used."""
    return bool((await state(bus))["bytes"] < 0.85 * SMALL)


async def test_without_a_reaper_that_bus_is_full(bus: JetStreamBus, pull: Pull) -> None:
    """The other half of the claim above: settled events do take space."""
    await ensure(bus, F)
    full = False
    try:
        for start in range(0, 400, 20):
            await publish(bus, "a", range(start, start + 20))
            await pull(F.name, 20)
    except BusFull:
        full = True

    assert full


async def test_a_queue_that_is_behind_is_never_robbed(bus: JetStreamBus, pull: Pull) -> None:
    """Ten times the space of the bus goes through one topic; the queue of another topic finds all of its events afterwards."""
    await ensure(bus, F, G)
    await publish(bus, "b", range(50))
    for start in range(0, 2000, 50):
        await publish(bus, "a", range(start, start + 50))
        await pull(F.name, 50)
        await reap(bus, now=time.time() + LATER)

    assert ids(await pull(G.name, 50)) == list(range(50))


async def test_who_holds_the_space_is_named(bus: JetStreamBus) -> None:
    await ensure(bus, F, G)
    await publish(bus, "b", range(160))

    done = await reap(bus, now=time.time() + LATER)

    assert (done.short, done.holding) == (True, ("p--g",))


async def test_a_queue_of_two_topics_keeps_its_place_in_one_when_the_other_is_freed(bus: JetStreamBus, pull: Pull) -> None:
    """Servers before 2.15.1 made such a queue skip (nats-server #8571)."""
    both = Queue("p--both", ("a", "b"))
    await ensure(bus, both, G)
    await publish(bus, "b", range(1))  # G never takes it: purges go topic by topic
    await publish(bus, "a", range(1, 120))
    await pull(both.name, 100)
    await publish(bus, "b", range(120, 160))
    await publish(bus, "a", range(160, 170))

    done = await reap(bus, keep=0, now=time.time() + LATER)

    assert done.freed == 99
    assert ids(await pull(both.name, 70)) == list(range(100, 170))


async def test_events_in_flight_are_held(bus: JetStreamBus) -> None:
    """Settled out of order: nothing at or above the one that is still in progress goes."""
    await ensure(bus, F)
    await publish(bus, "a", range(150))
    async with bus.subscribe(F, 200) as subscription:
        taken: list[Delivery] = []
        async for batch in subscription:
            taken += batch
            if len(taken) == 150:
                break
        slow = next(one for one in taken if one.seq == 10)
        subscription.settle([one for one in taken if one is not slow])
        await eventually(lambda: _in_flight(bus, 1))

        await reap(bus, now=time.time() + LATER)

        assert (await state(bus))["first_seq"] == 10


async def _in_flight(bus: JetStreamBus, n: int) -> bool:
    return (await consumers.find(bus, EVENTS, F.name) or {}).get("num_ack_pending") == n


async def test_an_event_handed_back_survives_a_pass(bus: JetStreamBus) -> None:
    await ensure(bus, F)
    await publish(bus, "a", range(150))
    async with asyncio.timeout(10), bus.subscribe(F, 150) as subscription:
        first = True
        async for batch in subscription:
            if not first and any(one.seq == 5 for one in batch):
                break
            back = [one for one in batch if one.seq == 5]
            subscription.settle([one for one in batch if one.seq != 5], [(one, 0.5) for one in back])
            if back:
                first = False
                await reap(bus, now=time.time() + LATER)

    assert (await state(bus))["first_seq"] == 5


async def test_a_rare_topic_holds_nothing_back(bus: JetStreamBus, pull: Pull) -> None:
    """The floor of its queue stands still at an old sequence; it has settled all there is."""
    await ensure(bus, F, G)
    await publish(bus, "b", range(1))
    await pull(G.name, 1)
    await publish(bus, "a", range(100))
    await pull(F.name, 100)

    await reap(bus, now=time.time() + 2 * DAY)

    assert (await state(bus))["messages"] == 0


async def test_the_last_position_of_a_silent_source_is_kept_and_nothing_else_of_its_age(bus: JetStreamBus, pull: Pull) -> None:
    await ensure(bus, F)
    await bus.publish([position_record("c", "silent/0", "7"), position_record("c", "busy/0", "1")])
    await publish(bus, "a", range(20))
    await pull(F.name, 20)
    await bus.publish([position_record("c", "silent/0", "8")])
    await publish(bus, "a", range(20, 40))
    await pull(F.name, 20)
    await bus.publish([position_record("c", "busy/0", "2")])

    for _ in range(2):
        await reap(bus, now=time.time() + 2 * DAY)

    assert await store.subjects(bus, EVENTS, ">") == {position_subject("c", "silent/0"): 1, position_subject("c", "busy/0"): 1}
    silent = await store.stored(bus, EVENTS, last_by_subj=position_subject("c", "silent/0"))
    assert silent is not None
    assert silent.data == b"8"


async def test_settled_events_are_kept_for_as_long_as_they_should(bus: JetStreamBus, pull: Pull) -> None:
    await ensure(bus, F)
    await publish(bus, "a", range(20))
    await pull(F.name, 20)
    await reap(bus, keep=DAY, now=time.time() + DAY - 60)
    before = await state(bus)
    await reap(bus, keep=DAY, now=time.time() + DAY + 60)

    assert (before["messages"], (await state(bus))["messages"]) == (20, 0)


async def test_when_space_is_short_the_oldest_history_goes_first_and_no_more_than_needed(bus: JetStreamBus, pull: Pull) -> None:
    await ensure(bus, F)
    await publish(bus, "a", range(170))
    await pull(F.name, 170)

    done = await reap(bus, keep=DAY, now=time.time() + LATER)

    assert done.used <= ENOUGH < SHORT
    assert (await state(bus))["messages"] > 60


async def test_nothing_younger_than_the_duplicate_window_goes_however_short_space_is(bus: JetStreamBus, pull: Pull) -> None:
    await ensure(bus, F)
    await publish(bus, "a", range(180))
    await pull(F.name, 180)

    done = await reap(bus, keep=0)

    assert (done.freed, done.short) == (0, True)


async def test_a_topic_that_nobody_hears_is_freed_by_age(bus: JetStreamBus) -> None:
    await publish(bus, "unheard", range(20))
    young = await reap(bus, keep=DAY, now=time.time() + LATER)
    old = await reap(bus, keep=DAY, now=time.time() + 2 * DAY)

    assert (young.freed, old.freed) == (0, 20)


async def test_two_reapers_at_once_are_harmless(bus: JetStreamBus, pull: Pull, bus_url: str) -> None:
    both = Queue("p--both", ("a", "b"))
    await ensure(bus, F, G, both)
    seen: list[Delivery] = []
    async with NatsBus(bus_url, manage=False).open() as other:
        for start in range(0, 1000, 50):
            await publish(bus, "b", range(10_000 + start, 10_001 + start))
            await publish(bus, "a", range(start, start + 49))
            await asyncio.gather(
                pull(F.name, 49),
                *(reap(one, now=time.time() + LATER) for one in (bus, other)),
                *(reap(one, now=time.time() + LATER) for one in (bus, other)),
            )
            seen += await pull(both.name, 50)
            await asyncio.gather(*(reap(one, now=time.time() + LATER) for one in (bus, other)))
    rare = await pull(G.name, 20)

    assert sorted(ids(seen)) == sorted([*(10_000 + start for start in range(0, 1000, 50)), *(n for n in range(1000) if n % 50 < 49)])
    assert ids(rare) == [10_000 + start for start in range(0, 1000, 50)]


async def test_a_stuck_partition_holds_its_own_digit_alone(bus: JetStreamBus) -> None:
    ordered = Queue("p--o", ("a",), 16)
    await ensure(bus, ordered)
    keys = {event_subject("a", str(n)).split(".")[2]: str(n) for n in range(200)}
    stuck, moving = keys["3"], keys["c"]
    await publish(bus, "a", range(3), key=stuck)
    await publish(bus, "a", range(3, 160), key=moving)
    async with asyncio.timeout(10), bus.subscribe(ordered, 10) as subscription:
        done = 0
        async for batch in subscription:
            settled = [one for one in batch if not one.source.endswith("--3")]
            subscription.settle(settled)
            done += len(settled)
            if done == 157:
                break
        await eventually(lambda: _reaped_to(bus, 3))

    assert set(await store.subjects(bus, EVENTS, "ev.>")) == {event_subject("a", stuck)}


async def _reaped_to(bus: JetStreamBus, n: int) -> bool:
    await reap(bus, keep=0, now=time.time() + LATER)
    return bool((await state(bus))["messages"] == n)


async def test_settled_retries_are_freed_and_those_that_wait_are_not(bus: JetStreamBus, pull: Pull) -> None:
    await ensure(bus, F, G)
    await publish(bus, "a", range(1))
    await publish(bus, "b", range(1))
    for queue in (F, G):
        (event,) = await pull(queue.name, 1)
        await bus.publish([retry_record(queue, event, 1, time.time()), retry_record(queue, event, 2, time.time() + LATER)], output=True)
    await eventually(lambda: _subjects(bus, {"go.p--f", "go.p--g", "at.p--f.1.2", "at.p--g.2.2"}))
    await pull(F.name, 1, stream=RETRIES)

    await reap(bus, now=time.time() + LATER)

    assert set(await store.subjects(bus, RETRIES, ">")) == {"go.p--g", "at.p--f.1.2", "at.p--g.2.2"}


async def _subjects(bus: JetStreamBus, expected: set[str]) -> bool:
    return set(await store.subjects(bus, RETRIES, ">")) == expected


async def test_a_delayed_publish_that_no_worker_relayed_yet_is_kept(bus: JetStreamBus) -> None:
    event = CloudEvent(type="t", source="/s", id="1")
    await bus.publish([layout.delayed_record("a", event, time.time())])
    await eventually(lambda: _subjects(bus, {"go.publish"}))

    await reap(bus, now=time.time() + 2 * DAY)

    assert await _subjects(bus, {"go.publish"})


async def test_the_reaper_outlives_a_bus_that_does_not_answer(own_nats: Any) -> None:
    own = await own_nats()
    async with bus_with(own.url) as bus:
        await ensure(bus, F)
        await publish(bus, "unheard", range(150))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(bus, stop, keep=0.0, interval=0.05))
            await own.kill()
            await own.start()
            await eventually(lambda: _answers(bus), timeout=20)
            stop.set()

        assert (await state(bus))["last_seq"] == 150


async def _answers(bus: JetStreamBus) -> bool:
    return bool((await state(bus))["last_seq"]) if bus.connected else False
