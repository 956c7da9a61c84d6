"""Publishes to a topic of Kafka at once, idempotent and without lingering: `kafka_paced.py publish`, or `kafka_paced.py paced RATE`."""

from __future__ import annotations

import asyncio
import os
import sys
from time import monotonic

import orjson
from aiokafka import AIOKafkaProducer

from benchmarks.marks import here, payload
from broker_faas.service import new_event_loop


async def main(how: str, rate: str = "0") -> None:
    marks = here()
    async with AIOKafkaProducer(bootstrap_servers=os.environ["BENCH_KAFKA"], enable_idempotence=True) as producer:
        started = monotonic()
        sent = []
        for turn, number in enumerate(marks.numbers()):
            if how == "paced":
                await asyncio.sleep(max(0.0, started + turn / float(rate) - monotonic()))
            marks.send(number)
            sent.append(await producer.send(os.environ["BENCH_TOPIC"], orjson.dumps(payload(number))))
        await asyncio.gather(*sent)


with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main(*sys.argv[1:]))
