"""Publisher and worker together on two cores: events a second while both are at work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import procs, rounds
from ..bench import Bench, Sample
from ..contenders import PEERS_OF, Contender, loop, ours

WANTED = {"FastStream+NATS": (4, 7), "Celery+Redis": (40, 70)}


async def run(bench: Bench) -> None:
    peers = [contender for name in sorted(bench.peers) for contender in PEERS_OF[name]]
    contenders = [ours(), loop(), *(replace(peer, events=peer.events // 2) for peer in peers)]
    await bench.compare("steady state", "events/s", {contender.name: partial(steady, contender) for contender in contenders})
    bench.ratio("steady state, of the hand-written loop", "steady state", "ours", "hand-written loop", None, None)
    for name, (must, aim) in WANTED.items():
        bench.ratio(f"steady state, times {name}", "steady state", "ours", name, must, aim)


async def steady(contender: Contender) -> Sample:
    """The worker runs; then everything is published at full speed. Counted from the first send to the last entry."""
    async with rounds.stage(contender, contender.events) as on:
        async with on.ready() as worker:
            before = procs.cpu([worker]), procs.cpu([on.server.pid])
            await on.publish(numbers=(1, on.marks.total))
            await on.until_done()
            after = procs.cpu([worker]), procs.cpu([on.server.pid])
        sent, entered = on.marks.sent[1:].tolist(), on.marks.entered[1:].tolist()
        seconds = (max(entered) - min(sent)) / 1e9
        client, server = ((after[i] - before[i]) / on.marks.total * 1e6 for i in (0, 1))
        return Sample(on.marks.total / seconds, client, server, on.server.durability, on.problem)
