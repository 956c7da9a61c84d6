"""Everything is published, then workers start: events a second from the first entry to the last."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import rounds, servers
from ..bench import Bench, Take
from ..contenders import PEERS_OF, Contender, loop, ours

# (must, aim) against each peer
WANTED = {
    "Celery+Redis": (60, 120),
    "Celery+RabbitMQ": (25, 50),
    "Dramatiq+RabbitMQ": (8, 15),
    "Taskiq+NATS": (5, 9),
    "FastStream+NATS": (4, 8),
}


async def run(bench: Bench) -> None:
    contenders = [ours(), loop(), ours(name="ours, server's default sync", server="nats_unsynced")]
    contenders.append(loop(name="hand-written loop, server's default sync", server="nats_unsynced"))
    for contender in (contender for name in sorted(bench.peers) for contender in PEERS_OF[name]):
        contenders.append(contender)
        if contender.server is servers.nats:
            contenders.append(replace(contender, name=f"{contender.name}, server's default sync", server=servers.nats_unsynced))
    await bench.compare("drain", "events/s", drains(*contenders))
    bench.ratio("drain, of the hand-written loop", "drain", "ours", "hand-written loop", 0.60, 0.85)
    for name, (must, aim) in WANTED.items():
        bench.ratio(f"drain, times {name}", "drain", "ours", name, must, aim)


def drains(*contenders: Contender) -> dict[str, Take]:
    return {contender.name: partial(rounds.drain, contender) for contender in contenders}
