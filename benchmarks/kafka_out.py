"""Events to Kafka: our sink beside aiokafka's own idempotent producer, in turns. Prints the medians and their ratios.

    python -m benchmarks.kafka_out [ROUNDS]

50,000 events of 200 bytes in batches of 500 to 4 partitions of one Kafka, without keys; no bus. Every way waits for a batch to be
confirmed by all replicas before it begins the next one, and lingers for nothing.

bare       send() of the data alone, 200 bytes: no attributes at all
bare, ce   send() of the same messages that the sink writes, made before the clock runs
bare, 256k the same, and with max_batch_size as large as the sink's batches
ours       send() of the sink: it also makes the messages, chooses their partitions, and answers for each event
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import NamedTuple, TypeAlias

from aiokafka import AIOKafkaProducer

from broker_faas.buses.nats import NatsBus
from broker_faas.connectors.sink import Outgoing, Outlet
from broker_faas.connectors.sinks.kafka import KafkaSink
from broker_faas.event import CloudEvent
from broker_faas.kafka_binding import to_kafka
from broker_faas.layout import event_record, sink_queue
from broker_faas.retry import RetryPolicy
from tests import kafka_server

from .kafka_in import TOPIC, make_topic

COUNT, SIZE, BATCH = 50_000, 200, 500

Send: TypeAlias = Callable[[Sequence[CloudEvent]], Awaitable[None]]


class Rate(NamedTuple):
    """Events a second, and microseconds of this process's CPU for each."""

    rate: float
    cpu: float


@asynccontextmanager
async def ours(kafka: str) -> AsyncIterator[Send]:
    async with KafkaSink(servers=kafka).open() as sink:

        async def send(events: Sequence[CloudEvent]) -> None:
            if any(await sink.send([Outgoing(TOPIC, event) for event in events])):
                raise RuntimeError("not delivered")

        yield send


@asynccontextmanager
async def bare(kafka: str) -> AsyncIterator[Send]:
    async with AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True) as producer:

        async def send(events: Sequence[CloudEvent]) -> None:
            for sent in [await producer.send(TOPIC, event.data) for event in events]:
                await sent

        yield send


def bare_ce(kafka: str) -> AbstractAsyncContextManager[Send]:
    return _bare_ce(kafka, 1 << 14)  # the default


def bare_large(kafka: str) -> AbstractAsyncContextManager[Send]:
    return _bare_ce(kafka, 1 << 18)


@asynccontextmanager
async def _bare_ce(kafka: str, size: int) -> AsyncIterator[Send]:
    made = {event.id: to_kafka(event) for batch in batches() for event in batch}
    async with AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True, max_batch_size=size) as producer:

        async def send(events: Sequence[CloudEvent]) -> None:
            messages = [made[event.id] for event in events]
            for sent in [await producer.send(TOPIC, value, key, headers=headers) for key, headers, value in messages]:
                await sent

        yield send


def batches() -> list[list[CloudEvent]]:
    def event(number: int) -> CloudEvent:
        return CloudEvent(type="bench.done", source="/bench/f", id=f"{number:08d}.0", data=b"%0*d" % (SIZE, number))

    return [[event(number) for number in range(first, first + BATCH)] for first in range(0, COUNT, BATCH)]


async def measure(send: Send) -> Rate:
    work = batches()
    await send(work[0])  # connected to every broker, and with a producer id
    started, used = monotonic(), process_time()
    for batch in work:
        await send(batch)
    return Rate(COUNT / (monotonic() - started), (process_time() - used) / COUNT * 1e6)


async def leaving(kafka: str, url: str) -> Rate:
    """From the bus: an outlet with all of it waiting, until the last one is settled. CPU of this process alone."""
    async with NatsBus(url).open() as bus:
        for batch in batches():
            await bus.publish([event_record(f"out:{TOPIC}", event) for event in batch], output=True)
        outlet = Outlet("out", KafkaSink(servers=kafka), sink_queue("bench", "out"), bus, RetryPolicy())
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(outlet.run(stop))
            while not (first := outlet.status.delivered):  # noqa: ASYNC110 - an Event would be work of the outlet, and cost it
                await asyncio.sleep(0.002)
            started, used = monotonic(), process_time()
            while outlet.status.delivered < COUNT:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            rest = COUNT - first
            measured = Rate(rest / (monotonic() - started), (process_time() - used) / rest * 1e6)
            stop.set()
    return measured


async def main(rounds: int) -> None:
    ways = {"bare": bare, "bare, ce": bare_ce, "bare, 256k": bare_large, "ours": ours}
    rates: dict[str, list[Rate]] = {way: [] for way in ways}
    with TemporaryDirectory() as folder:
        async with kafka_server.running(Path(folder) / "kafka") as broker:
            await make_topic(broker.servers)
            for number in range(rounds + 1):
                for way, opened in ways.items():
                    async with opened(broker.servers) as send:
                        rate = await measure(send)
                    if number:  # the first round warms Java up
                        rates[way].append(rate)
                        print(f"{way:10} {rate.rate:10,.0f} events/s {rate.cpu:6.1f} µs", flush=True)
    of = {way: median(rate.rate for rate in found) for way, found in rates.items()}
    print(f"medians: {', '.join(f'{way} {rate:,.0f}/s' for way, rate in of.items())}")
    print(", ".join(f"ours / {way} {of['ours'] / rate:.2f}" for way, rate in of.items() if way != "ours"))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
