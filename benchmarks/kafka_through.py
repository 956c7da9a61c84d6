"""From a topic of Kafka into a no-op function: connector, bus and worker as shipped, and FastStream, which has nothing between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from tests.kafka_server import OwnKafka

from . import contenders, kafka_in, servers
from .contenders import HERE, OURS, PEERS, Contender
from .marks import payload
from .servers import Server

# Not before the worker is ready: what is stored earlier would come faster than the connector reads.
WORK = f"'{OURS}/faas' worker & until grep -q 'worker ready' log; do sleep 0.02; done; exec '{OURS}/faas' connect"


async def fill(kafka: OwnKafka, topic: str, events: int) -> None:
    """All that a contender shall run: it publishes nothing itself."""
    await kafka_in.fill(kafka.servers, topic, events, lambda number: orjson.dumps(payload(number)))


def ours(kafka: OwnKafka, topic: str, group: str, events: int) -> Contender:
    @asynccontextmanager
    async def server(folder: Path) -> AsyncIterator[Server]:
        async with servers.nats(folder) as bus:
            yield replace(bus, beside=(kafka.pid,))

    made = contenders.ours(events=events)
    options = {"name": "c", "type": "kafka", "servers": kafka.servers, "group": group, "to": "bench"}
    connector = "".join(f'{name} = "{value}"\n' for name, value in options.items())
    return replace(
        made,
        server=server,
        publish=(),
        work=("sh", "-c", WORK),
        files={**made.files, "faas.toml": f'{made.files["faas.toml"]}\n[[connector]]\n{connector}topics = ["{topic}"]\n'},
    )


def ours_paced(kafka: OwnKafka, topic: str) -> Contender:
    """It publishes to the topic, which nobody else does."""
    return replace(
        ours(kafka, topic, topic, 0),
        publish=(str(OURS / "python"), str(HERE / "kafka_paced.py")),
        environ={"BENCH_KAFKA": kafka.servers, "BENCH_TOPIC": topic},
    )


def faststream(kafka: OwnKafka, topic: str, group: str, events: int, batch: int = 0) -> Contender:
    """batch: messages that a call gets; 0: one, without a list around it."""

    @asynccontextmanager
    async def server(folder: Path) -> AsyncIterator[Server]:
        yield Server(kafka.servers, kafka.pid, "none but Kafka's")

    return Contender(
        "FastStream",
        server,
        (),
        (str(PEERS / "faststream"), "run", "faststream_kafka:app", "--workers", "2"),
        events,
        {"BENCH_TOPIC": topic, "BENCH_GROUP": group, "BENCH_BATCH": str(batch)},
    )
