"""What Kafka's answers mean for the events of a batch. Pure."""

from __future__ import annotations

import aiokafka.errors as kafka
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata

from ..sink import Undelivered

LONGEST = 249  # characters of a topic's name

BEHIND = Undelivered("an earlier event of its key is not delivered yet")

TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
OF_A_RECORD = (  # the broker does not say which one of the batch
    *TOO_LARGE,
    kafka.InvalidTimestampError,
    kafka.CorruptRecordException,
    kafka.UnsupportedForMessageFormatError,
    kafka.PolicyViolationError,
    kafka.UnknownError,  # aiokafka's name for errors that it does not know, too
)
OF_A_PARTITION = (
    kafka.TopicAuthorizationFailedError,
    kafka.InvalidTopicError,
    kafka.UnknownTopicOrPartitionError,
    kafka.NotLeaderForPartitionError,
    kafka.LeaderNotAvailableError,
)


def named_wrongly(topic: str) -> Undelivered | None:
    if len(topic) <= LONGEST and topic not in (".", ".."):
        return None
    return Undelivered(f"{topic[:40]!r}… cannot be the name of a topic in Kafka, which has at most {LONGEST} characters", again=False)


def missing(topic: str, user: str) -> Undelivered:
    return Undelivered(f"there is no topic {topic!r} in Kafka, or {user} may not see it: make it, or let {user} write to it")


def of_a_record(error: kafka.KafkaError, topic: str, size: int) -> Undelivered:
    """size: bytes of the batch that holds this record alone."""
    match error:
        case kafka.MessageSizeTooLargeError() | kafka.RecordListTooLargeError():
            return Undelivered(f"the record of {size:,} bytes is larger than topic {topic!r} takes (max.message.bytes)", again=False)
        case kafka.InvalidTimestampError():
            return Undelivered(f"topic {topic!r} takes no records of this time: is this machine's clock right?")
        case kafka.UnknownError():
            return Undelivered(f"topic {topic!r} does not take the record; if it is compacted, the event needs a partitionkey")
        case _:
            return Undelivered(f"topic {topic!r} does not take the record: {type(error).__name__}")


def of_a_partition(error: kafka.KafkaError | None, partition: TopicPartition, cluster: ClusterMetadata, user: str) -> Undelivered | None:
    """Why nothing can be written there. Without Kafka's error: None, if nothing is known to be wrong with it."""
    topic = partition.topic
    match error:
        case kafka.TopicAuthorizationFailedError():
            return Undelivered(f"{user} may not write to topic {topic!r} in Kafka: it needs the right Write")
        case kafka.InvalidTopicError():
            return Undelivered(f"Kafka lets nobody write to {topic!r}", again=False)
    found = cluster._partitions.get(topic)
    if found is None:
        return missing(topic, user)
    there = found.get(partition.partition)
    if there is None or there.leader == -1:
        return Undelivered(f"partition {partition.partition} of topic {topic!r} has no leader")
    if len(there.isr) < len(there.replicas):
        in_sync = f"{len(there.isr)} of {len(there.replicas)} replicas are in sync"
        return Undelivered(f"partition {partition.partition} of topic {topic!r} does not confirm; {in_sync}")
    return Undelivered(f"partition {partition.partition} of topic {topic!r}: {type(error).__name__}") if error else None
