"""Workers: killed, frozen, cut off, down, asked to stop."""

from __future__ import annotations

import asyncio

from .. import steps
from ..run import Run
from ..scenario import APP, scenario


@scenario(
    "F31",
    "workers are killed with SIGKILL at random instants; what they ran ends with them",
    proves=("I-D1", "I-U4", "I-O1", "I-L6"),
    redelivery=True,
)
async def killed(run: Run) -> None:
    for _ in range(run.times(12, short=5)):
        await run.pause(0.5, 1.5)
        await run.acknowledged(1)  # on a busy machine producers stand still at times, and a worker that has nothing loses nothing
        await run.kill(run.worker())


@scenario(
    "F32",
    "a worker, its zygote and its executors are frozen for longer than its lease: the other one takes over",
    proves=("I-D1", "I-O1", "I-U4"),
    redelivery=True,
)
async def family_frozen(run: Run) -> None:
    for leases in (1.5,) if run.short else (1.1, 3.0):
        await run.pause(0.5, 2)
        await steps.freeze(run, run.worker(), leases * run.lease, family=True)


@scenario(
    "F32-worker",
    "a worker alone is frozen: its zygote ends what it ran, and the other one takes over",
    proves=("I-D1", "I-O1", "I-L6"),
    short=False,
    redelivery=True,
)
async def worker_frozen(run: Run) -> None:
    for seconds in (22.0, 90.0):  # the zygote waits 20 s for a beat
        await run.pause(1, 3)
        await steps.freeze(run, run.worker(), seconds, family=False)


async def _cut(run: Run, how: str) -> None:
    """Steady before, and long enough afterwards for the rate to be looked at."""
    await run.pause(2, 3)
    await run.cut(4 if run.short else 20, how)
    await asyncio.sleep(run.scenario.recovers + 3)


@scenario("F33", "a black hole between everybody and the bus, 20 s", proves=("I-D1", "I-L3"), short=False, recovers=15.0, alone=True)
async def black_hole(run: Run) -> None:
    await _cut(run, "drop")


@scenario("F33-reject", "connections to the bus are reset and refused", proves=("I-D1", "I-L3"), recovers=6.0, alone=True)
async def rejected(run: Run) -> None:
    await _cut(run, "reject")


@scenario(
    "F33-requests", "what is sent to the bus is lost, its answers arrive", proves=("I-D1", "I-L3"), short=False, recovers=15.0, alone=True
)
async def one_way_there(run: Run) -> None:
    await _cut(run, "requests")


@scenario("F33-answers", "what the bus answers is lost", proves=("I-D1", "I-U4", "I-L3"), short=False, recovers=15.0, alone=True)
async def one_way_back(run: Run) -> None:
    await _cut(run, "answers")


@scenario(
    "L3-server",
    "the server is down for 20 s: the old rate within 15 s of its return",
    proves=("I-L3",),
    short=False,
    recovers=15.0,
    alone=True,
)
async def server_down(run: Run) -> None:
    await run.pause(2, 3)
    await steps.down(run, [run.server], 20)
    await asyncio.sleep(18)


@scenario("L3-worker", "each worker is down for 20 s, one after the other", proves=("I-L3",), short=False, recovers=15.0, alone=True)
async def each_down(run: Run) -> None:
    for worker in run.workers:
        await run.pause(2, 3)
        await steps.down(run, [worker], 20)
        await asyncio.sleep(18)


@scenario("L3-workers", "all workers are down for 20 s", proves=("I-L3",), short=False, recovers=15.0, alone=True)
async def all_down(run: Run) -> None:
    await run.pause(2, 3)
    await steps.down(run, run.workers, 20)
    await asyncio.sleep(18)


@scenario(
    "F34",
    "workers are asked to stop under load, and once more while they drain",
    proves=("I-L1", "I-D1", "I-U4"),
    app=APP
    + """
@function(on="load", concurrency=2, timeout=600)
async def slow(event, ctx):
    start(event, ctx)
    await asyncio.sleep(0.3 if event.id.endswith("0") else 0.0)
    end(event, ctx)
""",
    functions=("plain", "ordered", "slow"),
    rate=100.0,
)
async def stopped(run: Run) -> None:
    for _ in range(run.times(8, short=2)):
        await run.pause(0.5, 1.5)
        await steps.stop(run, run.worker())
        await run.pause(0.5, 1.5)
        await steps.stop(run, run.worker(), twice=True)


@scenario(
    "F34-stubborn",
    "a worker is asked to stop while a function does not listen to its cancellation: it ends in time, and the event runs again",
    short=False,
    proves=("I-L1", "I-D1", "I-U4"),
    app=APP
    + """
@function(on="load", concurrency=4, timeout=600)
def stubborn(event, ctx):
    start(event, ctx)
    if os.path.exists("stubborn"):
        open("sleeps-in-" + str(os.getpid()), "w").close()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                time.sleep(60)
            except BaseException:
                pass
    end(event, ctx)
""",
    functions=("plain", "ordered", "stubborn"),
    grace=4.0,
    redelivery=True,
)
async def stubborn(run: Run) -> None:
    (run.project / "stubborn").touch()
    sleeping: set[int] = set()
    while any(sleeping.isdisjoint(run.executors(worker)) for worker in run.workers):
        await run.pause(0.05, 0.1)
        sleeping = {int(file.name.rpartition("-")[2]) for file in run.project.glob("sleeps-in-*")}
    (run.project / "stubborn").unlink()
    for worker in run.workers:
        await steps.stop(run, worker)


@scenario(
    "F34-away",
    "a worker is asked to stop while the bus is away",
    short=False,
    proves=("I-L1", "I-D1"),
    grace=4.0,
    exits=(75,),  # started again, it finds no bus
)
async def stopped_while_away(run: Run) -> None:
    await run.pause(1, 2)
    async with asyncio.TaskGroup() as tasks:
        cut = tasks.create_task(run.cut(7, "drop"))
        await run.pause(1, 2)
        tasks.create_task(steps.stop(run, run.worker()))
        await cut


@scenario("L5", "workers are restarted one after the other, several times", proves=("I-L5", "I-D1", "I-U4", "I-O1"))
async def rolling(run: Run) -> None:
    for _ in range(run.times(10, short=2)):
        for worker in run.workers:
            await run.pause(0.2, 1)
            await steps.stop(run, worker)
