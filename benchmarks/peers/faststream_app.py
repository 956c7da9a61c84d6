"""FastStream on NATS JetStream: pull consumer in batches of 100, acknowledged after execution."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]
from faststream.nats import JStream, NatsBroker, PullSub  # type: ignore[import-not-found]

from benchmarks.marks import here

URL = os.environ["BENCH_URL"]
broker = NatsBroker(URL, logger=None)
app = FastStream(broker, logger=None)
marks = here()


@broker.subscriber(  # type: ignore[untyped-decorator]
    "bench.noop",
    stream=JStream(name="bench", subjects=["bench.>"], declare=False),
    durable="bench",
    pull_sub=PullSub(batch_size=100),
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def noop(data: dict) -> None:  # type: ignore[type-arg]
    marks.enter(data["number"])


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    client = await nats.connect(URL)
    await client.jetstream().add_stream(name="bench", subjects=["bench.>"])
    await client.close()
    async with broker:
        yield


async def send(data: dict[str, object]) -> None:
    await broker.publish(data, "bench.noop", stream="bench", timeout=10)
