"""Three brokers, of which one is killed: the connector and the sink go on, and nothing is lost or stored twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from broker_faas.buses.nats import NatsBus
from broker_faas.connectors.sink import Outgoing
from broker_faas.connectors.sinks.kafka import KafkaSink
from broker_faas.errors import SinkUnavailable
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.integration.test_kafka import LONG, running, stored
from tests.kafka_server import OwnKafka
from tests.systems.kafka import Topic, admin, event_of, key_of, records, topic_on

pytestmark = pytest.mark.timeout(400)  # three brokers take their time to start

COUNT, BEFORE = 3000, 500


async def test_a_leader_that_is_killed_takes_nothing_along(three_kafkas: Sequence[OwnKafka], bus_url: str) -> None:
    """Neither of what is read, nor of what is written; and one position has one event on the bus."""
    servers = await joined(three_kafkas)
    source, target = await topic_on(servers, 3, 3), await topic_on(servers, 3, 3)
    began = [asyncio.Event() for _ in range(3)]
    async with NatsBus(bus_url).open() as bus, running(source.options(batch=50), bus) as pump, asyncio.TaskGroup() as tasks:
        tasks.create_task(produce(source, began[0]))
        sent = tasks.create_task(send(target, began[1]))
        await eventually(lambda: pump.status.stored > BEFORE, LONG)
        for one in began[:2]:
            await one.wait()
        victim = three_kafkas[min({*await leaders(source)} & {*await leaders(target)}) - 1]
        await victim.kill()
        await eventually(lambda: pump.status.stored >= COUNT, 2 * LONG)
        confirmed = await sent
        await victim.start()
        events = await stored(bus)
    found = await records(servers, target.name, COUNT)

    assert {event.data for event in events} == {b"%d" % n for n in range(COUNT)}
    assert [id for id, times in Counter(event.id for event in events).items() if times > 1] == []
    assert confirmed == {event_of(one).id for one in found} == {str(n) for n in range(COUNT)}
    for key in range(7):
        mine = dict.fromkeys(int(event_of(one).id) for one in found if key_of(one) == f"k{key}")
        assert list(mine) == sorted(mine)


async def test_a_partition_that_cannot_be_written_holds_up_no_other(three_kafkas: Sequence[OwnKafka]) -> None:
    """Its leader hangs, it has none, or it has too few replicas."""
    servers = await joined(three_kafkas)
    thin = await topic_on(servers, 3, 2)
    topic = await topic_on(servers, 3, 1)
    events = [Outgoing(topic.name, CloudEvent(type="t", source="/", id=str(n), partitionkey=f"k{n}")) for n in range(30)]
    async with KafkaSink(servers=servers, timeout=20.0).open() as sink, KafkaSink(servers=servers, timeout=1.0).open() as hasty:
        assert await sink.send(events) == [None] * 30
        partitions = {key_of(one): one.partition for one in await records(servers, topic.name, 30)}
        found = await leaders(topic)
        victim = three_kafkas[0]
        [gone] = [partition for partition, node in enumerate(found) if node == victim.node]
        victim.freeze()
        answers = await hasty.send(events)  # before the others notice

        assert {one.reason for n, one in enumerate(answers) if one and partitions[f"k{n}"] == gone} == {
            f"partition {gone} of topic '{topic.name}' does not confirm, and others do: is it healthy?"
        }
        await victim.kill()
        answers = await sink.send(events)

        assert {n for n, one in enumerate(answers) if one} == {n for n in range(30) if partitions[f"k{n}"] == gone}
        assert {one.reason for one in answers if one} == {f"partition {gone} of topic '{topic.name}' has no leader"}
    to_thin = [Outgoing(thin.name, one.event) for one in events]
    short = [partition for partition, nodes in enumerate(await described(thin, "replicas")) if victim.node in nodes]
    async with KafkaSink(servers=servers, timeout=20.0).open() as sink:
        answers = await sink.send(to_thin)

        assert 0 < len(short) < 3
        assert {n for n, one in enumerate(answers) if one} == {n for n in range(30) if partitions[f"k{n}"] in short}
        assert {one.reason for one in answers if one} == {
            f"partition {n} of topic '{thin.name}' does not confirm; 1 of 2 replicas are in sync" for n in short
        }
        await victim.start()

        async def led() -> bool:
            return -1 not in await leaders(topic)

        await eventually(led, LONG)
    async with KafkaSink(servers=servers, timeout=20.0).open() as sink:
        assert await sink.send([*events, *to_thin]) == [None] * 60


async def joined(brokers: Sequence[OwnKafka]) -> str:
    """Their addresses, once all know each other."""
    servers = ",".join(one.servers for one in brokers)

    async def all_there() -> bool:
        async with admin(servers) as client:
            return len((await client.describe_cluster())["brokers"]) == len(brokers)

    await eventually(all_there, LONG)
    return servers


async def leaders(topic: Topic) -> list[int]:
    """Of each partition, the broker's number; -1: none."""
    return await described(topic, "leader")


async def described(topic: Topic, what: str) -> list[Any]:
    async with admin(topic.servers) as client:
        [found] = await client.describe_topics([topic.name])
    return [one[what] for one in sorted(found["partitions"], key=lambda one: one["partition"])]


async def produce(topic: Topic, began: asyncio.Event) -> None:
    async with AIOKafkaProducer(bootstrap_servers=topic.servers, enable_idempotence=True) as producer:
        for first in range(0, COUNT, 50):
            for sent in [await producer.send(topic.name, b"%d" % n) for n in range(first, first + 50)]:
                await sent
            if first >= BEFORE:
                began.set()


async def send(topic: Topic, began: asyncio.Event) -> set[str]:
    """The ids that were confirmed."""
    waiting = [Outgoing(topic.name, CloudEvent(type="t", source="/", id=str(n), partitionkey=f"k{n % 7}")) for n in range(COUNT)]
    confirmed: set[str] = set()
    while waiting:
        try:
            async with KafkaSink(servers=topic.servers, timeout=20.0).open() as sink:
                while waiting:
                    assert await sink.send(waiting[:50]) == [None] * len(waiting[:50])
                    confirmed.update(one.event.id for one in waiting[:50])
                    del waiting[:50]
                    if len(confirmed) > BEFORE:
                        began.set()
        except SinkUnavailable:
            await asyncio.sleep(0.2)
    return confirmed
