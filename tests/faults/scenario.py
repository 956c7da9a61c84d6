"""A scenario: a system under load, one thing that goes wrong with it, and what must be true afterwards.

One is an async function that gets a Run, and does the harm; what is around it is the same for all: see inner.py.

    @scenario("F21", "nats-server is killed", proves=("I-D1",), redelivery=False)
    async def bus_killed(run: Run) -> None:
        for _ in range(run.times(10, short=2)):
            await run.pause(2, 5)
            await run.kill(run.server)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .ledger import HANDLER, Ledgers

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
    app: the functions under test; functions, ordered: their names. toml: more of the [worker] of faas.toml.
    repeat: runs of the long form, each with a seed of its own. alone: there it has the machine to itself: it fills all processors, or
    measures a rate.
    hears: whether the n-th event of a producer goes to this function. delay: seconds from its publishing to its delivery; such
    events have no key. dies: whether it must become a dead letter; doomed: the same by id; dying: the functions in which; none: in all.
    keep: seconds that settled events stay; where they may go before the end, the bus is not looked into afterwards.
    kept: the server is kept as `faas dev` keeps it. modules: more modules of the project, by name.
    connector: lines of faas.toml: producers write to a file, and this connector, a process of its own, brings it to the bus.
    broker: instead of a file, a real one, see brokers.py; slash: the type of RabbitMQ's queue. connectors: processes of the connector.
    sinks: of the functions, those that are sinks; their [[sink]] is in `toml`, and a process of its own sends what goes there.
    sizes: bytes of data that events have. rate: events a second. grace: seconds of a drain.
    quiet: seconds for everything to be done after the last fault is healed.
    lease: seconds; shipped: 30. short_lease: of the short form, at most.
    exits: how workers may end by themselves. after: more problems that the ledgers of the whole run show.
    redelivery, acknowledged, gap, recovers: as in checker.Expected.
    crash: points at which a process of a worker dies, once each.
    patches: of the product's timing: (module, old text, new text), see hook/sitecustomize.py.
    """

    name: str
    what: str
    harm: Harm
    proves: tuple[str, ...] = ()
    short: bool = True
    repeat: int = 1
    alone: bool = False
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
    modules: Mapping[str, str] = field(default_factory=dict)
    connector: str = ""
    connectors: int = 1
    broker: Literal["", "kafka", "rabbitmq/quorum", "rabbitmq/classic", "rabbitmq/single"] = ""
    sinks: tuple[str, ...] = ()
    hears: Callable[[str, int], bool] = field(default=lambda function, n: True)
    delay: Callable[[int], float] = field(default=lambda n: 0.0)
    dies: Callable[[int], bool] = field(default=lambda n: False)
    doomed: Callable[[str], bool] = field(default=lambda id: False)
    dying: tuple[str, ...] = ()
    crash: tuple[str, ...] = ()
    patches: tuple[tuple[str, str, str], ...] = ()
    sizes: tuple[int, ...] = (20, 200, 2000)
    grace: float = 25.0
    quiet: float = 120.0
    keep: float = 86400.0
    kept: bool = False
    rate: float = 200.0
    lease: float = 30.0
    short_lease: float = 4.0
    redelivery: bool = False
    acknowledged: int = 100
    gap: float = 15.0
    recovers: float = 0.0
    after: Callable[[Ledgers], Iterable[tuple[str, str]]] = field(default=lambda ledgers: ())
    exits: tuple[int, ...] = ()

    def lease_of(self, *, short: bool) -> float:
        """What a dead worker held comes again after so many seconds."""
        return min(self.short_lease, self.lease) if short else self.lease


def scenario(name: str, what: str, **options: object) -> Callable[[Harm], Scenario]:
    """Decorator: the function becomes the scenario's harm."""
    return lambda harm: Scenario(name=name, what=what, harm=harm, **options)  # type: ignore[arg-type]
