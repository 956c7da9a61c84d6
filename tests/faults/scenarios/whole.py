"""All of it at once: chaos, the power of the host, everything killed at the same moment, floods of retries."""

from __future__ import annotations

import asyncio

from .. import steps
from ..run import Run
from ..scenario import scenario


@scenario(
    "F46",
    "chaos: every few seconds a random process is killed, frozen for 5 s or cut off for 5 s",
    proves=("I-D1", "I-U4", "I-O1", "I-L3"),
    short=False,
    disk_bytes=3 << 30,
    max_bytes=2 << 30,  # where space is short, the reaper frees what is settled, and it could not be looked at afterwards
    quiet=900.0,  # each worker that dies holds up the heads of the partitions for a lease, and 16 keys have more than they can make up for
)
async def chaos(run: Run) -> None:
    until = asyncio.get_running_loop().time() + (20 if run.short else 1200)
    while asyncio.get_running_loop().time() < until:
        await run.pause(1, 5)
        worker = run.worker()
        executors = run.executors(worker)
        match run.random.choice(["kill server", "kill worker", "kill zygote", "kill executor", "freeze server", "freeze worker",
                                 "freeze family", "cut"]):  # fmt: skip
            case "kill server":
                await run.kill_server()
            case "kill worker":
                await run.kill(worker)
            case "kill zygote":
                await steps.kill_zygote(run, worker)
            case "kill executor" if executors:
                await steps.kill_executor(run, worker, run.random.choice(executors))
            case "freeze server":
                await run.freeze(run.nats, "nats-server", 5, duplicates=run.in_flight * len(run.workers))
            case "freeze worker":
                await steps.freeze(run, worker, 5, family=False)
            case "freeze family":
                await steps.freeze(run, worker, 5, family=True)
            case "cut":
                await run.cut(5, run.random.choice(["drop", "reject", "requests", "answers"]))


@scenario(
    "F47",
    "the power of the host fails, with everything that runs there",
    short=False,
    proves=("I-D1", "I-D2", "I-U4", "I-O1"),
    needs=("root", "loop"),
    disk="ext4",
    redelivery=True,
)
async def host_power(run: Run) -> None:
    for _ in range(run.times(5, short=1)):
        await run.pause(2, 5)
        await run.power_cut()


@scenario(
    "ALL",
    "server and workers are killed with SIGKILL at the same moment",
    proves=("I-D1", "I-U4", "I-O1"),
    lease=4.0,
    repeat=100,
    redelivery=True,
)
async def everything(run: Run) -> None:
    await run.pause(0.5, 3)
    await steps.down(run, [run.server, *run.workers], 0.0)
