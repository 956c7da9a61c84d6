"""What grows: the backlog, the number of functions, and what a server that was killed has to recover."""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from time import monotonic

from broker_faas.embedded import EmbeddedNats

from .. import procs, rounds
from ..bench import Bench, Row, Sample
from ..contenders import ours
from ..servers import Server

SETTLED, UNSETTLED = 1_000_000, 100_000
PUBLISHERS = 2
EVENTS = 100_000  # over all functions


async def run(bench: Bench) -> None:
    recoveries: list[Sample] = []
    small, large = "backlog of 10,000", "backlog of 1,000,000"
    await bench.compare("cost an event", "µs", {small: _small, large: partial(_large, recoveries)})
    bench.ratio("cost an event: backlog of 10⁶, of that of 10⁴", "cost an event", large, small, 1.2, 1.1, higher=False)
    bench.rows.append(Row("first call after a killed server's start", "ours", "s", [*recoveries]))
    bench.bound("first call after a killed server's start, s", "first call after a killed server's start", "ours", 10, 3)
    functions = {f"{count} functions": partial(_cost, count) for count in (1, 200)}
    await bench.compare("cost an event, functions", "µs", functions)
    bench.ratio(
        "cost an event: 200 functions, of that of 1", "cost an event, functions", "200 functions", "1 functions", 1.2, 1.1, higher=False
    )


async def _cost(functions: int) -> Sample:
    """CPU of worker and server, from the first tenth of the events on. Queues are made once, before that."""
    async with rounds.stage(ours("many", EVENTS, BENCH_FUNCTIONS=str(functions)), EVENTS) as on:
        async with on.working():
            await on.until_said("worker ready")
        await on.publish()
        async with on.working() as worker:
            await on.until_done(EVENTS // 10)
            before, began = _cpu(worker, on.server), on.marks.done()
            await on.until_done()
            client, server = _each(before, _cpu(worker, on.server), on.marks.done() - began)
        return Sample(client + server, client, server, on.server.durability, on.problem)


def _cpu(worker: int, server: Server) -> tuple[float, float]:
    return procs.cpu([worker]), procs.cpu([server.pid])


def _each(before: tuple[float, float], after: tuple[float, float], events: int) -> tuple[float, float]:
    """µs an event."""
    return (after[0] - before[0]) / events * 1e6, (after[1] - before[1]) / events * 1e6


async def _small() -> Sample:
    """Five of them: /proc counts in hundredths of a second."""
    drained = [await rounds.drain(ours(events=10_000)) for _ in range(5)]
    client, server = (sum(values) / len(drained) for values in ([d.client_us or 0 for d in drained], [d.server_us or 0 for d in drained]))
    return replace(drained[0], value=client + server, client_us=client, server_us=server, problem="".join(d.problem for d in drained))


async def _large(recoveries: list[Sample]) -> Sample:
    """A million events are worked off. Then the server is killed, and started again where it was: the worker reconnects by itself."""
    contender = ours(events=SETTLED + UNSETTLED)
    async with rounds.stage(contender, contender.events) as on, AsyncExitStack() as stack:
        first = await stack.enter_async_context(EmbeddedNats(on.folder / "nats").open())
        on = replace(on, server=Server(first.url, first.pid, "fsync before the acknowledgement (sync_interval: always)"))
        await on.publish_together(PUBLISHERS)
        async with on.working() as worker:
            await on.until_done(1)
            before, began = _cpu(worker, on.server), on.marks.done()
            await on.until_done(SETTLED)
            client, server = _each(before, _cpu(worker, on.server), on.marks.done() - began)
            os.kill(first.pid, signal.SIGKILL)
            await first.exited()
            done = on.marks.done()
            await stack.aclose()
            started = monotonic()
            async with EmbeddedNats(on.folder / "nats", port=first.port).open():
                await on.until_done(done + 1)
                recoveries.append(Sample(monotonic() - started, durability=on.server.durability))
                await on.until_done()
    return Sample(client + server, client, server, on.server.durability)
