"""From Kafka and RabbitMQ to the bus and back to Kafka, beside loops by hand for the one job; memory while the bus is stalled."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic

from broker_faas.buses.nats import NatsBus
from tests import kafka_server

from .. import connector_memory, kafka_in, kafka_out, rabbitmq_in, servers
from ..bench import Bench, Sample

FSYNC = "fsync before the acknowledgement (sync_interval: always)"
RABBIT_MESSAGES = 20_000

To = Callable[[str, str, str], Awaitable[kafka_in.Rate]]


async def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(prefix="faas-bench-", ignore_cleanup_errors=True) as name:
        folder, number = Path(name), count()
        async with kafka_server.running(folder / "kafka") as broker:
            await kafka_in.fill(broker.servers)

            async def into(way: To) -> Sample:
                run = f"{next(number)}"
                async with servers.nats(folder / f"nats-{run}") as bus:
                    rate = await way(broker.servers, bus.url, f"group-{run}")
                return Sample(rate.rate, rate.cpu, durability=FSYNC)

            ways: dict[str, To] = {"ours": kafka_in.ours, "loop by hand": kafka_in.by_hand, "one by one": kafka_in.one_by_one}
            await bench.compare("Kafka to the bus", "messages/s", {name: partial(into, way) for name, way in ways.items()})
            bench.ratio("Kafka → bus, of the loop by hand", "Kafka to the bus", "ours", "loop by hand", 0.70, 0.90)
            bench.ratio("Kafka → bus, times publishing one by one", "Kafka to the bus", "ours", "one by one", 8, 15)

            await kafka_out.make_topic(broker.servers)

            async def out_of_the_bus() -> Sample:
                async with servers.nats(folder / f"nats-{next(number)}") as bus:
                    rate = await kafka_out.leaving(broker.servers, bus.url)
                return Sample(rate.rate, rate.cpu)

            async def bare() -> Sample:
                async with kafka_out.bare(broker.servers) as send:
                    rate = await kafka_out.measure(send)
                return Sample(rate.rate, rate.cpu)

            await bench.compare("bus to Kafka", "events/s", {"ours": out_of_the_bus, "bare idempotent send()": bare})
            bench.ratio("bus → Kafka, of a bare send()", "bus to Kafka", "ours", "bare idempotent send()", 0.5, 1.0)

            async def stalled() -> Sample:
                return Sample(await connector_memory.of_kafka(broker, folder / f"stalled-{next(number)}") / 1e6)

            await bench.compare("stalled connector", "MB", {"ours": stalled})
            bench.bound("memory of a connector whose bus is stalled, MB", "stalled connector", "ours", 200, 100)

        async with servers.rabbitmq(folder / "rabbit") as rabbit:

            async def from_rabbit(way: Callable[..., Awaitable[None]]) -> Sample:
                await rabbitmq_in.fill(rabbit.url, "classic", RABBIT_MESSAGES)
                async with servers.nats(folder / f"nats-{next(number)}") as server, NatsBus(server.url).open() as bus:
                    started = monotonic()
                    await way(rabbit.url, bus, RABBIT_MESSAGES)
                    return Sample(RABBIT_MESSAGES / (monotonic() - started), durability=FSYNC)

            pika = {"ours": rabbitmq_in.ours, "bare aio-pika": rabbitmq_in.loop}
            await bench.compare("RabbitMQ to the bus", "messages/s", {name: partial(from_rabbit, way) for name, way in pika.items()})
            bench.ratio("RabbitMQ → bus, of a bare aio-pika loop", "RabbitMQ to the bus", "ours", "bare aio-pika", 0.85, 3)
