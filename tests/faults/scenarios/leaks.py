"""Functions that leave things behind. The next call sees none of what a call can own; what a process owns goes when it is replaced."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from .. import checks
from ..ledger import HANDLER, Ledgers
from ..process import rss
from ..run import Run
from ..scenario import scenario

RECYCLE_EVENTS = 400
RECYCLE_BYTES = 100 << 20

APP = (
    HANDLER
    + """
import asyncio, contextvars, sys, threading
from broker_faas import Reject, function

seen = contextvars.ContextVar("seen", default="")
kept = []

async def fails():
    await asyncio.sleep(0.01)
    raise RuntimeError("nobody waits for this")

def leave(event):
    n = int(event.id.split("-")[1])
    match n % 10:
        case 0: threading.Thread(target=time.sleep, args=(600,), daemon=n % 20 == 0).start()
        case 1: kept.append(bytearray(os.urandom(4096) * 75))
        case 2: kept.append(os.open("/dev/null", os.O_RDONLY))
        case 3: os.environ["LEFT"], sys.path[:0] = event.id, ["/left"]
        case 4: os.chdir("/")

@function(on="load", concurrency=16, timeout=5)
async def plain(event, ctx):
    start(event, ctx)
    if seen.get() or asyncio.current_task().cancelling():
        raise Reject(f"sees what {seen.get()} left behind")
    leave(event)
    seen.set(event.id)
    match int(event.id.split("-")[1]) % 10:
        case 5: kept.append(asyncio.create_task(asyncio.sleep(600)))
        case 6: asyncio.create_task(fails())
        case 7: time.sleep(0.05)  # never yields
        case 8: asyncio.get_running_loop().call_later(600, print, "later")
    await asyncio.sleep(0.01)
    end(event, ctx)
    if event.id.endswith("9"):
        asyncio.current_task().cancel()  # the last thing it does

@function(on="load", concurrency=2, timeout=5)
def blocking(event, ctx):
    start(event, ctx)
    if seen.get():
        raise Reject(f"sees what {seen.get()} left behind")
    leave(event)
    seen.set(event.id)
    end(event, ctx)
"""
)


def _replaced(run: Ledgers) -> Iterable[tuple[str, str]]:
    yield from checks.uncharged(run, lambda id: False)
    yield from checks.prompt(run, "plain", 2.0)
    ran: dict[int, int] = defaultdict(int)
    for start in run.starts:
        ran[start.pid] += 1
    if max(ran.values()) > RECYCLE_EVENTS:
        yield "recycled", f"an executor ran {max(ran.values())} events; {RECYCLE_EVENTS} are allowed"
    if len(ran) < 8:
        yield "vacuous", f"{len(ran)} executors ran all of it; it takes 8 to say something of their being replaced"


@scenario(
    "F39",
    "functions leave tasks, threads, timers, files, memory and variables behind: the next call sees none, and executors are replaced",
    short=False,
    proves=("I-B1", "I-L7", "I-P2", "I-U4"),
    app=APP,
    functions=("plain", "blocking"),
    ordered=(),
    toml=f"recycle_events = {RECYCLE_EVENTS}\nrecycle_bytes = {RECYCLE_BYTES}\n",
    after=_replaced,
)
async def leaves(run: Run) -> None:
    until = asyncio.get_running_loop().time() + (8 if run.short else 90)
    most = 0
    async with run.fault("leaks") as seen:
        while asyncio.get_running_loop().time() < until:
            for worker in run.workers:
                most = max([most, *map(rss, run.executors(worker))])
            await asyncio.sleep(0.1)
        seen(f"the largest executor had {most >> 20} MB")
    if most > RECYCLE_BYTES + (60 << 20):  # what one may add before it is looked at again
        run.problems.append(("memory", f"an executor had {most >> 20} MB; it is to be replaced at {RECYCLE_BYTES >> 20}"))
    run.notes.append(f"largest executor: {most >> 20} MB")
