"""python -m benchmarks [ONLY=drain,latency] [PEERS=celery,faststream|none] [ROUNDS=3]: measure, print, write. `make bench` runs this."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from time import monotonic

from . import report
from .bench import Bench
from .contenders import PEERS_OF

MEASURES = ("drain", "steady", "latency", "publish", "shapes", "cold", "scale", "connectors")


def options(arguments: list[str]) -> tuple[tuple[str, ...], frozenset[str], int]:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    only = tuple(name for name in given.pop("ONLY", "").split(",") if name) or MEASURES
    peers = given.pop("PEERS", "") or ",".join(PEERS_OF)
    rounds = int(given.pop("ROUNDS", "") or 3)
    wrong = (
        [name for name in only if name not in MEASURES] + [name for name in peers.split(",") if name not in (*PEERS_OF, "none")] + [*given]
    )
    if wrong:
        sys.exit(f"bench: no {wrong[0]!r}. ONLY: {', '.join(MEASURES)}. PEERS: {', '.join(PEERS_OF)}, none. ROUNDS: a number.")
    return only, frozenset(peers.split(",")) & PEERS_OF.keys(), rounds


async def main() -> int:
    only, peers, rounds = options(sys.argv[1:])
    bench = Bench(rounds, peers)
    print(report.heading(peers), flush=True)
    started = monotonic()
    for name in only:
        measure = import_module(f".measures.{name}", __package__)
        print(f"\n{name}: {measure.__doc__}", flush=True)
        await measure.run(bench)
    print(report.tables(bench))
    print(f"\n  {monotonic() - started:.0f} s; {report.write(bench, whole=only == MEASURES)}")
    return 1 if any(ratio.verdict == "MISSED" for ratio in bench.ratios) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
