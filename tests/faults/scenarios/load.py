"""Nothing is harmed here: functions are slow, fail again and again, or stand still, and must not be in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from broker_faas.layout import partition

from .. import checks
from ..ledger import HANDLER, Ledgers
from ..run import Run
from ..scenario import APP, scenario

SLOW_KEY = "k3"


def _elsewhere(key: str) -> bool:
    return partition(key)[0] != partition(SLOW_KEY)[0]  # of 16


def _prompt(run: Ledgers) -> Iterable[tuple[str, str]]:
    yield from checks.prompt(run, "plain", 2.0)
    yield from checks.prompt(run, "ordered", 2.0, among=_elsewhere)  # those behind the slow key wait for 6 s and more
    held = sum(start.attempt > 1 for start in run.starts if start.function == "again")
    if held < 1000:
        yield "vacuous", f"{held} retries were held; it takes 1,000"


@scenario(
    "F29",
    "a thousand retries are held, a function is slow, and so is one key: other functions, and other partitions, do not wait",
    short=False,
    proves=("I-O3", "I-P1", "I-U4"),
    app=APP.replace("sleep(0.01)", f'sleep(0.3 if ctx.function == "ordered" and event.partitionkey == "{SLOW_KEY}" else 0.005)')
    + """
@function(on="load", concurrency=16, retry=RetryPolicy(max_attempts=3, min_backoff=2, factor=1))
async def again(event, ctx):
    start(event, ctx)
    if ctx.attempt < 3:
        raise RuntimeError("not yet")
    end(event, ctx)

@function(on="load", concurrency=4)
async def slow(event, ctx):
    start(event, ctx)
    await asyncio.sleep(1.0 if event.id.endswith("5") else 0.0)
    end(event, ctx)
""",
    functions=("plain", "ordered", "again", "slow"),
    rate=100.0,
    after=_prompt,
)
async def held_retries(run: Run) -> None:
    await asyncio.sleep(6 if run.short else 60)


@scenario(
    "B1",
    "a function stands still while large events pile up: what a worker holds is bounded",
    short=False,
    proves=("I-B1", "I-B2", "I-D1"),
    app=HANDLER
    + """
import asyncio
from broker_faas import function

async def stalled(event, ctx):
    start(event, ctx)
    while not os.path.exists("go"):
        await asyncio.sleep(0.2)
    end(event, ctx)

@function(on="load", concurrency=500, timeout=600)
async def many(event, ctx):
    await stalled(event, ctx)

@function(on="load", ordered=True, timeout=600)
async def ordered(event, ctx):
    await stalled(event, ctx)
""",
    functions=("many", "ordered"),
    sizes=(20_000, 200_000, 900_000),
    rate=40.0,
    disk_bytes=2 << 30,
    max_bytes=1 << 30,
    gap=60.0,
)
async def piles_up(run: Run) -> None:
    await asyncio.sleep(7 if run.short else 20)
    (run.project / "go").touch()
