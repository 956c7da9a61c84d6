"""Three nats-servers that are one bus: nodes killed, frozen, cut off, restarted, without power."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

from ...helpers import eventually
from ..cluster import Node, end
from ..process import state
from ..run import Run
from ..scenario import scenario

HELD = 12.0  # seconds that a node is frozen or cut off: longer than the 10 s after which a leader without followers steps down
options = partial(scenario, nodes=3, lease=10.0, needs=("root", "nft"))


@options("F26-kill", "the node that leads the events stream is killed", proves=("I-D1", "I-U4", "I-L3"))
async def leader_killed(run: Run) -> None:
    for _ in range(run.times(5, short=2)):
        await run.pause(1, 3)
        await run.kill((await run.cluster.leader()).server, duplicates=_all(run))
        await working(run)


@options("F26-freeze", "the node that leads the events stream stands still for 12 s", proves=("I-D1", "I-U4", "I-L3"), short=False)
async def leader_frozen(run: Run) -> None:
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        leader = await run.cluster.leader()
        await run.freeze(leader.server.pid, leader.name, HELD, duplicates=_all(run))
        await working(run)


@options("F26-restart", "the nodes are restarted one after the other", proves=("I-D1", "I-U4", "I-L3"), short=False)
async def rolling_restart(run: Run) -> None:
    """Short: SIGTERM. Long: once more as lame ducks (SIGUSR2), which hand over first."""
    for lame_duck in (False,) if run.short else (False, True):
        for node in run.random.sample(run.cluster.nodes, 3):
            await restart(run, node, lame_duck=lame_duck)
            await run.pause(1, 2)


@options("F26-partition", "the leader alone, then a follower alone, for 12 s each", proves=("I-D1", "I-U4", "I-L3"), short=False)
async def partitioned(run: Run) -> None:
    for leads in (True,) if run.short else (True, False, True, False):
        await run.pause(1, 3)
        leader = await run.cluster.leader()
        followers = [node for node in run.cluster.nodes if node is not leader]
        await cut_off(run, leader if leads else run.random.choice(followers), HELD)
        await working(run)


@options("KC", "all three nodes are killed at once", proves=("I-D1", "I-U4", "I-L3"), short=False)
async def all_killed(run: Run) -> None:
    for _ in range(run.times(3, short=1)):
        await run.pause(2, 4)
        async with run.fault("kill all nodes") as seen:
            run.duplicates += _all(run)
            statuses = await asyncio.gather(*[server.kill() for server in run.cluster.servers])
            assert set(statuses) == {-signal.SIGKILL}, statuses
            seen(f"ended with {statuses}")
            await asyncio.gather(*[asyncio.wait_for(server.up.wait(), 60) for server in run.cluster.servers])
        await working(run)


@options(
    "F27",
    "the power of all three nodes fails at once",
    proves=("I-D1", "I-D2", "I-U4"),
    needs=("root", "nft", "loop"),
    disk="ext4",
)
async def all_without_power(run: Run) -> None:
    for _ in range(run.times(3, short=1)):
        await run.pause(2, 5)
        async with run.fault("power cut of all nodes") as seen:
            run.duplicates += _all(run)
            seen(await without_power(run.cluster.nodes))
            await asyncio.gather(*[asyncio.wait_for(node.server.up.wait(), 60) for node in run.cluster.nodes])
        await working(run)


@options(
    "F27-split",
    "one node stands still, one loses power, the one that knows better stands still: the other two must not forget",
    proves=("I-D1", "I-D2", "I-U4"),
    needs=("root", "nft", "loop"),
    short=False,
    disk="ext4",
)
async def split(run: Run) -> None:
    """The schedule by which Jepsen lost acknowledged writes to servers that sync every two minutes (nats-server issue 7567).

    `stale` sleeps while `cut` and `best` acknowledge; `cut` loses its power, `best` sleeps, `stale` and `cut` are a majority. With
    sync_interval: always `cut` remembers what it acknowledged.
    """
    for _ in range(run.times(5, short=1)):
        await run.pause(1, 2)
        stale, cut, best = run.random.sample(run.cluster.nodes, 3)
        async with run.fault(f"{stale.name} frozen, {cut.name} without power, then {best.name} frozen") as seen:
            run.duplicates += 2 * _all(run)
            await stop(stale)
            await run.acknowledged(100)  # what only the other two know
            await run.pause(0, 1)
            await stop(best)
            evidence = await without_power([cut])
            stale.server.resume()
            await run.acknowledged(100)  # the two of them are the bus now
            seen(evidence)
            best.server.resume()
            await asyncio.wait_for(cut.server.up.wait(), 60)
        await working(run)


# --- harm


async def restart(run: Run, node: Node, *, lame_duck: bool) -> None:
    async with run.fault(f"restart {node.name}") as seen:
        run.duplicates += _all(run)
        status = await end(node, lame_duck=lame_duck)
        seen(f"ended with {status}")
        await asyncio.wait_for(node.server.up.wait(), 60)
    await run.cluster.healthy()  # or the next restart would take the majority away


async def cut_off(run: Run, node: Node, seconds: float) -> None:
    """From the other nodes; clients reach all of them."""
    async with run.fault(f"{node.name} cut off") as seen:
        run.duplicates += _all(run)
        node.cut_off([other for other in run.cluster.nodes if other is not node])
        await asyncio.sleep(seconds)
        seen(f"{node.dropped()} packets dropped")
        node.join()


async def without_power(nodes: list[Node]) -> str:
    """Cut, and powered again; evidence. They are started anew, and may not be up yet."""
    for node in nodes:
        node.server.wanted.clear()
        await stop(node)  # so that whatever it acknowledged it said before
    for node in nodes:
        node.disk.cut()
    statuses = [await node.server.kill() for node in nodes]
    for node in nodes:
        await eventually(partial(_revived, node), 20)
        node.server.wanted.set()
    return f"ended with {statuses}, disks revived"


def _revived(node: Node) -> bool:
    node.disk.revive()
    return True


async def stop(node: Node) -> None:
    pid = node.server.pid
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: state(pid) == "T")


async def working(run: Run) -> None:
    """Until all is as it was before a fault: a second one before an election is over would be charged to the first."""
    await run.cluster.healthy()
    await run.acknowledged(20)


def _all(run: Run) -> int:
    """Executions that a fault of the bus may cost: whatever is held."""
    return run.in_flight * len(run.workers)
