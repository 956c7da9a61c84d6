"""What leaves through a sink: its outlet killed at every line that matters, at random, frozen, and without its system.

The sink is the function that the ledger is about: what it writes down is what arrived there. Its order ends with its outlet: what that
one held comes again when its lease is over, and not before (decision 11). One that stands still, and whose system is away, keeps it.
"""

from __future__ import annotations

import asyncio
import signal

from ..ledger import HANDLER
from ..run import Run
from ..scenario import scenario
from .points import POINT, PRODUCT, crashed

APP = """
from broker_faas import function

@function(on="load", ordered=True)
async def pass_on(event, ctx):
    ctx.emit("out:load", event.data, subject=event.id, datacontenttype="application/octet-stream")
"""
WRITTEN = (
    HANDLER
    + """
import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from broker_faas.errors import SinkUnavailable

@dataclass(frozen=True)
class Written:
    @asynccontextmanager
    async def open(self):
        yield Writer()

class Writer:
    most = 20

    async def send(self, events):
        if Path(os.environ["SOURCE"] + ".away").exists():
            raise SinkUnavailable("as planned")
        for _, event in events:
            ctx = SimpleNamespace(function="out", attempt=1)
            start(event, ctx)
            end(event, ctx)
        await asyncio.sleep(0.01)  # on its way back
        return [None] * len(events)
"""
)
MOST = 20  # events that one death sends again
POINTS = tuple(POINT.findall((PRODUCT / "connectors" / "sink.py").read_text()))
SINK = {
    "app": APP,
    "functions": ("out",),
    "sinks": ("out",),
    "modules": {"written": WRITTEN},
    "toml": '[[sink]]\nname = "out"\ntype = "written:Written"\n',
}


@scenario(
    "SINK",
    "an outlet dies at each line that matters: nothing is lost, and no more comes twice than was on its way",
    proves=("I-D1", "I-U4"),
    crash=POINTS,
    exits=(-signal.SIGKILL,),
    **SINK,
)
async def crashes(run: Run) -> None:
    outlet = run.connectors[0]
    async with run.fault(f"crash at {', '.join(POINTS)}") as seen:
        run.duplicates += MOST * len(POINTS)
        async with asyncio.timeout(60):
            while len(crashed(run)) < len(POINTS):
                await run.pause(0.5, 1.0)
        seen(" ".join(crashed(run)))
        await asyncio.wait_for(outlet.up.wait(), 30)  # it was down until then


@scenario(
    "SINK-kill",
    "an outlet is killed at random, and drained, and its bus is killed",
    proves=("I-D1", "I-U4", "I-L3"),
    short=False,
    **SINK,
)
async def killed(run: Run) -> None:
    outlet = run.connectors[0]
    for _ in range(run.times(10, short=2)):
        await run.pause(0.5, 2)
        await run.kill(outlet, duplicates=MOST)
        await run.pause(0.5, 2)
        await outlet.end(signal.SIGTERM)
        await asyncio.wait_for(outlet.up.wait(), 30)
    for _ in range(run.times(3, short=1)):
        await run.pause(0.5, 2)
        await run.kill_server()


@scenario(
    "SINK-away",
    "the system of a sink is away for 20 s, and its outlet stands still beyond its lease: nothing is charged, nothing is overtaken",
    proves=("I-D1", "I-U4", "I-O1", "I-L3"),
    short=False,
    gap=60.0,
    ordered=("out",),
    **SINK,
)
async def away(run: Run) -> None:
    there = run.source.with_name("source.away")
    async with run.fault("the sink's system is away") as seen:
        there.touch()
        await asyncio.sleep(run.times(20, short=5))
        seen("touched " + there.name)
        there.unlink()
    await run.pause(1, 2)
    await run.freeze(run.connectors[0].pid, "the outlet", 1.5 * run.lease, duplicates=MOST)
