"""Celery on Redis or RabbitMQ: acknowledged after execution, prefork, results ignored, publishes confirmed."""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[import-not-found]

from benchmarks.marks import here

URL = os.environ["BENCH_URL"]
marks = here()
app = Celery("bench", broker=URL)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=100,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True} if URL.startswith("amqp") else {},
)


@app.task  # type: ignore[untyped-decorator]
def noop(data: dict[str, int]) -> None:
    marks.enter(data["number"])


def send(data: dict[str, object]) -> None:
    noop.delay(data)
