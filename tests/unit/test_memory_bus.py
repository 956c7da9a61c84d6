"""What the memory bus keeps of JetStream's rules, by a clock moved by hand. What every bus must do: tests/contract/test_bus.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_faas import layout
from broker_faas.bus import Delivery, Lag, Queue, Record, Subscription
from broker_faas.buses.memory import Memory, MemoryBus
from broker_faas.errors import BusFull, BusRefused, BusUnavailable, EventTooLarge
from broker_faas.event import CloudEvent

QUEUE = Queue("test--f", ("orders.*",), start="first")
ORDERED = Queue("test--o", ("orders.*",), partitions=16, start="first")


class Clock:
    """Unix seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def bus(clock: Clock) -> AsyncIterator[Memory]:
    async with MemoryBus(clock=clock).open() as bus:
        yield bus


def record(id: str, topic: str = "orders.created", key: str | None = None, data: bytes = b"") -> Record:
    return layout.event_record(topic, CloudEvent(type="t", source="/test", id=id, partitionkey=key, data=data or id.encode()))


def schedule(clock: Clock, delay: float, id: str, attempt: int = 1) -> Record:
    headers = layout._schedule(clock.now + delay, f"go.{QUEUE.name}") + b"Faas-Attempts: 1\r\n"
    return Record(f"at.{QUEUE.name}.7.{attempt}", id, headers, id.encode())


