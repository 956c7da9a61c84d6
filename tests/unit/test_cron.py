"""Options of a cron connector, what it spreads, and what it shows beforehand."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker_faas.bus import Position
from broker_faas.config import ConnectorConfig
from broker_faas.connectors import pump
from broker_faas.connectors.batch import Route
from broker_faas.connectors.cron import CronConnector, Fires
from broker_faas.connectors.driver import driver
from broker_faas.connectors.pump import Pump
from broker_faas.errors import BusUnavailable, ConfigError, SourceUnavailable
from broker_faas.event import CloudEvent
from tests.sources import Store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Still:
    """A clock that says the same for ever."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")


def connector(**options: Any) -> CronConnector:
    places = {name: f"faas.toml:{n}" for n, name in enumerate(["type", *options], 3)}
    made = driver(ConnectorConfig(name="tick", type="cron", options=options, place="faas.toml:2", places=places))
    assert isinstance(made, CronConnector)
    return made


def fires(last: datetime, now: datetime, source: str = "/shop/tick", **options: Any) -> list[str]:
    """Times given at `now`, if those up to `last` were."""
    one = Fires(CronConnector(**options), source, never)
    one._passed(last)
    return [f"{time:%H:%M:%S}" for time in one.due(now)[0]]


async def never(partition: str) -> str | None:
    return None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "schedule"),
        ({"schedule": 5}, "schedule"),
        ({"schedule": "61 * * * *"}, "schedule '61 * * * *': minute '61' is none: it is 0 to 59, or *"),
        ({"schedule": "0 0 30 2 *"}, "schedule '0 0 30 2 *' never fires"),
        ({"schedule": "@daily", "tz": "Mars/Phobos"}, "tz 'Mars/Phobos' is no time zone"),
        ({"schedule": "@daily", "catch_up": "some"}, "faas.toml:5: connector 'tick': Invalid enum value 'some'"),
        ({"schedule": "@daily", "jitter": -1}, "jitter must be a number of seconds between 0 and 1800"),
        ({"schedule": "@daily", "jitter": float("nan")}, "jitter must be a number of seconds between 0 and 1800"),
        ({"schedule": "@daily", "data": "x" * 70_000}, "data of 70,000 bytes is more than 65,536"),
        ({"schedule": "@daily", "data": {"a": float("nan")}}, "makes no event: data holds NaN"),
        ({"schedule": "@daily", "event_type": ""}, "makes no event"),
        ({"schedule": "@daily", "clock": 1}, "has no option 'clock'"),
        ({"shedule": "@daily"}, "has no option 'shedule'; did you mean 'schedule'?"),
    ],
    ids=str,
)
def test_an_option_that_is_wrong_is_refused_with_its_place(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as raised:
        connector(**options)

    assert "faas.toml:" in str(raised.value)


@pytest.mark.parametrize(
    ("policy", "last", "now", "expected"),
    [
        ("last", 0, 59, []),
        ("last", 0, 60, ["12:01:00"]),
        ("skip", 0, 70, ["12:01:00"]),
        ("skip", 0, 71, []),
        ("last", 0, 71, ["12:01:00"]),
        ("last", 0, 190, ["12:03:00"]),
        ("last", 0, 200, ["12:03:00"]),
        ("all", 0, 200, ["12:01:00", "12:02:00", "12:03:00"]),
        ("all", 120, 200, ["12:03:00"]),
        ("all", 200, 0, []),
        ("last", -86400, -300, ["11:55:00"]),
    ],
)
def test_what_is_due_follows_from_the_last_fire_the_clock_and_the_policy(policy: str, last: int, now: int, expected: list[str]) -> None:
    options: dict[str, Any] = {"schedule": "* * * * *", "catch_up": policy}

    assert expected == fires(NOON + timedelta(seconds=last), NOON + timedelta(seconds=now), **options)


def test_what_is_due_stays_due_until_it_is_given() -> None:
    one = Fires(CronConnector(schedule="* * * * *"), "/shop/tick", never)
    one._passed(NOON)
    asked = [one.due(NOON + timedelta(seconds=60))[0] for _ in range(2)]
    one._passed(NOON + timedelta(seconds=60))

    assert [[NOON + timedelta(seconds=60)]] * 2 == asked
    assert one.due(NOON + timedelta(seconds=61)) == ([], NOON + timedelta(seconds=120))


def test_jitter_delays_by_what_source_and_time_say_and_keeps_the_order() -> None:
    one = CronConnector(schedule="* * * * *", jitter=30)
    times = [NOON + timedelta(minutes=n) for n in range(200)]
    delays = [one._delay("/shop/tick", time).total_seconds() for time in times]
    others = [one._delay(f"/shop/tick{n}", NOON).total_seconds() for n in range(200)]

    assert delays == [one._delay("/shop/tick", time).total_seconds() for time in times]
    assert min(delays) < 5
    assert 25 < max(delays) < 30
    assert min(others) < 5
    assert 25 < max(others) < 30
    assert fires(NOON, NOON + timedelta(seconds=60 + delays[1] - 0.001), schedule="* * * * *", jitter=30) == []
    assert fires(NOON, NOON + timedelta(seconds=60 + delays[1]), schedule="* * * * *", jitter=30) == ["12:01:00"]


@pytest.mark.parametrize(
    ("data", "datacontenttype", "written"),
    [
        (None, None, None),
        ({"report": [1]}, "application/json", b'{"report":[1]}'),
        (0, "application/json", b"0"),
        ("good night", "text/plain; charset=utf-8", b"good night"),
    ],
)
async def test_the_next_fires_are_shown_as_the_events_that_they_become(
    data: object, datacontenttype: str | None, written: bytes | None
) -> None:
    class Stopped(CronConnector):
        clock = Still()

    shown = await Stopped(schedule="0 9 * * MON", tz="Europe/Berlin", data=data).peek("/shop/tick", 5)
    (name, event), *_ = shown.items

    assert (len(shown.items), name) == (5, "cron")
    assert isinstance(event, CloudEvent)
    assert (event.id, event.time, event.source) == ("tick/2026-03-02T08:00:00Z", "2026-03-02T08:00:00Z", "/shop/tick")
    assert (event.type, event.datacontenttype, event.data) == ("cron.fired", datacontenttype, written)


async def test_a_bus_that_cannot_be_asked_is_a_source_to_come_again_to() -> None:
    async def away(partition: str) -> str | None:
        raise BusUnavailable("no connection")

    with pytest.raises(SourceUnavailable, match="the bus cannot tell which fires it has: no connection"):
        async with CronConnector(schedule="@daily").open("/shop/tick", away):
            pass


async def test_a_bus_that_is_away_for_long_is_asked_again_soon_for_it_has_been_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fires meanwhile: what is due when the bus is back must not wait for a pause that has grown."""
    pauses: list[float] = []

    async def away(partition: str) -> Position:
        raise BusUnavailable("no connection")

    async def recorded(stop: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 10:
            stop.set()

    monkeypatch.setattr(pump, "pausing", recorded)
    route = Route(name="tick", source="/shop/tick")
    await Pump(CronConnector(schedule="@daily"), route, Store(), away).run(asyncio.Event())  # type: ignore[arg-type]

    assert max(pauses) < 1
