"""Cron connectors on a real bus, on clocks that tests turn: every time that a schedule names is an event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from broker_faas.buses import store
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.buses.store import stored
from broker_faas.connectors import pump as module
from broker_faas.connectors.batch import Route
from broker_faas.connectors.cron import PARTITION, CronConnector
from broker_faas.connectors.pump import Pump
from broker_faas.embedded import Server
from broker_faas.errors import SourceRefused
from broker_faas.event import CloudEvent
from broker_faas.layout import EVENTS, position_record, position_subject

from ..helpers import OwnNats, eventually
from ..proxy import Proxy

START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


class Hand:
    """A clock that stands still. turn(): time goes by. set(): somebody sets the wall clock, and nobody who sleeps hears of it."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._ticks = 0.0
        self._sleepers: dict[asyncio.Event, float] = {}

    def now(self) -> datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        self._sleepers[awake] = self._ticks + seconds
        try:
            await awake.wait()
        finally:
            del self._sleepers[awake]

    async def turn(self, seconds: float) -> None:
        """Returns when whoever slept until then has looked, and sleeps again or is busy."""
        self._now += timedelta(seconds=seconds)
        self._ticks += seconds
        for awake, until in self._sleepers.items():
            if until <= self._ticks:
                awake.set()
        await asyncio.sleep(0)

    def set(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    @property
    def asleep(self) -> bool:
        return any(not awake.is_set() for awake in self._sleepers)


class Replica:
    def __init__(self, pump: Pump, clock: Hand, bus: JetStreamBus) -> None:
        self.pump, self.clock, self.bus = pump, clock, bus

    async def turn(self, seconds: float) -> None:
        await eventually(lambda: self.clock.asleep)
        await self.clock.turn(seconds)


@asynccontextmanager
async def replica(url: str, now: datetime = START, name: str = "tick", **options: Any) -> AsyncIterator[Replica]:
    """A pump that runs, with a clock of its own."""
    hand = Hand(now)

    class Turned(CronConnector):
        clock = hand

    connector = Turned(**{"schedule": "* * * * *"} | options)
    async with NatsBus(url, try_timeout=0.5).open() as bus:
        pump = Pump(connector, Route(name=name, source=f"/shop/{name}", to="ticks"), bus, partial(store.position, bus, name))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(pump.run(stop))
            await eventually(lambda: hand.asleep or pump.status.stored or task.done())
            yield Replica(pump, hand, bus)
            stop.set()


async def position(bus: JetStreamBus, partition: str = PARTITION, name: str = "tick") -> str | None:
    found = await stored(bus, EVENTS, last_by_subj=position_subject(name, partition))
    return found.data.decode() if found else None


async def fired(bus: JetStreamBus) -> list[str]:
    """Times of the events stored, in the bus's order: `12:01:00`."""
    return [event.id[-9:-1] for event in await events(bus)]


async def newest(bus: JetStreamBus, time: str) -> None:
    """Returns when the event of this time is the last one stored."""

    async def is_it() -> bool:
        return (await fired(bus))[-1:] == [time]

    await eventually(is_it)


async def events(bus: JetStreamBus) -> list[CloudEvent]:
    found, seq = [], 1
    while one := await stored(bus, EVENTS, next_by_subj="ev.>", seq=seq):
        found.append(CloudEvent.from_headers(one.headers, one.data))
        seq = one.seq + 1
    return found


def minutes(first: int, last: int) -> list[str]:
    return [f"12:{minute:02}:00" for minute in range(first, last + 1)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.5)


# --- what an event is ---------------------------------------------------------------------------------------


async def test_an_event_says_when_it_should_have_been_and_which_schedule_it_is_of(bus_url: str) -> None:
    async with replica(bus_url, data={"report": "daily"}, jitter=20) as one:
        await one.turn(60)
        await eventually(lambda: one.pump.status.stored == 1)
        [event] = await events(one.bus)

    assert (event.id, event.time, event.source) == ("tick/2026-03-01T12:01:00Z", "2026-03-01T12:01:00Z", "/shop/tick")
    assert (event.type, event.partitionkey, event.json()) == ("cron.fired", "tick", {"report": "daily"})


# --- once ---------------------------------------------------------------------------------------------------


async def test_three_replicas_whose_clocks_differ_fire_every_time_once(bus_url: str) -> None:
    async with (
        replica(bus_url) as a,
        replica(bus_url, START + timedelta(seconds=25)) as b,
        replica(bus_url, START - timedelta(seconds=25)) as c,
    ):
        for _ in range(10):
            await asyncio.gather(*(one.turn(30) for one in (a, b, c)))
        await eventually(lambda: a.clock.asleep and b.clock.asleep and c.clock.asleep)
        times = await fired(a.bus)

    assert minutes(1, len(times)) == times
    assert len(times) >= 5


async def test_a_restart_does_not_fire_again(bus_url: str) -> None:
    async with replica(bus_url) as one:
        await one.turn(60)
        await eventually(lambda: one.pump.status.stored == 1)
    async with replica(bus_url, START + timedelta(seconds=40)) as again:
        await again.turn(30)
        await again.turn(30)
        await eventually(lambda: again.pump.status.stored == 1)
        times = await fired(again.bus)

    assert times == minutes(1, 2)
    assert again.pump.status.repeated == 0


async def test_a_clock_that_is_set_back_fires_nothing_again(bus_url: str) -> None:
    async with replica(bus_url) as one:
        await one.turn(120)
        await eventually(lambda: one.pump.status.stored == 1)
        one.clock.set(-100)
        for _ in range(6):
            await one.turn(30)
        await eventually(lambda: one.pump.status.stored == 2)
        times = await fired(one.bus)

    assert times == ["12:02:00", "12:03:00"]


async def test_a_replica_that_thaws_late_fires_nothing_that_another_has_stored(bus_url: str) -> None:
    """It asks before it fires; the ids, which the bus forgets after two minutes, are not needed."""
    async with replica(bus_url) as frozen, replica(bus_url) as awake:
        for minute in minutes(1, 5):
            await awake.turn(60)
            await newest(awake.bus, minute)
        await frozen.turn(302)
        await eventually(lambda: frozen.clock.asleep)
        await frozen.turn(60)
        await eventually(lambda: frozen.pump.status.stored == 1)
        times = await fired(awake.bus)

    assert times == minutes(1, 6)
    assert (frozen.pump.status.read, frozen.pump.status.repeated) == (1, 0)


async def test_a_replica_that_was_cut_off_publishes_nothing_old_when_it_is_back(nats_server: Server, bus_url: str) -> None:
    async with Proxy(nats_server.port).open() as proxy, replica(proxy.url(bus_url)) as lonely, replica(bus_url) as other:
        await asyncio.gather(lonely.turn(30), other.turn(30))
        await eventually(lambda: lonely.pump.status.stored + other.pump.status.stored and lonely.clock.asleep and other.clock.asleep)
        proxy.accepting = False
        proxy.cut()
        await eventually(lambda: not lonely.bus.connected)
        await lonely.turn(60)
        for minute in minutes(2, 5):
            await other.turn(60)
            await newest(other.bus, minute)
        await eventually(lambda: lonely.pump.status.state != "reading", 30)  # asks the bus, or waits until it has the first fire
        proxy.accepting = True
        await lonely.clock.turn(180)
        await eventually(lambda: lonely.pump.status.state == "reading" and lonely.clock.asleep, 30)
        times = await fired(other.bus)

    assert times == minutes(1, 5)
    assert lonely.pump.status.read <= 1


async def test_by_the_machines_own_clock_it_fires_every_second(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        connector = CronConnector(schedule="* * * * * *")
        pump = Pump(connector, Route(name="tick", source="/shop/tick"), bus, partial(store.position, bus, "tick"))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump.run(stop))
            await eventually(lambda: pump.status.stored >= 3)
            stop.set()
        first = await stored(bus, EVENTS, next_by_subj="ev.cron.>", seq=1)
        times = [event.timestamp for event in await events(bus)]

    assert first
    assert times[0]
    assert 0 < first.stored_at - times[0].timestamp() < 5
    assert [(after - before).total_seconds() for before, after in pairwise(filter(None, times))] == [1.0] * (len(times) - 1)


# --- what was missed ----------------------------------------------------------------------------------------

GAPS = [
    ("last", 5, ["12:05:00"]),
    ("skip", 5, []),
    ("all", 5, minutes(2, 5)),
    ("all", 50, minutes(2, 50)),
]


@pytest.mark.parametrize(("catch_up", "minute", "expected"), GAPS)
async def test_after_a_restart_the_policy_says_what_of_the_missed_is_fired(
    bus_url: str, catch_up: str, minute: int, expected: list[str]
) -> None:
    async with replica(bus_url, catch_up=catch_up) as one:
        await one.turn(30)
        await eventually(lambda: one.pump.status.stored == 1)
    async with replica(bus_url, START.replace(minute=minute), catch_up=catch_up) as again:
        await again.turn(30)
        await eventually(lambda: again.pump.status.stored == len(expected) + 1)
        times = await fired(again.bus)

    assert times == ["12:01:00", *expected, f"12:{minute + 1:02}:00"]


@pytest.mark.parametrize(("catch_up", "expected"), [(policy, expected) for policy, minute, expected in GAPS if minute == 5])
async def test_a_clock_that_is_set_forward_is_a_gap(bus_url: str, catch_up: str, expected: list[str]) -> None:
    async with replica(bus_url, catch_up=catch_up) as one:
        await one.turn(30)
        await eventually(lambda: one.pump.status.stored == 1)
        one.clock.set(270)
        await one.turn(1)
        await eventually(lambda: one.pump.status.stored == 1 + len(expected))
        times = await fired(one.bus)

    assert times == ["12:01:00", *expected]


async def test_nothing_older_than_an_hour_and_no_more_than_a_hundred_are_caught_up(bus_url: str) -> None:
    async with replica(bus_url, schedule="*/10 * * * * *", catch_up="all") as one:
        await one.turn(10)
        await eventually(lambda: one.pump.status.stored == 1)
        one.clock.set(5 * 3600)
        await one.turn(5)
        await eventually(lambda: one.pump.status.stored == 101)
        times = await fired(one.bus)
    async with replica(bus_url, START + timedelta(days=1), schedule="0 12 * * *", catch_up="all", name="noon") as late:
        await late.bus.publish([position_record("noon", PARTITION, "2026-02-27T12:00:00Z")])
    async with replica(bus_url, START + timedelta(days=1, hours=1), schedule="0 12 * * *", catch_up="all", name="noon") as late:
        await late.turn(1)
        await eventually(lambda: late.clock.asleep)

    assert times[-1] == "17:00:40"
    assert times[1] == "16:44:10"
    assert late.pump.status.read == 0


async def test_before_the_first_fire_there_is_nothing_to_catch_up(bus_url: str) -> None:
    async with replica(bus_url, catch_up="all") as one:
        await one.turn(1)
        await eventually(lambda: one.clock.asleep)

    assert one.pump.status.read == 0


@pytest.mark.parametrize(("catch_up", "expected"), [("last", ["12:01:00", "12:07:00"]), ("skip", ["12:01:00"]), ("all", minutes(1, 7))])
async def test_a_bus_that_was_away_over_several_fires_gets_what_the_policy_says(
    own_nats: Callable[..., Awaitable[OwnNats]], catch_up: str, expected: list[str]
) -> None:
    server = await own_nats()
    async with replica(server.url, catch_up=catch_up) as one:
        await one.turn(30)
        await eventually(lambda: one.pump.status.stored == 1)
        await eventually(lambda: one.clock.asleep)
        await server.kill()
        await eventually(lambda: not one.bus.connected)
        await one.turn(60)  # it asks the bus, which does not answer
        await eventually(lambda: one.pump.status.state == "connecting", 30)
        await one.clock.turn(330)
        await server.start()
        await eventually(lambda: one.pump.status.stored == len(expected), 30)
        await eventually(lambda: one.pump.status.state == "reading" and one.clock.asleep, 30)
        times = await fired(one.bus)

    assert times == expected


# --- what cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored_", "says"), [("2026-03-03T12:00:00Z", "ahead of this machine's clock"), ("yesterday", "'yesterday', is no time")]
)
async def test_a_position_that_cannot_be_is_refused_and_not_waited_for(bus_url: str, stored_: str, says: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        await bus.publish([position_record("tick", PARTITION, stored_)])
    with pytest.raises(ExceptionGroup) as raised:
        async with replica(bus_url):
            pass

    assert raised.group_contains(SourceRefused, match=says)
