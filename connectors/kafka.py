"""Kafka -> events. A consumer group; where to begin is asked of the bus, and the group's offsets follow what is stored there.

aiokafka's own ways that would lose events are off: it commits nothing by itself, and an offset that is out of range ends the
connector instead of skipping to where there is something.

kafka_parts/cluster.py  the options of a connection
kafka_parts/session.py  batches and acknowledgements
kafka_parts/member.py   the group: where partitions begin, and how they are handed over
kafka_parts/records.py  what a record becomes
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from aiokafka import ConsumerRecord

from ..attributes import is_string
from .batch import Batch
from .kafka_parts.client import CONNECTING, connected, partitions
from .kafka_parts.cluster import Cluster
from .kafka_parts.errors import told
from .kafka_parts.member import Member
from .kafka_parts.offsets import group_offsets, start_offsets
from .kafka_parts.records import again, item, raw
from .kafka_parts.session import Session
from .pump import Positions


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConnector(Cluster):
    """Options: docs/connectors/kafka.md. Timeouts in seconds; batch: records at most."""

    group: str
    topics: tuple[str, ...] = ()
    topic_pattern: str | None = None
    start: Literal["earliest", "latest"] = "earliest"
    batch: int = 1000
    event_type: str = "kafka.record"
    group_instance_id: str | None = None
    session_timeout: float = 30.0
    heartbeat_interval: float = 3.0
    rebalance_timeout: float = 30.0

    def __post_init__(self) -> None:
        Cluster.__post_init__(self)  # super() does not find it: a dataclass with slots is made twice
        if bool(self.topics) == (self.topic_pattern is not None):
            raise ValueError("topics or topic_pattern must be given, and not both")
        if bad := [topic for topic in self.topics if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic) or topic in (".", "..")]:
            raise ValueError(f"topics has {bad[0]!r:.80}, which cannot be the name of a topic in Kafka")
        if len(set(self.topics)) < len(self.topics):
            raise ValueError("topics names something twice")
        try:
            re.compile(self.topic_pattern or "")
        except re.error as error:
            raise ValueError(f"topic_pattern is no regular expression: {error}") from None
        if not self.group:
            raise ValueError("group must not be empty")
        if not self.event_type or not is_string(self.event_type):
            raise ValueError("event_type must be text of at least one character, without control characters")
        if not 1 <= self.batch <= 10_000:
            raise ValueError("batch must lie between 1 and 10,000")
        if not 1 <= self.session_timeout <= 1800 or not 1 <= self.rebalance_timeout <= 1800:
            raise ValueError("session_timeout and rebalance_timeout must lie between 1 and 1800 seconds")
        if not 0.1 <= self.heartbeat_interval <= self.session_timeout / 3:
            raise ValueError("heartbeat_interval must be 0.1 seconds or more, and at most a third of session_timeout")

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[Session]:
        """Gives records once the group has handed out its partitions."""
        async with connected(self) as consumer:
            member = Member(consumer, self.start, positions)
            if self.topic_pattern is None:
                consumer.subscribe(self.topics, listener=member)
            else:
                consumer.subscribe(pattern=rf"(?:{self.topic_pattern})\Z", listener=member)
            try:
                yield Session(self, consumer, source, member)
            finally:
                member.settled.set()  # nobody reads on

    def again(self, source: str, data: bytes, rest: object) -> Batch:
        return again(data, rest, source, self.event_type)

    async def peek(self, source: str, n: int) -> Batch:
        """From where the group would go on, without joining it; nothing where that is the end."""
        async with connected(self) as consumer:
            there = await partitions(self, consumer)
            consumer.assign(there)
            with told():
                async with asyncio.timeout(CONNECTING):
                    ends = await consumer.end_offsets(there)
                    committed = await group_offsets(consumer, there)
                    missing = [one for one in there if one not in committed]
                    at = {one: found.offset for one, found in committed.items()} | await start_offsets(consumer, self.start, missing)
                    for one in there:
                        consumer.seek(one, at[one])
                found: list[ConsumerRecord] = []
                with suppress(TimeoutError):
                    async with asyncio.timeout(CONNECTING):
                        while len(found) < n and any([await consumer.position(one) < ends[one] for one in there]):
                            for records in (await consumer.getmany(timeout_ms=200, max_records=n - len(found))).values():
                                found += records
            parts = [(record.topic, [item(record, source, self.event_type)]) for record in found]
            return Batch(parts, None, {}, lambda part, _: raw(found[part]))
