"""Three processes with one schedule, killed, frozen and cut off around its times: each time is one event. LONG=1: for minutes.

The schedule names every second, so what was to be is known without the product. catch_up is "all": whatever stood still, none is missing.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from broker_faas.embedded import Server

from ..helpers import eventually
from ..proxy import Proxy
from .process import Process, state
from .ticking import LATE, LONG, RECOVERY, Ticking, fires, mismatches

pytestmark = pytest.mark.timeout(900 if LONG else 120)
only_long = pytest.mark.skipif(not LONG, reason="takes minutes: LONG=1; tests/integration/test_cron.py has it on clocks that are turned")
TOML = '[[connector]]\nname = "tick"\ntype = "cron"\nto = "ticks"\nschedule = "* * * * * *"\ncatch_up = "all"\n'
WINDOW = ("broker_faas.layout", "DUPLICATE_WINDOW = 120.0", "DUPLICATE_WINDOW = 1.0")  # seconds that the bus remembers ids
ORDER = ("batch-before-write", "batch-written", "batch-answered", "pump-quarantined", "pump-stored", "pump-before-ack", "pump-read")
POINTS = ORDER if LONG else ("batch-written", "pump-read")


@asynccontextmanager
async def ticking(folder: Path, *urls: str, crash: str = "") -> AsyncIterator[Ticking]:
    """Replicas that have fired. The first url is the bus's own; at the end every second since their first fire is one event, in time."""
    env = {"PYTHON_FAULTS_CRASH_AT": crash} if crash else {}
    replicas = Ticking(folder, TOML, urls, env, [WINDOW])
    async with replicas.running():
        await passed(urls[0], time.time())
        yield replicas
        over = time.time()
        await passed(urls[0], over)
    found = await fires(urls[0])
    worst = {
        allowed: max([late for late, limit in map(replicas.lateness, found) if limit == allowed], default=0.0)
        for allowed in (LATE, RECOVERY)
    }
    print(f"{len(found)} fires, the latest {worst[LATE]:.2f} s late")
    print(f"{len(replicas.away)} times nobody could fire; the latest {worst[RECOVERY]:.2f} s after one could again")

    assert [] == mismatches(found, range(found[0].time, found[-1].time + 1))
    assert found[-1].time >= int(over)
    assert all(late <= allowed for allowed, late in worst.items()), f"{worst}; nobody could fire: {replicas.away}"


async def passed(url: str, moment: float) -> None:
    """Until the bus has a fire of after this moment."""

    async def is_there() -> bool:
        return any(fire.time > moment for fire in await fires(url))

    await eventually(is_there, 60)


async def test_replicas_that_are_killed_around_their_fires_again_and_again_fire_each_time_once(bus_url: str, tmp_path: Path) -> None:
    chance = random.Random(seed := random.randrange(1_000_000))
    kills = 0
    async with ticking(tmp_path, bus_url, bus_url, bus_url) as replicas:
        for _ in range(20 if LONG else 2):
            victims = chance.sample(replicas.replicas, chance.choice([1, 1, 2, 3]))
            for victim in victims:
                await asyncio.wait_for(victim.up.wait(), 60)
            second = 1.0 - time.time() % 1
            await asyncio.sleep(max(0.0, second + chance.uniform(-0.06, 0.06)))
            statuses = await asyncio.gather(*(victim.kill() for victim in victims))
            kills += statuses.count(-signal.SIGKILL)
        print(f"seed {seed}: {kills} kills")

    assert kills >= (20 if LONG else 2)


@only_long
async def test_replicas_that_stand_still_over_several_fires_fire_none_again_and_leave_none_out(bus_url: str, tmp_path: Path) -> None:
    async with ticking(tmp_path, bus_url, bus_url, bus_url) as replicas:
        one, *_ = every = replicas.replicas
        for several, seconds in [([one], 30.0), (every, 30.0)]:
            for replica in several:
                assert await replica.pause() == "stopped"
            await asyncio.sleep(seconds)
            for replica in several:
                replica.resume()
            await fires_alone(replicas, [replica for replica in every if replica is not one], bus_url)


@only_long
async def test_a_replica_that_is_cut_off_from_the_bus_fires_nothing_again_when_it_is_back(
    nats_server: Server, bus_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(nats_server.port).open()) for _ in range(2)]
        replicas = await stack.enter_async_context(ticking(tmp_path, bus_url, *(proxy.url(bus_url) for proxy in proxies)))
        first, lonely, other = replicas.replicas
        for seconds in (4, 30):
            replicas.cut |= {lonely, other}
            proxies[0].freeze()
            proxies[1].accepting = False
            proxies[1].cut()
            await asyncio.sleep(seconds)
            proxies[0].thaw()
            proxies[1].accepting = True
            replicas.cut.clear()
            await fires_alone(replicas, [first], bus_url)


async def fires_alone(replicas: Ticking, frozen: list[Process], url: str) -> None:
    """The others have to: these stand still meanwhile."""
    began = time.time()
    for replica in frozen:
        await replica.pause()
    await passed(url, began)
    for replica in frozen:
        replica.resume()


async def test_a_replica_that_is_alone_and_dies_at_each_line_that_matters_fires_each_time_once(bus_url: str, tmp_path: Path) -> None:
    async with ticking(tmp_path, bus_url, crash=" ".join(f"{point}:2" for point in POINTS)) as replicas:
        await eventually(lambda: len(replicas.crashes()) == len(POINTS), 20 * len(POINTS))
        [alone] = replicas.replicas
        await asyncio.wait_for(alone.up.wait(), 60)

    assert {line.split()[0] for line in replicas.crashes()} == {*POINTS}
    assert alone.exits.count((-signal.SIGKILL, False)) == len(POINTS)


@pytest.mark.parametrize("where", ["pump-read", "batch-before-write"] if LONG else ["pump-read"])
async def test_a_replica_that_stood_still_between_asking_and_firing_is_refused_however_late(
    bus_url: str, tmp_path: Path, where: str
) -> None:
    """By then the bus has forgotten the ids."""
    async with ticking(tmp_path, bus_url, bus_url) as replicas:
        one, other = replicas.replicas
        await other.pause()
        one.env |= {"PYTHON_FAULTS_CRASH_AT": f"{where}:2", "PYTHON_FAULTS_SIGNAL": "SIGSTOP"}
        await one.kill()
        await eventually(lambda: one.running and state(one.pid) == "T", 60)
        other.resume()
        await passed(bus_url, time.time() + 3)
        os.kill(one.pid, signal.SIGCONT)
        await passed(bus_url, time.time() + 1)
        await fires_alone(replicas, [other], bus_url)
