"""A member of the consumer group: which partitions it has, where each is begun, and how they are handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from ...errors import BusUnavailable, SourceUnavailable
from ..pump import Positions
from .errors import told
from .offsets import OURS, begin, commit, group_offsets, start_offsets

HANDING_OVER = 5.0  # seconds that a rebalance, and leaving, waits for what is being stored


class Assignment:
    """The partitions that the group gave us at one time. Offsets: of the next record."""

    def __init__(self, at: dict[TopicPartition, int]) -> None:
        self.next = at  # behind what was given
        self.stored = dict(at)  # behind what was acknowledged
        self.served: set[TopicPartition] = set()  # had their turn


class Member(ConsumerRebalanceListener):  # type: ignore[misc]
    """ready: every partition of the assignment is where it shall be read from. settled: nothing that was given waits for its ack.

    failure: aiokafka calls the two methods of its listener from a task of its own, and loses what they raise.
    """

    def __init__(self, consumer: AIOKafkaConsumer, start: str, positions: Positions) -> None:
        self._consumer = consumer
        self._start = start
        self._positions = positions
        self.assignment = Assignment({})
        self.failure: Exception | None = None
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """What was given may still be stored and committed by us: who gets the partition next then does not read it again."""
        self.ready.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(HANDING_OVER):
                await self.settled.wait()
        # crash point: kafka-revoked
        self.assignment = Assignment({})

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        try:
            with told():
                await self._begin(list(assigned))
        except _HandedOn:
            return  # the group is at it again, and this will be called again
        except Exception as error:  # told to who reads
            self.failure = error
        self.ready.set()

    async def _begin(self, partitions: list[TopicPartition]) -> None:
        committed = await group_offsets(self._consumer, partitions)
        at: dict[TopicPartition, int] = {}
        for one in partitions:
            name = f"{one.topic}/{one.partition}"
            try:
                stored = await self._positions(name)
            except BusUnavailable as error:
                raise SourceUnavailable(f"how far {name} is stored cannot be asked: {error}") from None
            offset = begin(name, stored, committed.get(one))
            if offset is not None:
                at[one] = offset
        at |= await start_offsets(self._consumer, self._start, [one for one in partitions if one not in at])
        # What others have set stays, until something behind it is stored. Ours is mended: others see a group's lag by it.
        ours = {one for one in partitions if one not in committed or committed[one].metadata == OURS}
        try:
            await commit(self._consumer, {one: at[one] for one in ours if one not in committed or committed[one].offset != at[one]})
        except kafka.CommitFailedError:
            raise _HandedOn from None
        # crash point: kafka-assigned
        for one, offset in at.items():
            self._consumer.seek(one, offset)
        self.assignment = Assignment(at)


class _HandedOn(Exception):
    """The partitions are being handed out anew already."""
