"""The producer: how it is opened, given a batch, and left. aiokafka's traps of these are here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.util import INTEGER_MAX_VALUE

from .client import CONNECTING, connection, ended, why
from .cluster import Cluster
from .errors import SINK, told

BATCH = 1 << 18  # bytes of one batch, if it has more than one record; 1 MiB is what brokers take by default
LEAVING = 2.0  # seconds for each of the two parts


@asynccontextmanager
async def producing(one: Cluster, compression: str | None, timeout: float) -> AsyncIterator[AIOKafkaProducer]:
    """A producer that knows the cluster's topics. timeout: seconds of two requests. Raises SinkUnavailable, SinkRefused."""
    options = connection(one, SINK)
    producer = AIOKafkaProducer(
        enable_idempotence=True,
        acks="all",
        compression_type=compression,
        max_batch_size=BATCH,
        request_timeout_ms=round(timeout * 500),  # so that a request that is lost is sent once more
        **options,
    )
    try:
        with told(SINK):
            try:
                async with asyncio.timeout(CONNECTING):
                    await producer.start()
                    await producer.client.force_metadata_update()
            except kafka.KafkaConnectionError:
                await why(one, options, SINK)
                raise
        yield producer
    finally:
        await _left(producer)


async def confirmed(producer: AIOKafkaProducer, batch: BatchBuilder, partition: TopicPartition, timeout: float) -> None:
    """Returns when all replicas have the batch. One at a time for each partition. Raises TimeoutError, KafkaError.

    Not by send_batch(): for a topic that vanished meanwhile it would ask the brokers by name, which may make it, and from then on for
    those topics alone that were asked for so.
    """
    async with asyncio.timeout(timeout):
        await (await producer._message_accumulator.add_batch(batch, partition, timeout))


def number_anew(producer: AIOKafkaProducer) -> None:
    """A new producer id, after a batch that failed.

    aiokafka counts its records as written, and the broker would refuse all that follows in that partition (OutOfOrderSequenceNumber).
    To count back would be worse: if the broker has the batch after all, it takes the next one of the same length for a repetition, drops
    it and confirms it (tried: Kafka 4.1). Batches on their way keep the id and the numbers that they left with.
    """
    fresh = TransactionManager(None, INTEGER_MAX_VALUE)
    producer._txn_manager = producer._sender._txn_manager = producer._message_accumulator._txn_manager = fresh


async def _left(producer: AIOKafkaProducer) -> None:
    """Whoever sent has an answer, or waits for none any more: nothing is flushed, which without a broker takes for ever."""
    producer._closed = True
    client = producer.client
    await ended(producer._sender.close(), LEAVING)
    # A request that is on its way waits for the next look at the cluster before it ends, and nobody would look.
    client.force_metadata_update = asyncio.get_running_loop().create_future
    waiting, client._md_update_fut = client._md_update_fut, None
    await ended(client.close(), LEAVING)
    if waiting is not None and not waiting.done():
        waiting.set_result(False)
