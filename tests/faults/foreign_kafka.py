"""Apache Kafka in a run: one broker, a topic of four partitions, producers that are idempotent and wait for all replicas."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from broker_faas.connectors.kafka_parts.cluster import Cluster
from broker_faas.connectors.kafka_parts.producer import producing

from ..helpers import eventually
from ..kafka_server import OwnKafka
from .brokers import COPY, TOPIC, Write, Written
from .ledger import foreign_id
from .process import Process

PARTITIONS = 4
GROUP = "faults"


class Kafka:
    def __init__(self, place: Path, log: Path) -> None:
        self._own = OwnKafka(place)
        self.environ = {"KAFKA": self._own.servers}
        self.process = Process("kafka", self._own.command, os.environ, place, log, self._ready)
        self._topic = False

    async def make(self) -> None:
        await self._own.make()

    async def settle(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._own.servers)
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        await admin.close()
        self._topic = True
        await self._ready()

    async def kill(self) -> int:
        return await self.process.kill()

    async def _ready(self) -> None:
        await eventually(self._leads, 60)

    async def _leads(self) -> bool:
        """Whether it answers, and leads what it has: then it can be written to."""
        client = AIOKafkaClient(bootstrap_servers=self._own.servers)
        try:
            await client.bootstrap()
            cluster = await client.fetch_all_metadata()
            there = [TopicPartition(TOPIC, n) for n in cluster.partitions_for_topic(TOPIC) or ()]
            return not self._topic or (
                len(there) == PARTITIONS and all(cluster.leader_for_partition(one) not in (None, -1) for one in there)
            )
        except KafkaError as error:
            raise AssertionError("not yet") from error
        finally:
            await client.close()

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Write]:
        async with producing(Cluster(servers=self._own.servers), None, 10.0) as producer:

            async def write(one: Written) -> None:
                headers: list[tuple[str, bytes]] = [("content-type", b"application/octet-stream")]
                if one.native:
                    named = {"specversion": "1.0", "id": one.id, "source": "/load", "type": "load", COPY: str(one.copy)}
                    headers += [(f"ce_{name}", text.encode()) for name, text in named.items()]
                if one.poison:
                    headers.append(("ce_time", b"yesterday"))
                await producer.send_and_wait(TOPIC, one.data, key=one.key.encode(), headers=headers)

            yield write

    async def unread(self) -> bool:
        try:
            return not await self.committed(await self.ends())
        except KafkaError:
            return True

    async def ends(self) -> dict[TopicPartition, int]:
        """Of each partition: the offset of its next record."""
        async with AIOKafkaConsumer(bootstrap_servers=self._own.servers) as consumer:
            return dict(await consumer.end_offsets(_partitions()))

    async def committed(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether the group has come so far."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._own.servers)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(GROUP)
        finally:
            await admin.close()
        return all(not end or (one in found and found[one].offset >= end) for one, end in ends.items())

    async def holds(self) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        async with AIOKafkaConsumer(
            bootstrap_servers=self._own.servers, enable_auto_commit=False, auto_offset_reset="earliest"
        ) as consumer:
            consumer.assign(_partitions())
            ends = await consumer.end_offsets(_partitions())
            while any([await consumer.position(one) < end for one, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        headers = dict(record.headers)
                        if "ce_time" in headers:
                            continue  # poison
                        if "ce_id" in headers:
                            found[headers["ce_id"].decode(), f"{COPY} {headers[f'ce_{COPY}'].decode()}"] += 1
                        else:
                            found[foreign_id(record.value), f"{record.topic}/{record.partition}/{record.offset}"] += 1
        return found


def _partitions() -> list[TopicPartition]:
    return [TopicPartition(TOPIC, n) for n in range(PARTITIONS)]
