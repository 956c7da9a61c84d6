"""The open source: batches of what the group gave us, and their acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from ...errors import SourceRefused, SourceUnavailable
from ...event import CloudEvent
from ..batch import Batch, Refused
from .client import CONNECTING
from .errors import told
from .member import Assignment, Member
from .offsets import commit
from .records import items, raw

if TYPE_CHECKING:
    from ..kafka import KafkaConnector

COMMITTING = 10.0  # seconds
PAUSE = 0.1  # seconds after a commit: it is a hint, and takes brokers as long as reading a hundred records
IDLE = 30.0  # seconds without a record, after which the cluster is asked whether it is there


class _Token(NamedTuple):
    """assignment: that the batch was read in. next: all that this assignment has given so far."""

    assignment: Assignment
    next: Mapping[TopicPartition, int]


class Session:
    """pump.Source of a consumer group."""

    def __init__(self, one: KafkaConnector, consumer: AIOKafkaConsumer, source: str, member: Member) -> None:
        self._one = one
        self._consumer = consumer
        self._source = source
        self._member = member
        self._given: _Token | None = None  # of the last batch

    async def __aiter__(self) -> AsyncIterator[Batch]:
        loop = asyncio.get_running_loop()
        member = self._member
        last = loop.time()
        while True:
            with told():
                found = await self._poll()
            if member.failure:
                raise member.failure
            if found:
                member.settled.clear()
                yield self._batch(found)
                last = loop.time()
            elif loop.time() - last > IDLE:
                with told():  # aiokafka tries to connect again for ever, and says nothing
                    async with asyncio.timeout(CONNECTING):
                        await self._consumer.end_offsets(list(member.assignment.next)[:1])
                last = loop.time()

    async def ack(self, token: object) -> None:
        assert isinstance(token, _Token)
        if token.assignment is self._member.assignment:
            stored = token.assignment.stored
            mine = self._consumer.assignment()  # naming one that is lost would commit none
            offsets = {one: offset for one, offset in token.next.items() if one in mine and stored.get(one) != offset}
            try:
                with told():
                    async with asyncio.timeout(COMMITTING):
                        await commit(self._consumer, offsets)
            except SourceUnavailable:
                if self._member.ready.is_set():
                    raise
            else:
                # crash point: kafka-committed
                stored |= offsets
        if token is self._given:
            self._member.settled.set()
        await asyncio.sleep(PAUSE)

    async def lag(self) -> int | None:
        """What the partitions that this member of the group has hold behind what it stored."""
        assignment = self._member.assignment
        try:
            async with asyncio.timeout(CONNECTING):
                ends = await self._consumer.end_offsets(list(assignment.next)) if assignment.next else {}
                return sum([max(0, int(end) - await self._behind(assignment, one)) for one, end in ends.items()])
        except (TimeoutError, kafka.KafkaError):
            return None

    async def _behind(self, assignment: Assignment, partition: TopicPartition) -> int:
        """The position of the consumer, too, is behind markers of transactions, and what compaction left out."""
        stored = assignment.stored[partition]
        return stored if stored < assignment.next[partition] else int(await self._consumer.position(partition))

    async def _poll(self) -> Mapping[TopicPartition, list[ConsumerRecord]]:
        """What one look gives; nothing after a second, too."""
        ready = self._member.ready
        if not ready.is_set():
            try:
                async with asyncio.timeout(1):
                    await ready.wait()
            except TimeoutError:
                # Raises what the group says. Whatever it gives is read again after the seek, and an offset that it misses is yet to come.
                with suppress(kafka.NoOffsetForPartitionError, kafka.OffsetOutOfRangeError):
                    await self._consumer.getmany()
                return self._back()
        assignment = self._member.assignment
        try:
            found = await self._fair(assignment)
        except kafka.NoOffsetForPartitionError:
            return self._back()  # of the moment before the seek
        except kafka.OffsetOutOfRangeError as error:
            await self._check_range(error.args[0])
            return self._back()
        # Until the member's seek, aiokafka reads from wherever the group's offsets are.
        return found if ready.is_set() and assignment is self._member.assignment else self._back()

    def _back(self) -> Mapping[TopicPartition, list[ConsumerRecord]]:
        """What this look gave is not taken: partitions were handed out meanwhile. Some of it may be of the time after the member's seek,
        and aiokafka, which takes it for read, would not give it again."""
        if self._member.ready.is_set():
            for one, offset in self._member.assignment.next.items():
                self._consumer.seek(one, offset)
        return {}

    async def _fair(self, assignment: Assignment) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Those partitions first that had no turn since the others: aiokafka empties one before it looks at the next."""
        # A batch and its positions make one batch of the bus.
        room = max(self._one.batch // 2, self._one.batch - len(assignment.next), 1)
        served = assignment.served
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        if waiting := [one for one in assignment.next if one not in served]:
            found = await self._consumer.getmany(*waiting, max_records=room)
        if not found:
            served.clear()
            found = await self._consumer.getmany(timeout_ms=1000, max_records=room)
        elif served and (left := room - sum(map(len, found.values()))) > 0:
            found |= await self._consumer.getmany(*served, max_records=left)
        served.update(found)
        return found

    def _batch(self, found: Mapping[TopicPartition, list[ConsumerRecord]]) -> Batch:
        assignment = self._member.assignment
        parts: dict[str, list[CloudEvent | Refused]] = {}
        given: dict[str, list[ConsumerRecord]] = {}
        positions = {}
        for partition, records in found.items():
            parts.setdefault(partition.topic, []).extend(items(records, self._source, self._one.event_type))
            given.setdefault(partition.topic, []).extend(records)
            last = records[-1].offset
            positions[f"{partition.topic}/{partition.partition}"] = str(last)
            assignment.next[partition] = last + 1
        self._given = _Token(assignment, dict(assignment.next))
        of_parts = list(given.values())
        return Batch(list(parts.items()), self._given, positions, lambda part, n: raw(of_parts[part][n]))

    async def _check_range(self, asked: Mapping[TopicPartition, int]) -> None:
        [(partition, offset)] = asked.items()
        if not self._member.ready.is_set() or await self._consumer.position(partition) != offset:
            return  # of the moment before the seek
        async with asyncio.timeout(CONNECTING):
            first = (await self._consumer.beginning_offsets([partition]))[partition]
            end = (await self._consumer.end_offsets([partition]))[partition]
        name = f"{partition.topic}/{partition.partition}"
        lost = f"{first - offset:,} records were deleted unread" if offset < first else "the topic was made anew, or lost records"
        raise SourceRefused(
            f"offset {offset} of {name} is out of range, Kafka has {first} to {end}: {lost}. To go on with what there is: "
            f"kafka-consumer-groups.sh --group {self._one.group} --topic {partition.topic}:{partition.partition} "
            "--reset-offsets --to-earliest --execute, and start the connector again"
        )
