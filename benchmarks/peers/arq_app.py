"""arq on Redis, polling every 10 ms (its default, 500 ms, would measure the poll)."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool  # type: ignore[import-not-found]
from arq.connections import ArqRedis, RedisSettings  # type: ignore[import-not-found]

from benchmarks.marks import here

logging.disable(logging.INFO)  # it would log two lines a job
marks = here()
clients: list[ArqRedis] = []


async def noop(ctx: dict[str, Any], data: dict[str, int]) -> None:
    marks.enter(data["number"])


class Settings:
    functions = [noop]  # noqa: RUF012
    redis_settings = RedisSettings.from_dsn(os.environ["BENCH_URL"])
    max_jobs = 200
    poll_delay = 0.01
    keep_result = 0
    log_results = False


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    clients.append(await create_pool(Settings.redis_settings))
    yield


async def send(data: dict[str, object]) -> None:
    await clients[0].enqueue_job("noop", data)
