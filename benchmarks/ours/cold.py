"""BENCH_FUNCTIONS plain functions, each with a topic and executors of its own: none, until its first event comes."""

import os

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


def noop(event: CloudEvent) -> None:
    marks.enter(event.json()["number"])


for number in range(int(os.environ.get("BENCH_FUNCTIONS", "1"))):
    globals()[f"noop{number}"] = function(on=f"bench.{number}", name=f"noop{number}", start="first", concurrency=1)(noop)
