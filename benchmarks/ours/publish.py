"""Publishes with the client that users have: `publish.py all`, or `publish.py paced RATE`, or `publish.py rounds SECONDS`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from time import monotonic

from benchmarks.marks import Marks, here, payload
from broker_faas import CloudEvent, connect
from broker_faas.client import Client
from broker_faas.service import new_event_loop

FUNCTIONS = int(os.environ.get("BENCH_FUNCTIONS", "0"))  # each has a topic of its own; 0: there is one
SIZE = int(os.environ.get("BENCH_SIZE", "200"))
KEYS = int(os.environ.get("BENCH_KEYS", "0"))  # events have one of so many keys; 0: none


def topic_of(number: int) -> str:
    return f"bench.{number % FUNCTIONS}" if FUNCTIONS else "bench"


def events(marks: Marks) -> Iterator[tuple[str, CloudEvent]]:
    for number in marks.numbers():
        key = f"key-{number % KEYS}" if KEYS else None
        yield topic_of(number), CloudEvent(type="bench", source="/bench", id=str(number), partitionkey=key, data=payload(number, SIZE))
        marks.send(number)


async def paced(client: Client, marks: Marks, rate: float) -> None:
    """One at a time, at its moment, whether earlier ones are acknowledged or not."""
    started = monotonic()
    async with asyncio.TaskGroup() as publishes:
        for turn, number in enumerate(marks.numbers()):
            await asyncio.sleep(max(0.0, started + turn / rate - monotonic()))
            marks.send(number)
            publishes.create_task(client.publish(topic_of(number), payload(number, SIZE), id=str(number)))


async def main(how: str, *arguments: str) -> None:
    marks = here()
    async with connect(os.environ["BENCH_URL"]) as client:
        if how == "paced":
            await paced(client, marks, float(arguments[0]))
        else:
            await client.publish_many(events(marks))


with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main(*sys.argv[1:]))
