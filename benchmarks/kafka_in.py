"""Kafka to the bus: our pump beside a loop written by hand for this one job, in turns. Prints the medians and their ratio.

    python -m benchmarks.kafka_in [ROUNDS]

50,000 messages of 200 bytes on 4 partitions, one Kafka, a fresh bus a run. A rate begins with the first batch that is stored: joining the
group is not counted. The loop: getmany of 1000, one atomic batch in flight while the next is polled, offsets committed in the
background. No positions on the bus, no quarantine, no filters; it dies with any connection.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import NamedTuple
from urllib.parse import urlsplit

import nats
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from broker_faas.buses import store
from broker_faas.buses.nats import NatsBus
from broker_faas.connectors.batch import Route
from broker_faas.connectors.kafka import KafkaConnector
from broker_faas.connectors.pump import Pump
from tests import kafka_server

from . import servers

COUNT, SIZE, PARTITIONS, BATCH = 50_000, 200, 4, 1000
FEW = 3000
TOPIC = "bench"


class Rate(NamedTuple):
    """Messages a second, and microseconds of this process's CPU for each."""

    rate: float
    cpu: float


async def ours(kafka: str, url: str, group: str) -> Rate:
    async with NatsBus(url).open() as bus:
        options = KafkaConnector(servers=kafka, group=group, topics=(TOPIC,), batch=BATCH)
        pump = Pump(options, Route(name="c", source="/bench", to=TOPIC), bus, partial(store.position, bus, "c"))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump.run(stop))
            measured = await measure(lambda: pump.status.stored)
            stop.set()
    return measured


async def by_hand(kafka: str, url: str, group: str) -> Rate:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true,"user":"%b","pass":"%b"}\r\nSUB _H.> 1\r\n' % login(url))
    config = b'{"name":"HAND","subjects":["hand.>"],"storage":"file","allow_atomic":true}'
    writer.write(b"PUB $JS.API.STREAM.CREATE.HAND _H.0 %d\r\n%b\r\n" % (len(config), config))
    await answer(reader)
    consumer = AIOKafkaConsumer(
        TOPIC,
        bootstrap_servers=kafka,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    done = 0

    async def put(frames: list[bytes]) -> None:
        nonlocal done
        writer.write(b"".join(frames))
        await answer(reader)
        done += len(frames)

    async def run() -> None:
        storing = committing = None
        behind: dict[TopicPartition, int] = {}  # what is being stored
        read = number = 0
        while read < COUNT:
            found = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
            records = [record for some in found.values() for record in some]
            if not records:
                continue
            read, number = read + len(records), number + 1
            frames = atomic(records, number)
            if storing:
                await storing
                if committing:
                    await committing
                committing = tasks.create_task(consumer.commit(behind))
            behind = {partition: some[-1].offset + 1 for partition, some in found.items()}
            storing = tasks.create_task(put(frames))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        measured = await measure(lambda: done)
    await consumer.stop()
    writer.close()
    return measured


async def one_by_one(kafka: str, url: str, group: str) -> Rate:
    """What is written first: poll, publish each message and wait, commit. Measured over the first FEW."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="ONE", subjects=["one.>"])
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=kafka, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    done, started, used = 0, 0.0, 0.0
    while done < FEW:
        for records in (await consumer.getmany(timeout_ms=1000, max_records=200)).values():
            started, used = started or monotonic(), used or process_time()
            for record in records:
                await jetstream.publish("one.0", record.value, headers={"Nats-Msg-Id": f"{record.partition}/{record.offset}"})
                done += 1
        await consumer.commit()
    measured = Rate(done / (monotonic() - started), (process_time() - used) / done * 1e6)
    await consumer.stop()
    await client.close()
    return measured


def atomic(records: Sequence[ConsumerRecord], number: int) -> list[bytes]:
    """One atomic batch: each record as a binary CloudEvent."""
    frames = []
    commit = "Nats-Batch-Commit: 1\r\n"
    for n, record in enumerate(records, 1):
        last = n == len(records)
        id = f"{record.topic}/{record.partition}/{record.offset}"
        headers = (
            f"NATS/1.0\r\nNats-Batch-Id: {number}\r\nNats-Batch-Sequence: {n}\r\n{commit if last else ''}"
            f"Nats-Msg-Id: {id}\r\nce-specversion: 1.0\r\nce-id: {id}\r\nce-source: /bench\r\nce-type: kafka.record\r\n\r\n"
        ).encode()
        reply = b"_H.1" if last else b""
        frames.append(b"HPUB hand.0 %b %d %d\r\n%b%b\r\n" % (reply, len(headers), len(headers) + len(record.value), headers, record.value))
    return frames


async def answer(reader: asyncio.StreamReader) -> None:
    """The next answer; RuntimeError if it is an error."""
    while not (line := await reader.readline()).startswith((b"MSG", b"HMSG", b"-ERR")):
        pass
    body = line if line.startswith(b"-ERR") else await reader.readexactly(int(line.split()[-1]) + 2)
    if b'"error"' in body or b"-ERR" in body:
        raise RuntimeError(body.decode())


def numbered(number: int) -> bytes:
    return (b"%d " % number).ljust(SIZE, b"x")


def login(url: str) -> tuple[bytes, bytes]:
    parts = urlsplit(url)
    return (parts.username or "").encode(), (parts.password or "").encode()


async def measure(stored: Callable[[], int]) -> Rate:
    while not (first := stored()):  # noqa: ASYNC110 - an Event would be work of the ways, and cost them
        await asyncio.sleep(0.002)
    started, used = monotonic(), process_time()
    while stored() < COUNT:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    count = COUNT - first
    return Rate(count / (monotonic() - started), (process_time() - used) / count * 1e6)


async def fill(kafka: str, topic: str = TOPIC, count: int = COUNT, data: Callable[[int], bytes] = numbered) -> None:
    """data: of a message, by its number."""
    await make_topic(kafka, topic)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20, max_batch_size=1 << 16)
    await producer.start()
    for start in range(0, count, 5000):
        sent = [await producer.send(topic, data(n), partition=n % PARTITIONS) for n in range(start, min(count, start + 5000))]
        await asyncio.gather(*sent)
    await producer.stop()


async def make_topic(kafka: str, topic: str = TOPIC) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        if topic not in await admin.list_topics():
            await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    finally:
        await admin.close()


async def main(rounds: int) -> None:
    ways: dict[str, Callable[[str, str, str], Awaitable[Rate]]] = {"by hand": by_hand, "ours": ours}
    rates: dict[str, list[Rate]] = {way: [] for way in ways}
    with TemporaryDirectory() as folder:
        async with kafka_server.running(Path(folder) / "kafka") as broker:
            await fill(broker.servers)
            for number in range(rounds):
                for way, run in ways.items():
                    async with servers.nats(Path(folder) / f"nats-{number}-{way[0]}") as bus:
                        rates[way].append(await run(broker.servers, bus.url, f"{way[0]}{number}"))
                    print(f"{way:8} {rates[way][-1].rate:10,.0f} messages/s {rates[way][-1].cpu:6.1f} µs", flush=True)
    hand, our = (median(one.rate for one in rates[way]) for way in ways)
    print(f"medians: by hand {hand:,.0f}/s, ours {our:,.0f}/s, ratio {our / hand:.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
