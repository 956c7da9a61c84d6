"""200 events a second for 6 s, each published at its moment: from the call of publish to the handler's entry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import procs, rounds
from ..bench import Bench, Row, Sample
from ..contenders import PEERS_OF, Contender, loop, ours

RATE = 200
EVENTS = 1_300  # the first hundred warm up
WARM = 100


async def run(bench: Bench) -> None:
    peers = [contender for name in sorted(bench.peers) for contender in PEERS_OF[name]]
    contenders = {contender.name: contender for contender in [ours(), loop(), *peers]}
    taken: dict[str, list[tuple[float, Sample]]] = {name: [] for name in contenders}
    await bench.compare("p50 at 200/s", "ms", {name: partial(median_of, contender, taken[name]) for name, contender in contenders.items()})
    add_p99(bench, "200/s", taken)
    bench.ratio("p50 at 200/s, of Celery+Redis", "p50 at 200/s", "ours", "Celery+Redis", 0.45, 0.30, higher=False)
    bench.ratio("p99 at 200/s, of Celery+Redis", "p99 at 200/s", "ours", "Celery+Redis", 0.25, 0.10, higher=False)
    bench.ratio("p50 at 200/s, of the hand-written loop", "p50 at 200/s", "ours", "hand-written loop", 1.5, 1.2, higher=False)


async def median_of(contender: Contender, taken: list[tuple[float, Sample]]) -> Sample:
    """taken: gets the 99th percentile of the same round, in ms."""
    async with rounds.stage(contender, EVENTS) as on:
        async with on.ready() as worker:
            before = procs.cpu([worker]), procs.cpu(on.server.pids)
            await on.publish("paced", str(RATE), numbers=(1, EVENTS))
            await on.until_done()
            client, server = (
                (after - before[i]) / EVENTS * 1e6 for i, after in enumerate((procs.cpu([worker]), procs.cpu(on.server.pids)))
            )
        waited = on.marks.latencies(WARM)
        sample = Sample(waited[len(waited) // 2] * 1e3, client, server, on.server.durability, on.problem)
        taken.append((waited[int(len(waited) * 0.99)] * 1e3, sample))
        return sample


def add_p99(bench: Bench, at: str, taken: dict[str, list[tuple[float, Sample]]]) -> None:
    """Of the rounds whose medians are the rows `p50 at …`, another quantile."""
    for row in [row for row in bench.rows if row.measure == f"p50 at {at}"]:
        tails = iter(taken[row.contender])
        samples = [sample and replace(sample, value=next(tails)[0]) for sample in row.samples]
        bench.rows.append(Row(f"p99 at {at}", row.contender, "ms", samples))
