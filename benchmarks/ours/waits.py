"""Ten milliseconds of waiting for something else, 256 at once: 128 in each of two executors."""

import asyncio

from benchmarks.marks import here
from broker_faas import CloudEvent, function

marks = here()


@function(on="bench", start="first", concurrency=128)
async def noop(event: CloudEvent) -> None:
    await asyncio.sleep(0.01)
    marks.enter(event.json()["number"])
