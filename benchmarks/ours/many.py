"""BENCH_FUNCTIONS functions, each with a topic of its own: one pool of executors serves them all."""

import os

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


async def noop(event: CloudEvent) -> None:
    marks.enter(event.json()["number"])


for number in range(int(os.environ.get("BENCH_FUNCTIONS", "1"))):
    globals()[f"noop{number}"] = function(on=f"bench.{number}", name=f"noop{number}", start="first")(noop)
