"""Events -> Kafka: an idempotent producer that waits for all replicas. What is confirmed is written once, in the order of its key.

kafka_parts/cluster.py   the options of a connection
kafka_parts/producer.py  the client: how it is opened and left
kafka_parts/sending.py   batches, and what becomes of each event
kafka_parts/verdicts.py  what Kafka's answers mean
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from ..kafka_parts.cluster import Cluster
from ..kafka_parts.producer import producing
from ..kafka_parts.sending import Sending


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSink(Cluster):
    """Options: docs/connectors/kafka.md. timeout: seconds until a batch counts as not confirmed."""

    format: Literal["binary", "structured"] = "binary"
    compression: Literal["gzip", "lz4", "snappy", "zstd"] | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        Cluster.__post_init__(self)  # super() does not find it: a dataclass with slots is made twice
        if not 1 <= self.timeout <= 35:  # three of them are less than a sink is waited for
            raise ValueError("timeout must lie between 1 and 35 seconds")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Sending]:
        """Raises SinkUnavailable, SinkRefused."""
        async with producing(self, self.compression, self.timeout) as producer:
            yield Sending(producer, self.user, self.timeout, structured=self.format == "structured")