def pass_time(bus: Memory, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    bus.wake()


async def _first(subscription: Subscription) -> list[Delivery]:
    async for batch in subscription:
        return batch
    raise AssertionError("iteration ended")


def datas(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.data for delivery in deliveries]


async def test_an_unsettled_event_returns_when_its_lease_ends(bus: Memory, clock: Clock) -> None:
    await bus.publish([record("1")])
    async with bus.subscribe(QUEUE, 10) as subscription:
        [first] = subscription.take()
        pass_time(bus, clock, QUEUE.ack_wait - 0.1)
        early = subscription.take()
        pass_time(bus, clock, 0.2)
        [second] = subscription.take()

        assert early == []
        assert [first.deliveries, second.deliveries] == [1, 2]
        assert first.seq == second.seq


async def test_a_renewed_lease_starts_again(bus: Memory, clock: Clock) -> None:
    await bus.publish([record("1")])
    async with bus.subscribe(QUEUE, 10) as subscription:
        [delivery] = subscription.take()
        pass_time(bus, clock, 20)
        subscription.settle([], renew=[delivery])
        pass_time(bus, clock, 20)

        assert subscription.take() == []


async def test_a_late_settle_counts_even_if_the_event_was_handed_out_again(bus: Memory, clock: Clock) -> None:
    await bus.publish([record("1")])
    async with bus.subscribe(QUEUE, 10) as one, bus.subscribe(QUEUE, 10) as two:
        [first] = one.take()
        pass_time(bus, clock, 31)
        two.take()
        one.settle([first])
        pass_time(bus, clock, 31)

        assert one.take() + two.take() == []
        assert await bus.lag(QUEUE) == Lag(0, 0, 0)


async def test_an_event_handed_back_returns_after_its_delay_and_before_new_ones(bus: Memory, clock: Clock) -> None:
    await bus.publish([record("1")])
    async with bus.subscribe(QUEUE, 10) as subscription:
        [delivery] = subscription.take()
        subscription.settle([], again=[(delivery, 5.0)])
        await bus.publish([record("2")])
        at_once = subscription.take()
        await bus.publish([record("3")])
        pass_time(bus, clock, 5)

        assert datas(at_once) == [b"2"]
        assert datas(subscription.take()) == [b"1", b"3"]


async def test_the_window_swallows_a_repeated_id_on_one_topic_only(bus: Memory, clock: Clock) -> None:
    first = await bus.publish([record("1"), record("1"), record("1", topic="orders.paid")])
    clock.now += layout.DUPLICATE_WINDOW - 1
    within = await bus.publish([record("1")])
    clock.now += 1
    after = await bus.publish([record("1")])

    assert (first, within, after) == (1, 1, 0)


async def test_a_schedule_becomes_a_delivery_on_its_target_at_its_time(bus: Memory, clock: Clock) -> None:
    async with bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([schedule(clock, 60, "a")])
        waiting = await bus.lag(QUEUE)
        pass_time(bus, clock, 59)
        early = subscription.take()
        pass_time(bus, clock, 1)
        [delivery] = subscription.take()

        assert waiting == Lag(0, 0, 1)
        assert early == []
        assert (delivery.subject, delivery.headers, delivery.data) == (f"go.{QUEUE.name}", b"Faas-Attempts: 1\r\n", b"a")
        assert await bus.lag(QUEUE) == Lag(0, 1, 0)


async def test_a_second_schedule_on_one_subject_replaces_the_first(bus: Memory, clock: Clock) -> None:
    async with bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([schedule(clock, 60, "a"), schedule(clock, 90, "b")])
        pass_time(bus, clock, 1000)

        assert datas(subscription.take()) == [b"b"]


async def test_ordered_partitions_deliver_one_event_at_a_time_each(bus: Memory) -> None:
    await bus.publish([record("a1", key="a"), record("a2", key="a"), record("b1", key="b"), record("u1"), record("u2")])
    async with bus.subscribe(ORDERED, 10) as subscription:
        first = subscription.take()
        [a1] = [delivery for delivery in first if delivery.data == b"a1"]
        subscription.settle([], again=[(a1, 1.0)])
        held = subscription.take()
        subscription.settle([a1])

        assert sorted(datas(first)) == [b"a1", b"b1", b"u1", b"u2"]
        assert held == []
        assert datas(subscription.take()) == [b"a2"]


async def test_queues_hear_their_topics_and_not_each_others_events(bus: Memory) -> None:
    deep = Queue("test--deep", ("orders.>",))
    async with bus.subscribe(QUEUE, 10) as one, bus.subscribe(deep, 10) as two:
        await bus.publish([record("1"), record("2", topic="orders.eu.created"), record("3", topic="orders"), record("4", topic="other.x")])

        assert datas(one.take()) == [b"1"]
        assert datas(two.take()) == [b"1", b"2"]


@pytest.mark.parametrize(("start", "heard"), [("new", [b"2"]), ("first", [b"0", b"1", b"2"]), ("2027-01-15T08:00:05Z", [b"1", b"2"])])
async def test_a_new_queue_starts_where_it_says(bus: Memory, clock: Clock, start: str, heard: list[bytes]) -> None:
    await bus.publish([record("0")])
    clock.now += 10
    await bus.publish([record("1")])
    async with bus.subscribe(Queue("test--f", ("orders.*",), start=start), 10) as subscription:
        await bus.publish([record("2")])

        assert datas(subscription.take()) == heard


async def test_sources_are_refused_at_85_percent_and_outputs_at_the_end(clock: Clock) -> None:
    async with MemoryBus(max_bytes=100_000, clock=clock).open() as bus:
        for number in range(8):
            await bus.publish([record(f"{number}", data=b"x" * 10_000)])
        with pytest.raises(BusFull, match="events of this kind may use 85%"):
            await bus.publish([record("s", data=b"x" * 10_000)])
        await bus.publish([record("o", data=b"x" * 10_000)], output=True)
        with pytest.raises(BusFull, match="max_bytes"):
            await bus.publish([record("p", data=b"x" * 20_000)], output=True)

        assert await bus.publish([record("3")]) == 1, "a duplicate needs no space"


async def test_too_large_an_event_keeps_its_whole_batch_out(bus: Memory) -> None:
    with pytest.raises(EventTooLarge) as raised:
        await bus.publish([record("1"), record("2", data=b"x" * (layout.MAX_DATA + 1))])
    async with bus.subscribe(QUEUE, 10) as subscription:
        assert (raised.value.size, raised.value.limit) == (layout.MAX_DATA + 1, layout.MAX_DATA)
        assert subscription.take() == []


async def test_prefetch_bounds_what_is_unsettled_in_events_and_bytes(clock: Clock) -> None:
    async with MemoryBus(prefetch_bytes=1500, clock=clock).open() as bus, bus.subscribe(QUEUE, 3) as subscription:
        await bus.publish([record(f"{number}") for number in range(5)])
        by_events = subscription.take()
        subscription.settle(by_events[:1])
        after_one = subscription.take()
        subscription.prefetch = 1
        subscription.settle([*by_events[1:], *after_one])
        lowered = subscription.take()
        subscription.settle(lowered)
        subscription.prefetch = 10
        await bus.publish([record(f"big{number}", data=b"x" * 1000) for number in range(3)])

        assert [len(by_events), len(after_one), len(lowered)] == [3, 1, 1]
        assert len(subscription.take()) == 2, "the second reaches the limit of bytes"


async def test_iteration_wakes_by_the_real_clock_and_ends_after_stop() -> None:
    queue = Queue("test--f", ("orders.*",), ack_wait=0.05)
    async with MemoryBus().open() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record("1")])
        counts = []
        async for [delivery] in subscription:
            counts.append(delivery.deliveries)
            if len(counts) == 3:
                subscription.settle([delivery])
                subscription.stop()

        assert counts == [1, 2, 3]


async def test_two_workers_share_a_queue_and_take_over_from_each_other(bus: Memory, clock: Clock) -> None:
    await bus.publish([record("1"), record("2")])
    async with bus.subscribe(QUEUE, 1) as one:
        async with bus.subscribe(QUEUE, 1) as two:
            taken = datas(one.take() + two.take())
        pass_time(bus, clock, 31)
        one.prefetch = 10

        assert taken == [b"1", b"2"]
        assert datas(one.take()) == [b"1", b"2"]


async def test_a_reader_that_waits_sees_what_is_published(bus: Memory) -> None:
    async with bus.subscribe(QUEUE, 10) as subscription, asyncio.TaskGroup() as group:
        reader = group.create_task(_first(subscription))
        await asyncio.sleep(0)
        await bus.publish([record("1")])

        assert datas(await reader) == [b"1"]


async def test_what_does_not_exist_is_refused_and_a_closed_bus_is_unavailable(bus: Memory) -> None:
    with pytest.raises(BusRefused, match="test--f") as unknown:
        await bus.lag(QUEUE)
    with pytest.raises(BusRefused, match="no stream"):
        await bus.publish([Record("nowhere.x", "id", b"", b"")])
    bus.close()
    with pytest.raises(BusUnavailable):
        await bus.publish([record("1")])

    assert unknown.value.code == 10014
