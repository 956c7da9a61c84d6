"""What every bus promises. A new driver joins with one entry in OPENERS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from broker_faas.bus import Bus, Delivery, Lag, Queue, Record, Subscription
from broker_faas.errors import BusFull, BusRefused, EventTooLarge, Overtaken
from broker_faas.layout import MAX_DATA, MAX_HEADERS, dead_record, event_subject, retry_record
from tests.helpers import eventually

OpenBus = Callable[..., AbstractAsyncContextManager[Bus]]
MIB = 1 << 20


@pytest.fixture(params=["memory", "nats"])
def open_bus(request: pytest.FixtureRequest) -> OpenBus:
    """`async with open_bus(max_bytes=…) as bus`: an empty bus."""
    if request.param == "memory":
        from broker_faas.buses.memory import MemoryBus

        return lambda **options: MemoryBus(**{"prefetch_bytes": 16 * MIB} | options).open()
    from broker_faas.buses.nats import NatsBus

    url = request.getfixturevalue("bus_url")
    return lambda **options: NatsBus(url, **options).open()


@pytest.fixture
def queue() -> Queue:
    return Queue("shop--reserve", ("orders.created",))


def record(n: int, *, topic: str = "orders.created", key: str | None = None, data: bytes = b"", ident: str | None = None) -> Record:
    headers = f"ce-specversion: 1.0\r\nce-id: {n}\r\nce-source: /shop\r\nce-type: t\r\n".encode()
    return Record(event_subject(topic, key), ident or f"{topic}:{n}", headers, data or str(n).encode())


def records(count: int, start: int = 0, **options: Any) -> list[Record]:
    return [record(n, **options) for n in range(start, start + count)]


async def take(subscription: Subscription, count: int, seconds: float = 10.0, *, settle: bool = False) -> list[Delivery]:
    """At least `count` deliveries (fewer if iteration ends), or TimeoutError."""
    taken: list[Delivery] = []
    async with asyncio.timeout(seconds):
        async for batch in subscription:
            taken += batch
            if settle:
                subscription.settle(batch)
            if len(taken) >= count:
                break
    return taken


async def nothing(subscription: Subscription, seconds: float) -> bool:
    """No delivery within so many seconds."""
    try:
        return not await take(subscription, 1, seconds)
    except TimeoutError:
        return True


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.data) for delivery in deliveries]


# --- publish ------------------------------------------------------------------------------------------------


async def test_a_published_event_is_delivered_as_it_was(open_bus: OpenBus, queue: Queue) -> None:
    sent = record(7, data=bytes(range(256)))
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        duplicates = await bus.publish([sent])
        [got] = await take(subscription, 1)
        subscription.settle([got])

        assert duplicates == 0
        assert (got.subject, got.data, got.seq, got.deliveries) == (sent.subject, sent.data, 1, 1)
        assert sent.headers in got.headers
        assert not got.headers.startswith(b"NATS")
        assert abs(got.stored_at - time.time()) < 5


async def test_nothing_is_a_publish_of_nothing(open_bus: OpenBus) -> None:
    async with open_bus() as bus:
        assert await bus.publish([]) == 0


@pytest.mark.parametrize("count", [1, 2, 10, 11, 1000, 1001, 2500])
async def test_any_number_of_records_goes_in_one_call_and_keeps_its_order(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        duplicates = await bus.publish(records(count))
        taken = await take(subscription, count, settle=True)

        assert duplicates == 0
        assert numbers(taken) == list(range(count))


async def test_calls_one_after_the_other_keep_their_order(open_bus: OpenBus, queue: Queue) -> None:
    sizes = [1, 30, 2, 1, 400, 5, 11, 10]
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        start = 0
        for size in sizes:
            await bus.publish(records(size, start))
            start += size
        taken = await take(subscription, start, settle=True)

        assert numbers(taken) == list(range(sum(sizes)))


@pytest.mark.parametrize("count", [3, 300])
async def test_what_is_published_twice_is_stored_once_and_counted(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        await bus.publish(records(count))
        duplicates = await bus.publish(records(count + 2, start=1))
        taken = await take(subscription, count + 3, settle=True)

        assert duplicates == count - 1
        assert numbers(taken) == list(range(count + 3))


@pytest.mark.parametrize("count", [2, 40])
async def test_an_id_twice_in_one_call_is_stored_once_and_counted(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        duplicates = await bus.publish([*records(count), *records(count), record(count)])
        taken = await take(subscription, count + 1, settle=True)

        assert duplicates == count
        assert numbers(taken) == list(range(count + 1))


async def test_the_largest_event_fits(open_bus: OpenBus, queue: Queue) -> None:
    line = b"ce-id: 1\r\n"
    largest = Record("ev.orders.created.-.-", "large", line * (MAX_HEADERS // len(line)), b"x" * MAX_DATA)
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([largest])
        [got] = await take(subscription, 1)

        assert (len(got.data), got.headers.endswith(largest.headers)) == (MAX_DATA, True)


@pytest.mark.parametrize("large", [{"data": b"x" * (MAX_DATA + 1)}, {"headers": b"ce-x: " + b"y" * MAX_HEADERS + b"\r\n"}])
async def test_an_event_that_is_too_large_is_refused_before_anything_is_sent(open_bus: OpenBus, queue: Queue, large: Any) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        with pytest.raises(EventTooLarge) as refused:
            await bus.publish([record(1), record(2)._replace(**large)])
        await bus.publish([record(3)])
        taken = await take(subscription, 1)

        assert numbers(taken) == [3]
        assert refused.value.size > refused.value.limit > 0


async def test_publishers_at_once_each_get_their_own_outcome(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        await bus.publish(records(5))
        too_large = record(-1, data=b"x" * (MAX_DATA + 1))
        calls = [bus.publish([too_large] if n == 50 else [record(n)]) for n in range(100)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        taken = await take(subscription, 99, settle=True)

        assert outcomes[:5] == [1] * 5
        assert isinstance(outcomes.pop(50), EventTooLarge)
        assert outcomes[5:] == [0] * 94
        assert sorted(numbers(taken)) == [n for n in range(100) if n != 50]


async def test_a_publisher_that_gives_up_disturbs_nobody(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        tasks = [asyncio.create_task(bus.publish([record(n)])) for n in range(200)]
        for turn in range(3):
            await asyncio.sleep(0)
            for task in tasks[turn::10]:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await bus.publish(records(3, start=200))
        stored = {n for n, outcome in enumerate(outcomes) if outcome == 0} | {200, 201, 202}
        taken = await take(subscription, len(stored), settle=True)

        assert stored <= set(numbers(taken)) or stored <= set(numbers([*taken, *await take(subscription, 1)]))


async def test_events_dead_letters_and_retries_go_in_one_call(open_bus: OpenBus, queue: Queue) -> None:
    failed = Delivery("ev.orders.created.-.-", record(1).headers, b"1", 1, 1, time.time(), "", "")
    dead = dead_record(queue, failed, reason="no", detail="", attempts=5, now=time.time(), version="v")
    later = retry_record(queue, failed, 1, time.time() + 600)
    async with open_bus() as bus, bus.subscribe(queue, 10):
        first = await bus.publish([record(2), dead, later], output=True)
        second = await bus.publish([record(2), dead, record(3)], output=True)

        assert (first, second) == (0, 2)
        assert (await bus.lag(queue)).scheduled == 1


async def test_many_retries_are_scheduled_in_one_call(open_bus: OpenBus, queue: Queue) -> None:
    failed = [Delivery("ev.orders.created.-.-", record(n).headers, b"1", n, 1, time.time(), "", "") for n in range(1, 41)]
    later = [retry_record(queue, delivery, 1, time.time() + 600) for delivery in failed]
    async with open_bus() as bus, bus.subscribe(queue, 10):
        outcomes = [await bus.publish(later, output=True), await bus.publish(later, output=True)]

        assert outcomes == [0, 40]
        assert (await bus.lag(queue)).scheduled == 40


async def test_a_subject_of_no_stream_is_refused(open_bus: OpenBus) -> None:
    async with open_bus() as bus:
        with pytest.raises(BusRefused, match="elsewhere"):
            await bus.publish([Record("elsewhere.x", "1", b"", b"")])


async def test_a_bus_that_is_nearly_full_refuses_sources_and_still_takes_outputs(open_bus: OpenBus) -> None:
    async with open_bus(max_bytes=4 * MIB) as bus:
        stored = {False: 0, True: 0}
        for output in (False, True):
            with pytest.raises(BusFull, match="max_bytes"):
                await fill(bus, stored, output)

        assert 75 <= stored[False] <= 90  # of about 104 that fit
        assert 95 <= sum(stored.values()) <= 104


async def fill(bus: Bus, stored: dict[bool, int], output: bool) -> None:
    while True:
        await bus.publish([record(sum(stored.values()), data=b"x" * 40_000)], output=output)
        stored[output] += 1


# --- deliver and settle -------------------------------------------------------------------------------------


async def test_an_unsettled_event_returns_after_ack_wait(open_bus: OpenBus) -> None:
    """A worker that dies without settling loses nothing."""
    queue = Queue("shop--reserve", ("orders.created",), ack_wait=1.0)
    async with open_bus() as bus, bus.subscribe(queue, 1) as subscription:
        await bus.publish([record(1)])
        [first] = await take(subscription, 1)
        started = time.monotonic()
        [second] = await take(subscription, 1)

        assert 0.8 < time.monotonic() - started < 3
        assert (first.seq, second.seq) == (1, 1)
        assert (first.deliveries, second.deliveries) == (1, 2)


async def test_a_settled_event_does_not_return(open_bus: OpenBus) -> None:
    queue = Queue("shop--reserve", ("orders.created",), ack_wait=0.5)
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(1)])
        subscription.settle(await take(subscription, 1))

        assert await nothing(subscription, 1.2)
        assert await bus.lag(queue) == Lag(0, 0, 0)


async def test_a_renewed_lease_does_not_end(open_bus: OpenBus) -> None:
    queue = Queue("shop--reserve", ("orders.created",), ack_wait=1.0)
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(1)])
        held = await take(subscription, 1)
        for _ in range(6):
            assert await nothing(subscription, 0.35)
            subscription.settle([], renew=held)
        subscription.settle(held)

        assert await nothing(subscription, 1.3)


async def test_a_held_retry_returns_after_its_delay(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(1), record(2)])
        first = await take(subscription, 2)
        started = time.monotonic()
        subscription.settle([], again=[(first[0], 0.0), (first[1], 0.7)])
        [at_once] = await take(subscription, 1)
        waited_not = time.monotonic() - started
        [later] = await take(subscription, 1)
        waited = time.monotonic() - started

        assert (numbers([at_once]), numbers([later])) == ([1], [2])
        assert waited_not < 0.5
        assert 0.6 < waited < 2
        assert (at_once.deliveries, later.deliveries) == (2, 2)


async def test_no_more_than_prefetch_are_unsettled(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish(records(100))
        held = await take(subscription, 9)

        assert 9 <= len(held) <= 10
        assert await nothing(subscription, 0.2) or len(held) == 9
        subscription.settle(held)
        more = await take(subscription, 9)

        assert len(more) <= 10
        subscription.prefetch = 50
        more += await take(subscription, 30)

        assert len(more) <= 50


async def test_a_queue_that_is_paused_delivers_again_when_prefetch_is_raised(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 0) as subscription:
        await bus.publish(records(5))

        assert await nothing(subscription, 0.2)
        subscription.prefetch = 10
        taken = await take(subscription, 5)

        assert numbers(taken) == [0, 1, 2, 3, 4]


async def test_bytes_held_are_bounded(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        await bus.publish(records(40, data=b"x" * MIB))
        held: list[Delivery] = []
        while not await nothing_or(subscription, held, 0.5):
            pass

        assert 10 <= len(held) <= 22
        rest = 40 - len(held)
        subscription.settle(held)
        taken = await take(subscription, rest, settle=True)

        assert len(taken) == rest


async def nothing_or(subscription: Subscription, held: list[Delivery], seconds: float) -> bool:
    try:
        held += await take(subscription, 1, seconds)
    except TimeoutError:
        return True
    return False


async def test_two_subscribers_share_a_queue(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 20) as one, bus.subscribe(queue, 20) as two:
        seen: dict[str, list[int]] = {"one": [], "two": []}

        async def read(name: str, subscription: Subscription) -> None:
            async for batch in subscription:
                seen[name] += numbers(batch)
                subscription.settle(batch)
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            group.create_task(read("one", one))
            group.create_task(read("two", two))
            await bus.publish(records(500))
            await eventually(lambda: sum(map(len, seen.values())) >= 500)
            one.stop()
            two.stop()

        assert sorted(seen["one"] + seen["two"]) == list(range(500))
        assert seen["one"]
        assert seen["two"]


@pytest.mark.parametrize(
    ("topics", "heard"),
    [
        (("orders.created",), [0]),
        (("orders.*",), [0, 1]),
        (("orders.>",), [0, 1, 2]),
        (("orders.created", "users.*"), [0, 3]),
        ((">",), [0, 1, 2, 3]),
    ],
)
async def test_a_queue_hears_its_topics_and_no_others(open_bus: OpenBus, topics: tuple[str, ...], heard: list[int]) -> None:
    published = ["orders.created", "orders.paid", "orders.eu.paid", "users.new"]
    async with open_bus() as bus, bus.subscribe(Queue("shop--f", topics), 10) as subscription:
        await bus.publish([record(n, topic=topic, key="k" if n % 2 else None) for n, topic in enumerate(published)])
        taken = await take(subscription, len(heard))

        assert numbers(taken) == heard
        assert await nothing(subscription, 0.1)


async def test_two_queues_hear_the_same_event(open_bus: OpenBus) -> None:
    one, two = Queue("shop--one", ("orders.*",)), Queue("shop--two", ("orders.created",))
    async with open_bus() as bus, bus.subscribe(one, 10) as first, bus.subscribe(two, 10) as second:
        await bus.publish([record(1)])

        assert numbers(await take(first, 1)) == numbers(await take(second, 1)) == [1]


async def test_a_queue_starts_at_new_events_at_the_first_or_at_a_time(open_bus: OpenBus) -> None:
    async with open_bus() as bus:
        await bus.publish([record(1)])
        await asyncio.sleep(0.01)
        between = datetime.now(UTC).isoformat()
        await asyncio.sleep(0.01)
        await bus.publish([record(2)])
        heard = {}
        for name, start in {"new": "new", "first": "first", "time": between}.items():
            async with bus.subscribe(Queue(f"shop--{name}", ("orders.*",), start=start), 10) as subscription:
                await bus.publish([record(3, ident="three")])
                heard[name] = numbers(await take(subscription, {"new": 1, "first": 3, "time": 2}[name] - (name != "new"), settle=True))
                await bus.publish([record(4, ident=f"four-{name}")])

        assert heard["first"][:2] == [1, 2]
        assert heard["time"][:1] == [2]
        assert heard["new"] == [3]


async def test_a_queue_goes_on_where_it_was(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus:
        async with bus.subscribe(queue, 10) as subscription:
            await bus.publish(records(3))
            await take(subscription, 3, settle=True)
        await bus.publish(records(2, start=3))
        async with bus.subscribe(queue, 10) as subscription:
            taken = await take(subscription, 2)

            assert numbers(taken) == [3, 4]


# --- ordered ------------------------------------------------------------------------------------------------

ORDERED = Queue("shop--ordered", ("orders.created",), partitions=16)
KEYS = ("k0", "k2", "k3")  # of three partitions


def test_the_keys_of_this_suite_lie_in_three_partitions() -> None:
    partitions = {event_subject("t", key).split(".")[-2] for key in KEYS}

    assert len(partitions) == 3


async def test_one_event_of_a_partition_at_a_time_and_others_are_not_blocked(open_bus: OpenBus) -> None:
    async with open_bus() as bus, bus.subscribe(ORDERED, 100) as subscription:
        await bus.publish([record(n * 10 + k, key=key) for n in range(3) for k, key in enumerate(KEYS)])
        first = await take(subscription, 3)

        assert sorted(numbers(first)) == [0, 1, 2]
        assert await nothing(subscription, 0.3)
        subscription.settle([delivery for delivery in first if delivery.data == b"1"])
        [second] = await take(subscription, 1)

        assert second.data == b"11"


async def test_a_partition_keeps_its_order_when_an_event_is_handed_back(open_bus: OpenBus) -> None:
    async with open_bus() as bus, bus.subscribe(ORDERED, 100) as subscription:
        await bus.publish([record(n, key="k0") for n in range(5)])
        seen: list[int] = []
        while len(seen) < 9:
            for delivery in await take(subscription, 1):
                seen.append(int(delivery.data))
                if delivery.deliveries < 2 and delivery.data != b"4":
                    subscription.settle([], again=[(delivery, 0.05)])
                else:
                    subscription.settle([delivery])

        assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4]


async def test_a_partition_keeps_its_order_when_its_reader_dies(open_bus: OpenBus) -> None:
    queue = Queue("shop--ordered", ("orders.created",), partitions=16, ack_wait=1.0)
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        await bus.publish([record(n, key="k0") for n in range(3)])
        await take(subscription, 1)
        seen = numbers(await take(subscription, 3, settle=True))

        assert seen == [0, 1, 2]


async def test_events_without_a_key_have_no_order_to_wait_for(open_bus: OpenBus) -> None:
    async with open_bus() as bus, bus.subscribe(ORDERED, 100) as subscription:
        await bus.publish(records(20))
        taken = await take(subscription, 20)

        assert sorted(numbers(taken)) == list(range(20))


async def test_two_ordered_subscribers_never_hold_one_partition_together(open_bus: OpenBus) -> None:
    async with open_bus() as bus, bus.subscribe(ORDERED, 100) as one, bus.subscribe(ORDERED, 100) as two:
        seen: list[int] = []
        running: set[str] = set()

        async def read(subscription: Subscription) -> None:
            async for batch in subscription:
                for delivery in batch:
                    partition = delivery.subject.split(".")[-2]

                    assert partition not in running
                    running.add(partition)
                    await asyncio.sleep(0.001)
                    running.discard(partition)
                    seen.append(int(delivery.data))
                    subscription.settle([delivery])

        async with asyncio.TaskGroup() as group:
            group.create_task(read(one))
            group.create_task(read(two))
            await bus.publish([record(n, key=KEYS[n % 3]) for n in range(150)])
            await eventually(lambda: len(seen) >= 150)
            one.stop()
            two.stop()

        for k in range(3):
            mine = [n for n in seen if n % 3 == k]

            assert mine == sorted(mine)


# --- schedules, lag -----------------------------------------------------------------------------------------


async def test_a_scheduled_retry_comes_back_to_its_queue_at_its_time(open_bus: OpenBus, queue: Queue) -> None:
    other = Queue("shop--other", ("orders.created",))
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription, bus.subscribe(other, 10) as elsewhere:
        await bus.publish([record(1)])
        [first] = await take(subscription, 1)
        await take(elsewhere, 1, settle=True)
        at = time.time() + 1.5
        await bus.publish([retry_record(queue, first, 1, at)], output=True)
        subscription.settle([first])
        await eventually(lambda: settled(bus, queue))

        assert await bus.lag(queue) == Lag(0, 0, 1)
        [again] = await take(subscription, 1)

        assert at - 0.1 < time.time() < at + 3
        assert (again.subject, again.data) == (f"go.{queue.name}", b"1")
        assert b"Faas-Attempts: 1\r\n" in again.headers
        assert record(1).headers in again.headers
        assert await bus.lag(queue) == Lag(0, 1, 0)
        assert await nothing(elsewhere, 0.1)


async def settled(bus: Bus, queue: Queue) -> bool:
    return (await bus.lag(queue)).in_progress == 0


async def test_lag_counts_what_waits_and_what_is_in_progress(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 4) as subscription:
        await bus.publish(records(20))
        held = await take(subscription, 3)
        lag = await bus.lag(queue)

        assert lag.total == 20
        assert lag.scheduled == 0
        assert len(held) <= lag.in_progress <= 4
        subscription.settle(held)
        await take(subscription, 20 - len(held), settle=True)

        assert await eventually(lambda: lag_is(bus, queue, 0))


async def lag_is(bus: Bus, queue: Queue, total: int) -> bool:
    return (await bus.lag(queue)).total == total


async def test_lag_of_an_ordered_queue_sums_its_partitions(open_bus: OpenBus) -> None:
    async with open_bus() as bus, bus.subscribe(ORDERED, 100) as subscription:
        await bus.publish([record(n, key=KEYS[n % 3]) for n in range(30)] + records(5, start=30))
        await take(subscription, 8)

        assert await bus.lag(ORDERED) == Lag(27, 8, 0)


async def test_lag_of_a_queue_that_is_not_there_is_an_error(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus:
        with pytest.raises(BusRefused) as refused:
            await bus.lag(queue)

        assert refused.value.code == 10014


# --- stop ---------------------------------------------------------------------------------------------------


async def test_stop_ends_the_iteration_after_what_is_already_here(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish(records(100))
        held = await take(subscription, 1)
        subscription.stop()
        held += await take(subscription, 100)

        assert len(held) <= 10
        assert await take(subscription, 1) == []


async def test_stop_wakes_a_reader_that_waits(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(take(subscription, 1))
            await asyncio.sleep(0)
            subscription.stop()

        assert reader.result() == []


async def test_settling_still_works_after_stop(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus:
        async with bus.subscribe(queue, 10) as subscription:
            await bus.publish(records(3))
            held = await take(subscription, 3)
            subscription.stop()
            subscription.settle(held[:1], again=[(held[1], 0.0)])
        subscription.settle(held[2:])
        await eventually(lambda: lag_is(bus, queue, 1))
        async with bus.subscribe(queue, 10) as other:
            taken = await take(other, 1)

            assert numbers(taken) == [1]
            assert await nothing(other, 0.1)


async def test_stopping_strands_nothing(open_bus: OpenBus, queue: Queue) -> None:
    """What the bus had already sent to a subscriber that stops goes to another one at once, not after ack_wait (30 s)."""
    async with open_bus() as bus:
        done: list[int] = []
        async with bus.subscribe(queue, 500) as subscription:
            await bus.publish(records(3000))
            done += numbers(await take(subscription, 1000, settle=True))
        async with bus.subscribe(queue, 500) as other:
            done += numbers(await take(other, 3000 - len(done), settle=True))

        assert sorted(done) == list(range(3000))


async def test_a_subscriber_that_reads_nothing_hands_back_all(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 10) as other:
        async with bus.subscribe(queue, 200):
            await bus.publish(records(100))
        taken = await take(other, 100, settle=True)

        assert sorted(numbers(taken)) == list(range(100))


async def test_deliveries_come_in_batches(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 500) as subscription:
        await bus.publish(records(1000))
        sizes = []
        async for batch in subscription:
            sizes.append(len(batch))
            subscription.settle(batch)
            if sum(sizes) == 1000:
                break

        assert len(sizes) < 300


async def test_sequences_rise_with_what_is_stored(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        await bus.publish(records(50))
        taken = await take(subscription, 50)

        assert all(a.seq < b.seq for a, b in pairwise(taken))


# --- positions ----------------------------------------------------------------------------------------------

POSITION = "pos.c.orders=2F0"


def position(at: int, after: int, subject: str = POSITION) -> Record:
    return Record(subject, f"{subject}:{at}:{after}", b"", b"%d" % at)


@pytest.mark.parametrize("count", [0, 1, 10, 500, 1500])
async def test_a_position_that_follows_the_one_that_is_known_is_stored_with_its_events(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 2000) as subscription:
        last = {POSITION: 0}
        duplicates = await bus.publish([*records(count), position(1, 0)], last=last)
        first = last[POSITION]
        duplicates += await bus.publish([*records(count, count), position(2, first)], last=last)

        assert (duplicates, first, last) == (0, count + 1, {POSITION: 2 * count + 2})
        if count:
            assert numbers(await take(subscription, 2 * count, settle=True)) == list(range(2 * count))


@pytest.mark.parametrize("count", [0, 1, 10, 500, 1500])
async def test_who_was_overtaken_stores_nothing_at_all(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 2000) as subscription:
        behind, ahead = {POSITION: 0}, {POSITION: 0}
        await bus.publish([record(5000), position(7, 0)], last=ahead)
        with pytest.raises(Overtaken):
            await bus.publish([*records(count), position(1, 0)], last=behind)
        await bus.publish([record(5001), position(8, ahead[POSITION])], last=ahead)

        assert (behind, ahead) == ({POSITION: 0}, {POSITION: 4})
        assert numbers(await take(subscription, 2)) == [5000, 5001]


async def test_one_of_several_positions_that_was_overtaken_keeps_all_out(open_bus: OpenBus, queue: Queue) -> None:
    other = f"{POSITION}1"
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(1), position(1, 0, other)], last={other: 0})
        last = {POSITION: 0, other: 0}
        with pytest.raises(Overtaken):
            await bus.publish([record(2), position(1, 0), position(2, 0, other)], last=last)
        last[other] = 2
        await bus.publish([record(3), position(1, 0), position(2, 2, other)], last=last)

        assert last == {POSITION: 4, other: 5}
        assert numbers(await take(subscription, 2)) == [1, 3]


@pytest.mark.parametrize("count", [1, 30])
async def test_a_publish_whose_answer_was_lost_finds_its_own_position(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        lost, last = {POSITION: 0}, {POSITION: 0}
        await bus.publish([*records(count), position(1, 0)], last=lost)
        duplicates = await bus.publish([*records(count), position(1, 0)], last=last)
        await bus.publish([record(count), position(2, last[POSITION])], last=last)

        assert (duplicates, last[POSITION]) == (count + 1, count + 3)
        assert numbers(await take(subscription, count + 1)) == list(range(count + 1))


async def test_a_position_that_is_stored_already_with_other_events_than_these_is_another_s(open_bus: OpenBus, queue: Queue) -> None:
    """The ids of the first part may be forgotten, and those of the rest not yet."""
    async with open_bus() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(2), position(2, 0)], last={POSITION: 0})
        with pytest.raises(Overtaken):
            await bus.publish([record(1), record(2), position(2, 0)], last={POSITION: 0})

        assert numbers(await take(subscription, 1)) == [2]
        assert await nothing(subscription, 0.2)


@pytest.mark.parametrize("count", [4, 40])
async def test_of_events_of_which_some_are_stored_the_others_are_with_their_position(open_bus: OpenBus, queue: Queue, count: int) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        await bus.publish([record(2), record(count - 1)])
        last = {POSITION: 0}
        duplicates = await bus.publish([*records(count), position(1, 0)], last=last)
        taken = numbers(await take(subscription, count))

        assert (duplicates, last) == (2, {POSITION: count + 1})
        assert taken == [2, count - 1, *[n for n in range(count) if n not in (2, count - 1)]]


async def test_of_many_that_follow_the_same_position_one_is_stored_and_others_are_not_disturbed(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 1000) as subscription:
        following = [bus.publish([*records(10, 10 * n), position(n, 0)], last={POSITION: 0}) for n in range(5)]
        plain = [bus.publish([record(n)]) for n in range(100, 130)]
        outcomes = await asyncio.gather(*following, *plain, return_exceptions=True)
        taken = numbers(await take(subscription, 40))

        assert [type(one) for one in outcomes[:5]].count(Overtaken) == 4
        assert outcomes[5:] == [0] * 30
        assert len(taken) == 40


async def test_what_is_overtaken_takes_no_publish_of_the_same_event_with_it(open_bus: OpenBus, queue: Queue) -> None:
    async with open_bus() as bus, bus.subscribe(queue, 100) as subscription:
        await bus.publish([position(1, 0)], last={POSITION: 0})
        busy = bus.publish([record(9)])  # so that the others leave together
        overtaken = bus.publish([record(1), record(2), position(2, 0)], last={POSITION: 0})
        outcomes = await asyncio.gather(busy, overtaken, bus.publish([record(2), record(3)]), return_exceptions=True)

        assert [type(one) for one in outcomes] == [int, Overtaken, int]
        assert numbers(await take(subscription, 3)) == [9, 2, 3]
