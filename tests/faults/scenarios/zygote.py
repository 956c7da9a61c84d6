"""The process that executors are forked from: killed, out of processes, with modules that cannot be forked or fail later."""

from __future__ import annotations

import asyncio
import os
import signal

from ...helpers import eventually
from .. import checks, steps
from ..ledger import HANDLER
from ..process import children
from ..run import Run
from ..scenario import APP, scenario

# Threads and sockets do not survive a fork: executors of these modules are fresh interpreters.
THREADED = (
    HANDLER
    + """
import threading
from broker_faas import function

threading.Thread(target=threading.Event().wait, daemon=True).start()

@function(on="load", concurrency=16)
async def threaded(event, ctx):
    start(event, ctx)
    end(event, ctx)
"""
)
CONNECTED = (
    HANDLER
    + """
import socket
from broker_faas import function

pair = socket.socketpair()

@function(on="load", concurrency=16)
async def connected(event, ctx):
    start(event, ctx)
    end(event, ctx)
"""
)
MOODY = """
import os
if os.path.exists("broken"):
    raise RuntimeError("not today")
"""


@scenario(
    "F35",
    "zygotes are killed with SIGKILL: another one is started, nobody is charged",
    proves=("I-D1", "I-U4", "I-L6"),
    after=lambda run: checks.uncharged(run, lambda id: False),
)
async def killed(run: Run) -> None:
    for _ in range(run.times(10, short=3)):
        await run.pause(0.5, 2)
        await steps.kill_zygote(run, run.worker())


@scenario(
    "F35-spawned",
    "modules that start a thread or open a socket: their functions run in fresh interpreters, also after their zygote was killed",
    proves=("I-D1", "I-L6"),
    short=False,
    app=APP,
    modules={"threads": THREADED, "sockets": CONNECTED},
    functions=("plain", "ordered", "threaded", "connected"),
    rate=100.0,
)
async def spawned(run: Run) -> None:
    for _ in range(run.times(5, short=1)):
        await run.pause(1, 2)
        await steps.kill_zygote(run, run.worker())


@scenario(
    "F35-import",
    "a zygote is killed, and a module cannot be imported any more for a while: the other worker goes on, and this one when it can",
    short=False,
    proves=("I-D1", "I-L3"),
    modules={"moody": MOODY},
    after=lambda run: checks.uncharged(run, lambda id: False),
)
async def import_fails(run: Run) -> None:
    await run.pause(1, 2)
    worker = run.worker()
    async with run.fault(f"the zygote of {worker.name} cannot be started again") as seen:
        run.duplicates += run.in_flight
        (run.project / "broken").touch()
        os.kill(run.zygote(worker), signal.SIGKILL)
        await eventually(lambda: "zygote cannot be started again" in worker.said(), 20)
        seen("the worker says so")
        await run.pause(1, 3)
        (run.project / "broken").unlink()
        await eventually(lambda: any(children(pid) for pid in children(worker.pid)), 40)


@scenario(
    "F35-fork",
    "a worker's control group allows no further process while its executors are killed: the other one runs its events",
    short=False,
    proves=("I-D1", "I-L3"),
    needs=("root", "cgroup"),
)
async def no_processes(run: Run) -> None:
    await run.pause(1, 2)
    worker = run.worker()
    async with run.fault(f"no processes for {worker.name}") as seen, steps.limited(run, worker, "pids", "pids.max", 1) as group:
        for executor in run.executors(worker):
            run.duplicates += run.in_flight
            os.kill(executor, signal.SIGKILL)
        await eventually(lambda: "Resource temporarily unavailable" in worker.said(), 20)
        await asyncio.sleep(4)
        seen((group / "pids.events").read_text())
