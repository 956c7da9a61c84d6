"""Crash points: a process of a worker dies at one exact line.

The load reaches every point: outputs, retries that are held and retries that are scheduled, dead letters, delayed events, calls that take
long, a drain, and a worker that is told twice to stop.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from ..ledger import HANDLER
from ..process import Process
from ..run import Run
from ..scenario import Scenario

PRODUCT = Path(__file__).parents[3]
GROUPS = 4
REAPER_POINTS = {"purge-before", "retries-purged"}
POINT = re.compile(r"# crash point: ([\w-]+)$", re.MULTILINE)

APP = (
    HANDLER
    + """
import asyncio
from broker_faas import Reject, Retry, RetryPolicy, function

BINARY = "application/octet-stream"

@function(on="load", concurrency=16, retry=RetryPolicy(max_attempts=5, min_backoff=0.1, jitter=0))
async def plain(event, ctx):
    n = int(event.id.rpartition("-")[2])
    start(event, ctx)
    await asyncio.sleep(1.0 if n % 17 == 3 else 0.01)
    how = "ok" if n % 13 != 5 and not (ctx.attempt == 1 and (n % 7 == 2 or n % 11 == 4)) else "err"
    if how == "ok" and n % 3 == 0:
        ctx.emit("out", event.data, subject=event.id, datacontenttype=BINARY)
    end(event, ctx, how)
    if n % 13 == 5:
        raise Reject("as planned")
    if how == "err":
        raise Retry("later", after=2) if n % 11 == 4 else ValueError("as planned")

@function(on="load", ordered=True)
async def ordered(event, ctx):
    start(event, ctx)
    await asyncio.sleep(0.01)
    end(event, ctx)

@function(on="out", concurrency=16)
async def sink(event, ctx):
    start(event, ctx)
    end(event, ctx)
"""
)


def _hears(function: str, n: int) -> bool:
    return function != "sink" or (n % 3 == 0 and n % 13 != 5)


async def crash(run: Run) -> None:
    """Drains one worker and stops the other at once, again and again, so that those lines are reached too, until all have crashed."""
    async with run.fault(f"crash at {', '.join(run.scenario.crash)}") as seen:
        run.duplicates += run.in_flight * 2 * len(run.scenario.crash)
        async with asyncio.timeout(60 + 12 * len(run.scenario.crash)):
            while len(crashed(run)) < len(run.scenario.crash):
                await _drain(run)
                await _abort(run)
        seen(" ".join(crashed(run)))
    for worker in run.workers:
        await asyncio.wait_for(worker.up.wait(), 30)


def crashed(run: Run) -> list[str]:
    file = run.folder / "crashed"
    return file.read_text().split("\n")[:-1] if file.exists() else []


async def at_work(run: Run, process: Process) -> Process:
    """One that is stopped as it comes up would have done nothing: on a slow machine none would ever get anywhere."""
    await asyncio.wait_for(process.up.wait(), 30)
    await run.pause(0.5, 1.5)
    await asyncio.wait_for(process.up.wait(), 30)  # it may have crashed meanwhile
    return process


async def _drain(run: Run) -> None:
    worker = await at_work(run, run.workers[0])
    await worker.end(signal.SIGTERM)


async def _abort(run: Run) -> None:
    """Two signals, so that what it holds is handed back."""
    worker = await at_work(run, run.workers[1])
    ends = len(worker.exits)
    worker.expect_end()  # it may have nothing left to finish, and be gone before the second signal
    with suppress(ProcessLookupError):  # it has crashed this moment
        os.kill(worker.pid, signal.SIGTERM)
    await asyncio.sleep(0.05)
    if len(worker.exits) == ends:
        await worker.end(signal.SIGTERM)


def points() -> dict[str, Path]:
    """Every crash point that workers reach, and its file."""
    found: dict[str, Path] = {}
    for folder in ("broker_faas", "workers"):
        for file in sorted((PRODUCT / folder).rglob("*.py")):
            for name in POINT.findall(file.read_text()):
                if name.startswith("gateway-"):  # test_gateway.py
                    continue
                assert name not in found or found[name].samefile(file), f"two crash points are named {name}"
                found[name] = file
    return found


def _scenario(name: str, crash_points: tuple[str, ...], *, short: bool) -> Scenario:
    """One that crashes at all of these, one after the other."""
    reaper = REAPER_POINTS & {*crash_points}
    patches = [("broker_faas.layout", "MAX_HELD_DELAY = 30.0", "MAX_HELD_DELAY = 1.0")]
    if any(point.startswith("batch-") for point in crash_points):
        patches.append(("broker_faas.buses.commit", "FEW = 10", "FEW = 1"))
    if reaper:  # which frees nothing that is younger than two minutes. 20 s: sooner comes what a crash brings again, and is stored once
        patches.append(("broker_faas.layout", "DUPLICATE_WINDOW = 120.0", "DUPLICATE_WINDOW = 20.0"))
        patches.append(("broker_faas.reaper", "interval: float = 10.0", "interval: float = 1.0"))
        patches.append(("broker_faas.options", "seconds(120, 3650", "seconds(1, 3650"))
    return Scenario(
        name=name,
        what=f"a worker, its zygote or an executor dies at {', '.join(crash_points)}",
        harm=crash,
        proves=("I-D1", "I-U4", "I-O1", "I-P4"),
        short=short,
        app=APP,
        functions=("plain", "ordered", "sink"),
        hears=_hears,
        dies=lambda n: n % 13 == 5,
        dying=("plain",),
        delay=lambda n: 0.5 if n % 19 == 5 else 0.0,
        keep=1.0 if reaper else 86400.0,
        lease=3.0,
        exits=(-signal.SIGKILL,),
        patches=tuple(patches),
        crash=crash_points,
    )


def scenarios() -> list[Scenario]:
    """CP1 … CP5: several points a run, for the short form; CP-NAME: each by itself."""
    names = sorted(points())
    late = [name for name in names if name in REAPER_POINTS]
    batches = [name for name in names if name.startswith("batch-")]
    others = [name for name in names if name not in (*late, *batches)]
    groups = [tuple(others[n::GROUPS]) for n in range(GROUPS)] + [tuple(batches + late)]
    found = [_scenario(f"CP{n}", group, short=True) for n, group in enumerate(groups, 1)]
    return found + [_scenario(f"CP-{name}", (name,), short=False) for name in names]
