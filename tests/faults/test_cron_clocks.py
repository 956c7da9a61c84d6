"""A process whose wall clock is set, and whose bus goes away: of what was missed comes exactly what catch_up says. LONG=1: for minutes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ..helpers import OwnNats, eventually
from .ticking import CLOCK, LONG, RECOVERY, Fire, Ticking, fires, mismatches

pytestmark = pytest.mark.timeout(300)
Own = Callable[..., Awaitable[OwnNats]]
POLICIES = ("skip", "last", "all")
TOML = '[[connector]]\nname = "{0}"\ntype = "cron"\nto = "ticks"\nschedule = "{1}"\ncatch_up = "{0}"\n'
DAY = "2026-03-01T"
ON_TIME, MOST = 10.0, 100  # as docs/connectors/cron.md has them


class Wall:
    """The clock of a process."""

    def __init__(self, ticking: Ticking) -> None:
        self._ticking = ticking
        self._ahead = 0.0

    def set(self, clock: str) -> None:
        self._ahead = _unix(clock) - time.time()
        self._ticking.ahead(0, self._ahead)

    async def passes(self, clock: str) -> None:
        await eventually(lambda: time.time() + self._ahead > _unix(clock), 30)


def _unix(clock: str) -> float:
    return datetime.fromisoformat(f"{DAY}{clock}Z").timestamp()


@asynccontextmanager
async def policies(folder: Path, url: str, schedule: str, first: str = "") -> AsyncIterator[tuple[Ticking, Wall]]:
    """A process with a connector of each policy, each of which has fired. first: its clock when it is ready."""
    ticking = Ticking(folder, "".join(TOML.format(policy, schedule) for policy in POLICIES), [url], {}, [CLOCK])
    wall = Wall(ticking)
    if first:
        wall.set("12:00:00")
    async with ticking.running():
        if first:
            wall.set(first)
        await eventually(lambda: _all_fired(url), 60)
        yield ticking, wall


async def _all_fired(url: str) -> bool:
    return {fire.connector for fire in await fires(url)} == {*POLICIES}


async def has(url: str, clock: str, *connectors: str) -> None:
    """Until the bus has the fire of this time of all of them."""

    async def there() -> bool:
        return {*connectors} <= {fire.connector for fire in await fires(url) if fire.time == _unix(clock)}

    await eventually(there, 60)


async def clocks(url: str) -> dict[str, list[str]]:
    """By connector, in the order in which they were stored."""
    found: dict[str, list[str]] = {policy: [] for policy in POLICIES}
    for fire in await fires(url):
        found[fire.connector].append(f"{datetime.fromtimestamp(fire.time, UTC):%H:%M}")
    return found


def minutes(hour: int, first: int, last: int) -> list[str]:
    return [f"{hour}:{minute:02}" for minute in range(first, last + 1)]


async def test_after_a_dozen_times_without_a_bus_each_policy_gives_what_it_says(own_nats: Own, tmp_path: Path) -> None:
    server = await own_nats()
    async with policies(tmp_path, server.url, "* * * * *", "12:00:57") as (_, wall):
        await server.kill()
        wall.set("12:13:15")
        await server.start()
        back = time.time()
        await has(server.url, "12:13:00", "last", "all")
        took = time.time() - back
        wall.set("12:13:58")
        await has(server.url, "12:14:00", *POLICIES)
        found = await clocks(server.url)

    assert {"skip": ["12:01", "12:14"], "last": ["12:01", "12:13", "12:14"], "all": minutes(12, 1, 14)} == found
    assert took < RECOVERY


async def test_a_clock_that_is_set_two_hours_forward_and_back_gives_what_each_policy_says_and_repeats_nothing(
    bus_url: str, tmp_path: Path
) -> None:
    async with policies(tmp_path, bus_url, "* * * * *", "12:00:57") as (_, wall):
        wall.set("14:01:20")
        await has(bus_url, "14:01:00", "last", "all")
        wall.set("14:01:58")
        await has(bus_url, "14:02:00", *POLICIES)
        wall.set("12:02:58")
        await wall.passes("12:03:03")
        wall.set("14:02:58")
        await has(bus_url, "14:03:00", *POLICIES)
        found = await clocks(bus_url)

    after = ["14:02", "14:03"]

    assert ["12:01", *after] == found["skip"]
    assert ["12:01", "14:01", *after] == found["last"]
    assert ["12:01", *minutes(13, 2, 59), "14:00", "14:01", *after] == found["all"]  # of the last hour


@pytest.mark.skipif(not LONG, reason="takes minutes: LONG=1; above it is shown on a clock that is set")
async def test_after_two_minutes_without_a_bus_each_policy_gives_what_it_says_by_the_machines_own_clock(
    own_nats: Own, tmp_path: Path
) -> None:
    server = await own_nats()
    async with policies(tmp_path, server.url, "* * * * * *") as _:
        await server.kill()
        gone = int(time.time()) + 1
        await asyncio.sleep(MOST + 25)
        await server.start()
        back = time.time()

        async def goes_on() -> bool:
            return {fire.connector for fire in await fires(server.url) if fire.time > back + RECOVERY} == {*POLICIES}

        await eventually(goes_on, 60)
        found = await fires(server.url)

    for policy in POLICIES:
        ours = [fire for fire in found if fire.connector == policy]
        [first, *_] = late = [fire for fire in ours if fire.stored > back]
        print(f"{policy}: {len(late)} fires, the first one of {first.stored - first.time:.2f} s before, {first.stored - back:.2f} s after")

        assert first.stored - back < RECOVERY
        assert [] == mismatches(late, range(_expected(policy, late, gone), late[-1].time + 1))


def _expected(policy: str, late: list[Fire], gone: int) -> int:
    """The first target that comes after the outage: of those at once, the latest 100; else of those that count as on time."""
    asked = late[0].stored - 0.02
    if policy == "all":
        return max(gone, int(asked) - MOST + 1)
    return next(at for at in range(gone, int(asked) + 1) if asked - at <= ON_TIME or (asked - at < ON_TIME + 1 and at == late[0].time))
