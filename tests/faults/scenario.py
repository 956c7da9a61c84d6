"""A scenario: a system under load, one thing that goes wrong with it, and what must be true afterwards.

One is an async function that gets a Run, and does the harm; what is around it is the same for all: see run.py.

    @scenario("F21", "nats-server is killed", proves=("I-D1",), redelivery=False)
    async def bus_killed(run: Run) -> None:
        for _ in range(run.times(10, short=2)):
            await run.pause(2, 5)
            await run.kill(run.server)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .ledger import HANDLER

if TYPE_CHECKING:
    from .run import Run

Harm = Callable[["Run"], Awaitable[None]]

# Two functions hear every event: one that promises order, one that does not. 10 ms: there is always something under way.
APP = (
    HANDLER
    + """
import asyncio
from broker_faas import RetryPolicy, function

@function(on="load", concurrency=16)
async def plain(event, ctx):
    start(event, ctx)
    await asyncio.sleep(0.01)
    end(event, ctx)

@function(on="load", ordered=True)
async def ordered(event, ctx):
    start(event, ctx)
    await asyncio.sleep(0.01)
    end(event, ctx)
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """name: of the fault matrix where it is a row of it. what: one sentence. proves: invariants (docs/reliability.md).

    short: part of `make test`; the others take minutes. needs: of what the machine allows: root, loop, nft, cgroup.
    workers: processes. nodes: nats-servers; 3 are a cluster.
    disk: under the bus: tmpfs or ext4 (its power can be cut). disk_bytes, max_bytes: its size, and the store's.
    app: the functions under test; functions, ordered: their names. toml: more lines of faas.toml.
    repeat: runs of the long form, each with a seed of its own.
    dies: of the n-th event of a producer, whether it must become a dead letter.
    keep: seconds that settled events stay; where they may go before the end, the bus is not looked into afterwards.
    kept: the server is kept as `faas dev` keeps it. patches: (module, old text, new text) of the product.
    sizes: bytes of data that events have. rate: events a second. lease: seconds; shipped: 30. exits: how workers may end by themselves.
    redelivery, acknowledged, gap: as in checker.Expected.
    """

    name: str
    what: str
    harm: Harm
    proves: tuple[str, ...] = ()
    short: bool = True
    repeat: int = 1
    needs: tuple[str, ...] = ("root",)
    workers: int = 2
    nodes: int = 1
    disk: str = "tmpfs"
    disk_bytes: int = 512 << 20
    max_bytes: int = 256 << 20
    app: str = APP
    functions: tuple[str, ...] = ("plain", "ordered")
    ordered: tuple[str, ...] = ("ordered",)
    toml: str = ""
    dies: Callable[[int], bool] = field(default=lambda n: False)
    keep: float = 86400.0
    kept: bool = False
    patches: tuple[tuple[str, str, str], ...] = ()
    sizes: tuple[int, ...] = (20, 200, 2000)
    rate: float = 200.0
    lease: float = 30.0
    redelivery: bool = False
    acknowledged: int = 100
    gap: float = 15.0
    exits: tuple[int, ...] = ()


def scenario(name: str, what: str, **options: object) -> Callable[[Harm], Scenario]:
    """Decorator: the function becomes the scenario's harm."""
    return lambda harm: Scenario(name=name, what=what, harm=harm, **options)  # type: ignore[arg-type]
