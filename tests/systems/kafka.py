"""Kafka in tests: a topic and a group of a test's own, and what the contracts of connectors and sinks ask of a system."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata
from cloudevents.core.bindings.kafka import to_binary_event
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from broker_faas.connectors.kafka import KafkaConnector
from broker_faas.connectors.sinks.kafka import KafkaSink
from broker_faas.event import CloudEvent
from broker_faas.kafka_binding import from_kafka
from tests.proxy import Proxy


@asynccontextmanager
async def kafka_system(servers: str) -> AsyncIterator[KafkaSystem]:
    """One topic of one partition. servers: one `host:port`."""
    host, _, port = servers.rpartition(":")
    async with Proxy(int(port)).open() as proxy:
        # A broker tells its clients where to go on: here, too.
        proxy.swap = _address(host, int(port)), _address(host, proxy.port)
        yield KafkaSystem(await topic_on(servers), f"{host}:{proxy.port}", proxy)


def _address(host: str, port: int) -> bytes:
    """As brokers are told to clients."""
    return host.encode() + port.to_bytes(4)


class KafkaSystem:
    """tests/contract/test_connectors.py: System. The connector's connections go through the proxy, and those of the test do not."""

    replayable = True

    def __init__(self, topic: Topic, servers: str, proxy: Proxy) -> None:
        self._topic = topic
        self._servers = servers
        self._proxy = proxy

    async def produce(self, *data: bytes) -> None:
        await self._topic.send(data)

    async def produce_native(self, event: CloudEvent) -> None:
        message = to_binary_event(SdkEvent(dict(event.attributes), event.data))
        if event.time is None:
            del message.headers["ce_time"]  # which the SDK makes up
        await self._topic.send([message.value], key=message.key, headers=list(message.headers.items()))

    async def produce_poison(self) -> None:
        named = {"ce_specversion": b"1.0", "ce_id": b"1", "ce_source": b"/", "ce_type": b"\xff"}
        await self._topic.send([b"poison"], headers=list(named.items()))

    def connector(self) -> KafkaConnector:
        return self._topic.options(servers=self._servers, batch=20)  # what a claim needs comes in more than one batch

    def sink(self, **options: Any) -> KafkaSink:
        given: dict[str, Any] = {"servers": self._servers, "timeout": 5.0}
        return KafkaSink(**given | options)

    async def target(self) -> str:
        """One of the test's own, where a sink may send to."""
        return (await topic_on(self._topic.servers)).name

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        return [(key_of(one), event_of(one)) for one in await records(self._topic.servers, target, n)]

    def away(self) -> None:
        """Nobody answers, until back()."""
        self._proxy.accepting = False
        self._proxy.cut()

    def back(self) -> None:
        self._proxy.accepting = True

    async def acked(self) -> int:
        return sum(one.offset for one in (await self._topic.committed()).values())

    async def cut(self) -> None:
        self._proxy.cut()


class Topic:
    """A topic and a group of a test's own."""

    def __init__(self, servers: str, name: str) -> None:
        self.servers = servers
        self.name = name
        self.group = f"g-{name}"

    def options(self, **changes: Any) -> KafkaConnector:
        quick = {"session_timeout": 6.0, "heartbeat_interval": 0.5, "rebalance_timeout": 10.0}
        return KafkaConnector(**{"servers": self.servers, "group": self.group, "topics": (self.name,)} | quick | changes)

    async def send(self, values: Sequence[bytes | None], partition: int = 0, **options: Any) -> None:
        """One after the other into one partition. key, headers, timestamp_ms: of each; others: of the producer."""
        each = {name: options.pop(name) for name in ("key", "headers", "timestamp_ms") if name in options}
        producer = AIOKafkaProducer(bootstrap_servers=self.servers, acks="all", **options)
        await producer.start()
        try:
            for sent in [await producer.send(self.name, value, partition=partition, **each) for value in values]:
                await sent
        finally:
            await producer.stop()

    async def committed(self) -> dict[int, OffsetAndMetadata]:
        async with admin(self.servers) as client:
            found = await client.list_consumer_group_offsets(self.group)
        return {one.partition: offset for one, offset in found.items() if one.topic == self.name}

    async def commit(self, offset: int, partition: int = 0) -> None:
        """As kafka-consumer-groups.sh --reset-offsets does."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.servers, group_id=self.group, enable_auto_commit=False)
        consumer.assign([TopicPartition(self.name, partition)])
        await consumer.start()
        await consumer.commit({TopicPartition(self.name, partition): offset})
        await consumer.stop()


@asynccontextmanager
async def admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def topic_on(servers: str, partitions: int = 1, replicas: int = 1, **configs: str | int) -> Topic:
    """configs: with `_` for the dots, as max_message_bytes=1000."""
    name = f"t{secrets.token_hex(4)}"
    named = {option.replace("_", "."): str(value) for option, value in configs.items()}
    async with admin(servers) as client:
        await client.create_topics([NewTopic(name, partitions, replicas, topic_configs=named)])
        brokers = [one["node_id"] for one in (await client.describe_cluster())["brokers"]]
        async with asyncio.timeout(30):  # each may answer before it knows of a topic that was just made, and a client asks any of them
            for broker in brokers:
                while name not in await _topics(client, broker):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    return Topic(servers, name)


async def _topics(client: AIOKafkaAdminClient, broker: int) -> list[str]:
    """That this broker knows."""
    answer = await client._send_request(MetadataRequest(None), broker)
    return [one["topic"] for one in answer.to_object()["topics"]]


async def records(servers: str, topic: str, n: int) -> list[ConsumerRecord]:
    """All that a topic has, when it has n at least; a partition's in its order."""
    found: list[ConsumerRecord] = []
    async with AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest") as consumer:
        async with asyncio.timeout(30):  # nor is every broker as quick as the one that was asked before
            while not (numbers := (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        partitions = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        async with asyncio.timeout(60):
            while len(found) < n or any([await consumer.position(one) < end for one, end in ends.items()]):
                for some in (await consumer.getmany(timeout_ms=200)).values():
                    found += some
    return sorted(found, key=lambda one: (one.partition, one.offset))


def key_of(record: ConsumerRecord) -> str | None:
    return None if record.key is None else str(record.key.decode())


def event_of(record: ConsumerRecord) -> CloudEvent:
    event = from_kafka(record.headers, record.key, record.value)
    assert event is not None
    return event
