"""Publishing with fsync, one way a run: prints events a second, or milliseconds of one publish.

publishes.py awaited | batches | concurrent N       ours, events a second
publishes.py one | bare                             ours, and nats-py's JetStream publish: milliseconds, on an idle bus
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from statistics import median
from time import monotonic

import nats

from benchmarks.marks import payload
from broker_faas import CloudEvent, connect
from broker_faas.client import Client

URL = os.environ["BENCH_URL"]
SECONDS = 2.0


async def rate(many: Callable[[int], Awaitable[int]]) -> float:
    """many(number): publishes some, and returns how many."""
    count, started = 0, monotonic()
    while (seconds := monotonic() - started) < SECONDS:
        count += await many(count)
    return count / seconds


async def milliseconds(one: Callable[[int], Awaitable[object]]) -> float:
    """Median of 300, 3 ms apart."""
    taken = []
    for number in range(300):
        started = monotonic()
        await one(number)
        taken.append(monotonic() - started)
        await asyncio.sleep(0.003)
    return median(taken) * 1e3


def event(number: int) -> CloudEvent:
    return CloudEvent(type="bench", source="/bench", id=str(number), data=payload(number))


async def ours(client: Client, how: str, at_once: int) -> float:
    async def awaited(number: int) -> int:
        await client.publish("bench", event(number))
        return 1

    async def batch(number: int) -> int:
        return await client.publish_many([event(n) for n in range(number, number + 500)], "bench")

    async def concurrent(number: int) -> int:
        await asyncio.gather(*(client.publish("bench", event(n)) for n in range(number, number + at_once)))
        return at_once

    match how:
        case "one":
            return await milliseconds(awaited)
        case "awaited":
            return await rate(awaited)
        case "batches":
            return await rate(batch)
        case _:
            return await rate(concurrent)


async def bare() -> float:
    client = await nats.connect(URL)
    stream = client.jetstream()
    await stream.add_stream(name="bare", subjects=["bare"])
    taken = await milliseconds(lambda number: stream.publish("bare", event(number).data or b"", headers={"Nats-Msg-Id": str(number)}))
    await client.close()
    return taken


async def main(how: str, at_once: str = "0") -> None:
    if how == "bare":
        print(await bare())
        return
    async with connect(URL) as client:
        await client.publish("bench", {})  # makes nothing of the first one's price
        print(await ours(client, how, int(at_once)))


asyncio.run(main(*sys.argv[1:]))
