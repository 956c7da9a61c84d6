"""Dramatiq on RabbitMQ, publishes confirmed; acknowledged after execution, as always there."""

from __future__ import annotations

import os

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # type: ignore[import-not-found]

from benchmarks.marks import here

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"], confirm_delivery=True))
marks = here()


@dramatiq.actor(max_retries=0)  # type: ignore[untyped-decorator]
def noop(data: dict[str, int]) -> None:
    marks.enter(data["number"])


def send(data: dict[str, object]) -> None:
    noop.send(data)
