"""A function at zero: from an event for it to its handler's entry, and what one more idle executor takes of memory."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from time import monotonic_ns

from .. import procs, rounds
from ..bench import Bench, Row, Sample
from ..contenders import HERE, OURS, environment, loop, ours

FUNCTIONS = 120  # each at zero
STARTS = 40  # of fresh processes
RATE = 20  # events a second: each comes to an idle worker
IDLE = 4  # fresh processes whose memory is measured


async def run(bench: Bench) -> None:
    memory: list[Sample] = []
    name, fresh = "function at zero", "fresh process"
    await bench.compare("event to handler, p99", "ms", {name: partial(_at_zero, memory), fresh: _fresh})
    bench.ratio("function at zero, of a fresh process, p99", "event to handler, p99", name, fresh, 0.1, 0.02, higher=False)
    bench.rows.append(Row("memory of one more, idle", "executor", "MB", [*memory]))
    await bench.compare("memory of one more, idle", "MB", {fresh: _fresh_memory})
    bench.ratio("memory of an executor, of a fresh process", "memory of one more, idle", "executor", fresh, 1 / 3, 1 / 6, higher=False)


async def _at_zero(memory: list[Sample]) -> Sample:
    """Every function gets one event, the first it ever sees; that of function 0 shows that the worker is ready."""
    async with rounds.stage(ours("cold", FUNCTIONS, BENCH_FUNCTIONS=str(FUNCTIONS)), FUNCTIONS) as on:
        async with on.ready() as worker:
            await on.until_said("worker ready")  # all its queues are made
            before = sum(map(procs.pss, procs.tree(worker)))
            await on.publish("paced", str(RATE), numbers=(1, FUNCTIONS))
            await on.until_done()
            memory.append(Sample((sum(map(procs.pss, procs.tree(worker))) - before) / (FUNCTIONS - 1) / 1e6))
        return Sample(_p99(on.marks.latencies(1)) * 1e3, durability=on.server.durability, problem=on.problem)


async def _fresh() -> Sample:
    """A program is started for an event that waits: from its start to the handler's entry."""
    taken = []
    async with rounds.stage(replace(loop(), work=(str(OURS / "python"), str(HERE / "fresh.py"))), STARTS) as on:
        for number in range(STARTS):
            await on.publish(numbers=(number, number + 1))
            started = monotonic_ns()
            async with on.working():
                await on.until_done(number + 1)
            taken.append((on.marks.entered[number] - started) / 1e9)
        return Sample(_p99(sorted(taken)) * 1e3, durability=on.server.durability)


async def _fresh_memory() -> Sample:
    async with rounds.stage(loop(), 1) as on, AsyncExitStack() as stack:
        environ = environment("") | {"BENCH_MARKS": str(on.folder / "marks"), "PYTHONPATH": f"{HERE.parent}:{HERE / 'ours'}"}
        argv = [str(OURS / "python"), str(HERE / "idle.py"), "cold"]
        pids = []
        for _ in range(IDLE):
            process = await stack.enter_async_context(procs.running(argv, environ, on.log))
            pids.append(process.pid)
        await on.until_said("ready\n" * IDLE)
        return Sample(sum(map(procs.pss, pids)) / IDLE / 1e6)


def _p99(ordered: list[float]) -> float:
    return ordered[int(len(ordered) * 0.99)]
