"""Offsets of partitions: the group's, and where to begin. Each is that of the next record."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from ...errors import SourceRefused

OURS = "broker_faas"  # metadata of the offsets we commit: those of anybody else were set on purpose


def begin(name: str, stored: str | None, committed: OffsetAndMetadata | None) -> int | None:
    """The offset of partition `name` to begin at; None: at the option `start`, for nobody has read it. Raises SourceRefused.

    stored: last offset on the bus. It counts more than the group's offset, which it is ahead of after a crash, and behind if the bus
    was restored from an old copy. But who has set the group's offset after us means it.
    """
    if stored is None or (committed is not None and committed.metadata != OURS):
        return None if committed is None else int(committed.offset)
    if not re.fullmatch(r"[0-9]{1,18}", stored):
        raise SourceRefused(f"the position of {name} on the bus, {stored!r:.60}, is no offset: this connector did not write it")
    return int(stored) + 1


async def group_offsets(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
    """The group's offsets, where it has any. consumer.committed() would leave the metadata out."""
    found: dict[TopicPartition, OffsetAndMetadata] = await consumer._coordinator.fetch_committed_offsets(partitions)
    return found


async def start_offsets(consumer: AIOKafkaConsumer, start: str, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
    if not partitions:
        return {}
    offsets: dict[TopicPartition, int] = await (consumer.beginning_offsets if start == "earliest" else consumer.end_offsets)(partitions)
    return offsets


async def commit(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
    """As the group's, marked as ours. Raises kafka.CommitFailedError when the partitions are being handed out anew."""
    if offsets:
        await consumer.commit({one: OffsetAndMetadata(offset, OURS) for one, offset in offsets.items()})
