"""One event of a key at a time; the handler sleeps BENCH_MS first, or not at all."""

import asyncio
import os

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()
SECONDS = float(os.environ.get("BENCH_MS", "0")) / 1000


@function(on="bench", start="first", ordered=True)
async def noop(event: CloudEvent) -> None:
    if SECONDS:
        await asyncio.sleep(SECONDS)
    marks.enter(event.json()["number"])
