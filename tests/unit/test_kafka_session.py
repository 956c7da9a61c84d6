"""connectors/kafka_parts/session.py without a Kafka: what happens while partitions are handed out, at the worst moment."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import NoOffsetForPartitionError

from broker_faas.connectors.kafka import KafkaConnector
from broker_faas.connectors.kafka_parts.member import Assignment, Member
from broker_faas.connectors.kafka_parts.session import Session

PARTITION = TopicPartition("t", 0)
STORED = 5  # the offset that the member's seek goes to


class Consumer:
    """As aiokafka's: what it has given counts as read. while_looking: what happens within the next getmany()."""

    def __init__(self) -> None:
        self.position = 0
        self.while_looking: Any = None

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.position = offset

    async def getmany(self, *partitions: TopicPartition, **_: Any) -> dict[TopicPartition, list[ConsumerRecord]]:
        happens, self.while_looking = self.while_looking, None
        if happens:
            happens()
        first, self.position = self.position, self.position + 3
        return {PARTITION: [ConsumerRecord("t", 0, n, 0, 0, None, b"%d" % n, None, 0, 1, []) for n in range(first, first + 3)]}


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def member(consumer: Consumer) -> Member:
    member = Member(consumer, "earliest", None)  # type: ignore[arg-type]
    member.assignment = Assignment({PARTITION: 0})
    member.ready.set()
    return member


async def first_given(consumer: Consumer, member: Member) -> str:
    session = Session(KafkaConnector(servers="127.0.0.1:1", group="g", topics=("t",)), consumer, "/p/c", member)
    batch = await anext(aiter(session))
    return batch.items[0][1].id  # type: ignore[union-attr]


def handed_out(consumer: Consumer, member: Member) -> None:
    """As on_partitions_revoked() and on_partitions_assigned() do."""
    member.assignment = Assignment({PARTITION: STORED})
    consumer.seek(PARTITION, STORED)


async def test_what_a_look_gives_from_behind_the_seek_is_given_again(consumer: Consumer, member: Member) -> None:
    """The look began before partitions were handed out, and ended after the first records of the new assignment had come."""
    consumer.while_looking = lambda: handed_out(consumer, member)

    assert await first_given(consumer, member) == f"t/0/{STORED}"


async def test_nor_is_anything_left_out_when_a_look_ends_with_an_error_of_before(consumer: Consumer, member: Member) -> None:
    def fails() -> None:
        handed_out(consumer, member)
        consumer.position += 3  # given to the first of two looks
        raise NoOffsetForPartitionError(PARTITION)

    consumer.while_looking = fails

    assert await first_given(consumer, member) == f"t/0/{STORED}"
