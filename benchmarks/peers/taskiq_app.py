"""Taskiq on NATS JetStream: pull consumer, acknowledged when executed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq_nats import PullBasedJetStreamBroker  # type: ignore[import-not-found]

from benchmarks.marks import here

broker = PullBasedJetStreamBroker([os.environ["BENCH_URL"]], queue="bench", durable="bench", pull_consume_batch=100)
marks = here()


@broker.task  # type: ignore[untyped-decorator]
async def noop(data: dict[str, int]) -> None:
    marks.enter(data["number"])


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


async def send(data: dict[str, object]) -> None:
    await noop.kiq(data)
