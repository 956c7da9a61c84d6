"""One event by a program that was not running: nats-py, as its documentation shows. It takes the event, runs the handler, acknowledges."""

from __future__ import annotations

import asyncio
import os

import nats
import orjson

from benchmarks.marks import here


async def main() -> None:
    marks = here()
    client = await nats.connect(os.environ["BENCH_URL"])
    subscription = await client.jetstream().pull_subscribe("loop.in.>", "fresh", stream="LOOP")
    [message] = await subscription.fetch(1)
    marks.enter(orjson.loads(message.data)["number"])
    await message.ack_sync()
    await client.close()


asyncio.run(main())
