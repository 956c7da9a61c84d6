"""What becomes of an event that a function sent to a sink, whatever its system does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from broker_faas.bus import Queue, Record, Subscription
from broker_faas.buses.memory import Memory, MemoryBus
from broker_faas.connectors import sink as module
from broker_faas.connectors.sink import Outlet, Undelivered
from broker_faas.errors import BusRefused, BusUnavailable, SinkRefused
from broker_faas.event import CloudEvent
from broker_faas.layout import event_record, faas_headers, sink_queue
from broker_faas.retry import RetryPolicy
from tests.helpers import eventually
from tests.sinks import ScriptedSink

QUEUE = sink_queue("shop", "out")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_PAUSE", 0.005)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)


@pytest_asyncio.fixture
async def bus() -> AsyncIterator[Memory]:
    async with MemoryBus().open() as bus:
        yield bus


def made(ids: Iterable[str], topic: str = "out:orders.done", key: str | None = "k") -> list[Record]:
    return [event_record(topic, CloudEvent(type="t", source="/s", id=id, data={"id": id}, partitionkey=key)) for id in ids]


def numbered(n: int) -> list[str]:
    return [str(number) for number in range(n)]


@asynccontextmanager
async def running(bus: Memory, sink: ScriptedSink, **retry: float) -> AsyncIterator[Outlet]:
    policy = RetryPolicy(**{"min_backoff": 0.01, "max_backoff": 0.02, **retry})  # type: ignore[arg-type]
    outlet = Outlet("out", sink, QUEUE, bus, policy, "scripted")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outlet.run(stop))
        yield outlet
        stop.set()
        async with asyncio.timeout(10):
            await task


async def dead(bus: Memory) -> list[tuple[str, dict[str, str]]]:
    """(id, our headers) of each dead letter, read as an operator would."""
    records = [record for record, _ in bus._streams["dead"].log.values()]
    return [(CloudEvent.from_headers(record.headers, record.data).id, faas_headers(record.headers)) for record in records]


async def settled(bus: Memory) -> bool:
    try:
        return (await bus.lag(QUEUE)).total == 0
    except BusRefused:  # the queue is not made yet
        return False


async def test_events_arrive_in_order_with_their_target_and_leave_the_bus(bus: Memory) -> None:
    sink = ScriptedSink()
    await bus.publish(made(numbered(25)) + made(["other"], "else:orders.done") + made(["plain"], "orders.done"))
    async with running(bus, sink) as outlet:
        await eventually(lambda: len(sink.ids) == 25)
        await bus.publish(made(["late"], "out:mail"))
        await eventually(lambda: len(sink.ids) == 26)
        await eventually(lambda: settled(bus))

    assert sink.ids == [*numbered(25), "late"]
    assert [one.target for one in sink.received] == ["orders.done"] * 25 + ["mail"]
    assert sink.received[0].event == CloudEvent(type="t", source="/s", id="0", data={"id": "0"}, partitionkey="k")
    assert (outlet.status.delivered, outlet.status.dead, outlet.status.state) == (26, 0, "ended")


async def test_what_was_sent_before_the_sink_ran_for_the_first_time_is_delivered(bus: Memory) -> None:
    sink = ScriptedSink()
    await bus.publish(made(["early"]))
    async with running(bus, sink):
        await eventually(lambda: sink.ids == ["early"])


async def test_nothing_is_settled_before_the_system_has_confirmed_it(bus: Memory) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    await bus.publish(made(numbered(5)))
    async with running(bus, sink) as outlet:
        await eventually(lambda: outlet.status.held == 5)
        before = (await bus.lag(QUEUE)).total
        sink.gate.set()
        await eventually(lambda: settled(bus))

    assert before == 5


async def test_a_sink_that_is_away_costs_no_attempt_and_no_order(bus: Memory) -> None:
    sink = ScriptedSink(away=True)
    await bus.publish(made(numbered(30)))
    async with running(bus, sink, max_attempts=1) as outlet:
        await eventually(lambda: sink.opens > 5)
        sink.away = False
        await eventually(lambda: len(sink.ids) == 5 or len(sink.ids) >= 10)
        sink.away = True
        await eventually(lambda: outlet.status.state == "connecting" or len(sink.ids) == 30)
        sink.away = False
        await eventually(lambda: len(sink.ids) == 30)

    assert sink.ids == numbered(30)
    assert outlet.status.dead == outlet.status.retried == 0


async def test_connections_that_fall_whatever_is_sent_are_nobodys_fault(bus: Memory) -> None:
    sink = ScriptedSink(falls=25)
    await bus.publish(made(numbered(30)))
    async with running(bus, sink, max_attempts=1) as outlet:
        await eventually(lambda: len({*sink.ids}) == 30)
        await eventually(lambda: settled(bus))

    assert outlet.status.dead == outlet.status.retried == 0


async def test_one_that_is_not_taken_comes_again_and_keeps_nobody_waiting(bus: Memory) -> None:
    sink = ScriptedSink(answers={"1": [Undelivered("busy"), Undelivered("busy")]})
    await bus.publish(made(numbered(4)))
    async with running(bus, sink) as outlet:
        await eventually(lambda: len(sink.ids) == 4)

    assert sink.ids == ["0", "2", "3", "1"]
    assert (outlet.status.delivered, outlet.status.retried, outlet.status.error) == (4, 2, "busy")


async def test_attempts_run_out_and_a_dead_letter_says_why(bus: Memory) -> None:
    sink = ScriptedSink(answers={"1": [Undelivered("no topic 'x'")] * 3})
    await bus.publish(made(numbered(3)))
    async with running(bus, sink, max_attempts=3) as outlet:
        await eventually(lambda: outlet.status.dead == 1)
        await eventually(lambda: settled(bus))
    [(id, said)] = await dead(bus)

    assert (id, said["reason"], said["attempts"], said["topic"]) == ("1", "no topic 'x'", "3", "out:orders.done")
    assert sorted(sink.ids) == ["0", "2"]


async def test_what_no_attempt_helps_is_dead_at_once(bus: Memory) -> None:
    sink = ScriptedSink(answers={"0": [Undelivered("too large", again=False)]})
    await bus.publish(made(numbered(2)))
    async with running(bus, sink) as outlet:
        await eventually(lambda: outlet.status.dead == 1)
    [(id, said)] = await dead(bus)

    assert (id, said["reason"], said["attempts"]) == ("0", "too large", "1")


async def test_a_long_pause_is_scheduled_and_the_event_comes_to_the_sink_again(bus: Memory) -> None:
    sink = ScriptedSink(answers={"0": [Undelivered("come back later", after=31.0)]})
    await bus.publish(made(["0"]))
    async with running(bus, sink):
        await eventually(lambda: bus.due())
        scheduled = (await bus.lag(QUEUE)).scheduled
        now = bus.clock()
        bus.clock = lambda: now + 40
        bus.wake()
        await eventually(lambda: sink.ids == ["0"])

    assert scheduled == 1
    assert sink.received[0].target == "orders.done"


async def test_an_event_that_takes_the_connection_down_is_found_and_the_others_get_through(bus: Memory) -> None:
    sink = ScriptedSink(kills={"7"})
    await bus.publish(made(numbered(20)))
    async with running(bus, sink, max_attempts=2) as outlet:
        await eventually(lambda: outlet.status.dead == 1)
        await eventually(lambda: settled(bus))
    [(id, said)] = await dead(bus)

    assert set(sink.ids) == {*numbered(20)} - {"7"}
    assert id == "7"
    assert "connection was lost" in said["reason"]


async def test_the_only_event_is_never_found_guilty_of_an_outage(bus: Memory) -> None:
    sink = ScriptedSink(kills={"0"})
    await bus.publish(made(["0"]))
    async with running(bus, sink, max_attempts=1) as outlet:
        await eventually(lambda: sink.opens > 20)
        sink.kills.clear()
        await eventually(lambda: sink.ids == ["0"])

    assert outlet.status.dead == 0


@pytest.mark.parametrize("falls", range(8))
async def test_the_only_event_is_delivered_once_after_any_number_of_lost_connections(bus: Memory, falls: int) -> None:
    sink = ScriptedSink(falls=falls)
    await bus.publish(made(["0"]))
    async with running(bus, sink, max_attempts=1) as outlet:
        await eventually(lambda: settled(bus))

    assert sink.ids == ["0"]
    assert (outlet.status.delivered, outlet.status.dead) == (1, 0)


async def test_what_is_no_event_is_a_dead_letter_and_the_rest_goes_on(bus: Memory) -> None:
    sink = ScriptedSink()
    [record] = made(["1"])
    await bus.publish([record._replace(headers=b"ce-id: x\r\n", msg_id="broken"), record])
    async with running(bus, sink) as outlet:
        await eventually(lambda: sink.ids == ["1"])
        await eventually(lambda: outlet.status.dead == 1)
    [(letter, _)] = bus._streams["dead"].log.values()

    assert "is no event" in faas_headers(letter.headers)["reason"]


async def test_a_dead_letter_waits_for_a_bus_that_is_away(bus: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ScriptedSink(answers={"0": [Undelivered("no", again=False)]})
    await bus.publish(made(["0"]))
    publish, refused = bus.publish, 3

    async def failing(records: list[Record], *, output: bool = False) -> int:
        nonlocal refused
        if refused:
            refused -= 1
            raise BusUnavailable("away")
        return await publish(records, output=output)

    monkeypatch.setattr(bus, "publish", failing)
    async with running(bus, sink):
        await eventually(lambda: settled(bus))

    assert refused == 0
    assert len(await dead(bus)) == 1


async def test_a_bus_that_cannot_be_had_at_the_start_is_waited_for(bus: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, subscribe, refused = ScriptedSink(), bus.subscribe, [True]

    @asynccontextmanager
    async def failing(queue: Queue, prefetch: int) -> AsyncIterator[Subscription]:
        if refused:
            refused.clear()
            raise BusUnavailable("away")
        async with subscribe(queue, prefetch) as subscription:
            yield subscription

    monkeypatch.setattr(bus, "subscribe", failing)
    await bus.publish(made(["0"]))
    async with running(bus, sink):
        await eventually(lambda: sink.ids == ["0"])

    assert not refused


async def test_a_drain_sends_what_is_held(bus: Memory) -> None:
    sink = ScriptedSink(most=2)
    sink.gate.clear()
    await bus.publish(made(numbered(9)))
    async with running(bus, sink) as outlet:
        await eventually(lambda: outlet.status.held == 9)
        asyncio.get_running_loop().call_later(0.05, sink.gate.set)

    assert sink.ids == numbered(9)
    assert await settled(bus)


async def test_a_drain_while_the_sink_is_away_hands_everything_back(bus: Memory) -> None:
    sink = ScriptedSink(away=True)
    await bus.publish(made(numbered(9)))
    async with running(bus, sink) as outlet:
        await eventually(lambda: outlet.status.held == 9)
    sink.away = False
    async with running(bus, sink):
        await eventually(lambda: len(sink.ids) == 9)

    assert sink.ids == numbered(9)


async def test_an_outlet_that_is_cancelled_hands_back_what_it_did_not_hear_of(bus: Memory) -> None:
    sink = ScriptedSink()
    sink.gate.clear()
    await bus.publish(made(numbered(3)))
    outlet = Outlet("out", sink, QUEUE, bus, RetryPolicy())
    task = asyncio.ensure_future(outlet.run(asyncio.Event()))
    await eventually(lambda: outlet.status.held == 3)
    task.cancel()
    await asyncio.wait([task])
    sink.gate.set()
    async with running(bus, sink):
        await eventually(lambda: len(sink.ids) == 3)

    assert task.cancelled()


async def test_a_sink_that_says_no_ends_the_process(bus: Memory) -> None:
    class Refusing(ScriptedSink):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[ScriptedSink]:
            raise SinkRefused("the login is not valid")
            yield self

    outlet = Outlet("out", Refusing(), QUEUE, bus, RetryPolicy())
    with pytest.raises(SinkRefused, match="login"):
        async with asyncio.timeout(5):
            await outlet.run(asyncio.Event())


async def test_an_event_held_beyond_its_lease_is_sent_once_and_settled_with_its_new_token(bus: Memory) -> None:
    queue = Queue(QUEUE.name, QUEUE.topics, start="first", ack_wait=0.05)
    sink = ScriptedSink()
    sink.gate.clear()
    outlet = Outlet("out", sink, queue, bus, RetryPolicy())
    outlet._renew = lambda subscription: asyncio.sleep(3600)  # type: ignore[method-assign]  # a process that was stopped renews nothing
    stop = asyncio.Event()
    await bus.publish(made(["0"]))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outlet.run(stop))
        await eventually(lambda: outlet._held and next(iter(outlet._held.values())).deliveries > 2)
        sink.gate.set()
        await eventually(lambda: settled(bus))
        stop.set()

    assert sink.ids == ["0"]
