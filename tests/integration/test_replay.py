"""What was quarantined from a real system becomes an event when its decoder is mended: the decoder of the docs, on real servers."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
from pamqp.commands import Basic

from broker_faas.buses.nats import NatsBus
from broker_faas.buses.reading import read
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.markdown import ROOT, blocks
from tests.rabbitmq_server import Rabbit
from tests.systems.kafka import topic_on
from tests.terminal import Faas, project

pytestmark = pytest.mark.timeout(240)

SCHEMA = {
    "type": "record",
    "fields": [{"name": "id", "type": "long"}, {"name": "sku", "type": "string"}, {"name": "price", "type": "double"}],
}


def order(id: int, sku: str, price: float, schema: int = 7) -> bytes:
    """As Confluent's serializer for Avro writes it."""

    def long(number: int) -> bytes:
        number = (number << 1) ^ (number >> 63)
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*out, number])

    return struct.pack(">bI", 0, schema) + long(id) + long(len(sku.encode())) + sku.encode() + struct.pack("<d", price)


class Source(NamedTuple):
    """toml: of its connector. send: foreign messages, one by one. native: a CloudEvent in its binary mode, with this data."""

    toml: str
    send: Callable[[list[bytes]], Awaitable[None]]
    native: Callable[[bytes], Awaitable[None]]


CE = {"specversion": "1.0", "id": "native", "source": "/lager", "type": "größe"}


@asynccontextmanager
async def kafka_source(servers: str) -> AsyncIterator[Source]:
    topic = await topic_on(servers)

    async def send(data: list[bytes]) -> None:
        await topic.send(data, key=b"\xffkey", headers=[("x", b"\xff")])

    async def native(data: bytes) -> None:
        await topic.send([data], headers=[(f"ce_{name}", value.encode()) for name, value in CE.items()])

    toml = f'type = "kafka"\nservers = "{servers}"\ngroup = "{topic.group}"\ntopics = ["{topic.name}"]\n'
    yield Source(toml + "session_timeout = 6\nheartbeat_interval = 0.5\nrebalance_timeout = 10\n", send, native)


@asynccontextmanager
async def rabbitmq_source(rabbit: Rabbit) -> AsyncIterator[Source]:
    queue = f"q{secrets.token_hex(4)}"
    await rabbit.declare(queue)

    async def send(data: list[bytes]) -> None:
        for n, one in enumerate(data):
            await rabbit.send(queue, [one], Basic.Properties(message_id=f"m{n}", headers={"x": bytearray(b"\xff"), "n": 1}))

    async def native(data: bytes) -> None:
        await rabbit.send(queue, [data], Basic.Properties(headers={f"ce-{name}": value for name, value in CE.items()}))

    yield Source(f'type = "rabbitmq"\nurl = "{rabbit.url}"\nqueue = "{queue}"\n', send, native)
    async with rabbit.channel() as channel:
        await channel.queue_delete(queue)


@asynccontextmanager
async def nats_source(url: str) -> AsyncIterator[Source]:
    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="foreign", subjects=["foreign.>"])

    async def send(data: list[bytes]) -> None:
        for one in data:
            await jetstream.publish("foreign.a", one, headers={"x": "1"})

    async def native(data: bytes) -> None:
        encoded = CE | {"type": "gr%C3%B6%C3%9Fe"}
        await jetstream.publish("foreign.b", data, headers={f"ce-{name}": value for name, value in encoded.items()})

    try:
        yield Source(f'type = "nats"\nurl = "{url}"\nstream = "foreign"\nconsumer = "faas"\ncreate = true\n', send, native)
    finally:
        await client.close()


SOURCES = {"kafka": kafka_source, "rabbitmq": rabbitmq_source, "bus_url": nats_source}


async def on_bus(url: str) -> list[CloudEvent]:
    async with NatsBus(url).open() as bus:
        return [CloudEvent.from_headers(one.headers, one.data) async for one in read(bus.connection, "events", ["ev.>"])]


@pytest.fixture(params=SOURCES)
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Source]:
    """Not async: such a fixture cannot ask for another one by its name."""
    make: Any = SOURCES[request.param]
    made: AbstractAsyncContextManager[Source] = make(request.getfixturevalue(request.param))
    return made


async def test_what_had_no_schema_is_replayed_with_the_id_that_it_would_have_had(
    opening: AbstractAsyncContextManager[Source], bus_url: str, tmp_path: Path
) -> None:
    page = ROOT / "docs" / "connectors" / "index.md"
    folder = project(tmp_path / "shop", "")
    (folder / "decoders.py").write_text(next(block.text for block in blocks(page) if "decoders.py" in block.words))
    (folder / "schemas").mkdir()
    (folder / "schemas" / "7.avsc").write_text(json.dumps(SCHEMA))
    ask = Faas(folder, NATS_URL=bus_url)
    async with opening as source:
        with open(folder / "faas.toml", "a") as toml:
            toml.write(f'[[connector]]\nname = "orders"\nto = "shop.orders"\ndecode = "decoders:avro"\n{source.toml}')
        await source.send([order(1, "größe", 9.5), order(-2, "b", 0.5, schema=8), b"\x01no magic"])
        await source.native(order(3, "c", 1.5, schema=8))
        async with running(ask):
            await eventually(lambda: ask.json("connectors")[0].get("read") == 4, 90)
        kept = await on_bus(bus_url)
        reasons = [row["reason"] for row in ask.json("quarantine", "list")]
        (folder / "schemas" / "8.avsc").write_text(json.dumps(SCHEMA))
        done = ask("quarantine", "replay", "orders", code=1)
        events = await on_bus(bus_url)
        [left] = ask.json("quarantine", "list")
    foreign, replayed, native = events

    assert [event.json() for event in kept] == [{"id": 1, "sku": "größe", "price": 9.5}]
    assert [reason.rpartition(": ")[2] for reason in reasons] == [
        "schema 8 is not in schemas/",
        "begins with 1, and not with a zero",
        "schema 8 is not in schemas/",
    ]
    assert done.stdout.splitlines()[-1] == "replayed 2 records of orders"
    assert [event.json() for event in events] == [
        {"id": 1, "sku": "größe", "price": 9.5},
        {"id": -2, "sku": "b", "price": 0.5},
        {"id": 3, "sku": "c", "price": 1.5},
    ]
    assert {name: native[name] for name in CE} == CE
    assert "begins with 1" in left["reason"]
    # All but what counts or dates is as of the one beside it.
    assert set(replayed.attributes) == set(foreign.attributes)
    assert {replayed[name] for name in ("source", "type", "datacontenttype")} == {
        foreign[name] for name in ("source", "type", "datacontenttype")
    }
    assert replayed.partitionkey == foreign.partitionkey
    if '"nats"' not in source.toml:  # whose ids hold a time
        assert replayed.id == foreign.id[:-1] + "1"


@asynccontextmanager
async def running(ask: Faas) -> AsyncIterator[None]:
    with ask.running("connect") as process:
        await asyncio.to_thread(process.wait_for, "connectors run", 60)
        yield
        assert await asyncio.to_thread(process.stop) in (0, 130)
