"""From Kafka and RabbitMQ to the bus and back to Kafka, beside loops by hand for the one job; from Kafka into functions; memory while
the bus is stalled."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count
from operator import sub
from pathlib import Path
from time import monotonic

from broker_faas.buses.nats import NatsBus
from tests import kafka_server

from .. import connector_memory, contenders, kafka_in, kafka_out, kafka_through, rabbitmq_in, rounds, servers
from ..bench import Bench, Sample, Take
from .latency import add_p99, median_of

FSYNC = "fsync before the acknowledgement (sync_interval: always)"
RABBIT_MESSAGES = 20_000
THROUGH, ONE_BY_ONE = 60_000, 1_000  # events that functions get from Kafka; those of a peer that commits each

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

            await kafka_in.make_topic(broker.servers)

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

        await into_functions(bench, folder, number)

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


async def into_functions(bench: Bench, folder: Path, number: Iterator[int]) -> None:
    """A broker that lets the members of a group come together, as Kafka does: FastStream has two, which would take turns else."""
    async with kafka_server.running(folder / "kafka-functions", joining=1.5) as broker:
        await kafka_through.fill(broker, "many", THROUGH)
        await kafka_through.fill(broker, "few", ONE_BY_ONE)

        def drain(make: Callable[..., contenders.Contender], topic: str, *numbers: int) -> Take:
            return lambda: rounds.drain(make(broker, topic, f"group-{next(number)}", *numbers))

        ways = {"ours": drain(kafka_through.ours, "many", THROUGH)}
        if "faststream" in bench.peers:
            ways["FastStream, one by one"] = drain(kafka_through.faststream, "few", ONE_BY_ONE)
            ways["FastStream, 500 a batch"] = drain(kafka_through.faststream, "many", THROUGH, 500)
        await bench.compare("Kafka to a function", "events/s", ways)
        bench.ratio("Kafka → function, times FastStream one by one", "Kafka to a function", "ours", "FastStream, one by one", 100, 200)
        bench.ratio("Kafka → function, of FastStream in batches", "Kafka to a function", "ours", "FastStream, 500 a batch", 0.5, 0.9)

        taken: dict[str, list[tuple[float, Sample]]] = {"bus alone": [], "from Kafka": []}

        async def from_kafka() -> Sample:
            topic = f"paced-{next(number)}"
            await kafka_in.make_topic(broker.servers, topic)
            return await median_of(kafka_through.ours_paced(broker, topic), taken["from Kafka"])

        at = "200/s, from Kafka"
        paced: dict[str, Take] = {"bus alone": partial(median_of, contenders.ours(), taken["bus alone"]), "from Kafka": from_kafka}
        await bench.compare(f"p50 at {at}", "ms", paced)
        add_p99(bench, at, taken)
        for quantile, must, aim in (("p50", 6, 2), ("p99", 25, 8)):
            text = f"{quantile} at 200/s from Kafka, more than the bus alone, ms"
            bench.ratio(text, f"{quantile} at {at}", "from Kafka", "bus alone", must, aim, higher=False, by=sub)
