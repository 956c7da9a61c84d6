"""The client: how a cluster is connected to, asked for what there is, and left. aiokafka's traps of these are here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.conn import create_conn

from ...errors import SourceRefused
from ...tls import client_context, refusal
from .cluster import Cluster
from .errors import REFUSED, SOURCE, Side, shown, told

if TYPE_CHECKING:
    from ..kafka import KafkaConnector

CONNECTING = 20.0  # seconds until a cluster that does not answer counts as away
FETCH = 8 << 20  # bytes of one answer of a broker; one record may be larger
LEAVING = 10.0  # seconds; more than a member takes to hand over


@asynccontextmanager
async def connected(one: KafkaConnector) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that reads nothing yet, and whose topics are there. Raises SourceUnavailable, SourceRefused."""
    options = connection(one, SOURCE)
    consumer = AIOKafkaConsumer(
        group_id=one.group,
        group_instance_id=one.group_instance_id,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        session_timeout_ms=round(one.session_timeout * 1000),
        heartbeat_interval_ms=round(one.heartbeat_interval * 1000),
        rebalance_timeout_ms=round(one.rebalance_timeout * 1000),
        request_timeout_ms=round((max(one.session_timeout, one.rebalance_timeout) + 10) * 1000),  # joining takes as long
        fetch_max_bytes=FETCH,
        **options,
    )
    try:
        with told():
            try:
                async with asyncio.timeout(CONNECTING):
                    await consumer.start()
                    await partitions(one, consumer)
            except kafka.KafkaConnectionError:
                await why(one, options, SOURCE)
                raise
        yield consumer
    finally:
        await _left(consumer)


async def partitions(one: KafkaConnector, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
    """All there are. Raises SourceRefused for a topic that is not there: to ask a broker for one by name may make it."""
    cluster = await consumer._client.fetch_all_metadata()  # what consumer.topics() asks, with partitions
    there = cluster.topics(exclude_internal_topics=True)
    if missing := sorted(set(one.topics) - there):
        raise SourceRefused(f"there is no topic {missing[0]!r} in Kafka, or {one.user} may not see it: make it")
    pattern = re.compile(one.topic_pattern or "")
    topics = one.topics or sorted(topic for topic in there if pattern.fullmatch(topic))
    return [TopicPartition(topic, n) for topic in topics for n in sorted(cluster.partitions_for_topic(topic) or ())]


def connection(one: Cluster, side: Side) -> dict[str, Any]:
    """What a connection is made with."""
    context = None
    if one.security_protocol.endswith("SSL"):
        try:
            context = client_context(one.ca_file, one.cert_file, one.key_file)
        except ValueError as error:
            raise side.refused(str(error)) from None
    sasl = {"sasl_mechanism": one.sasl_mechanism, "sasl_plain_username": one.username, "sasl_plain_password": one.password}
    servers = [server.strip() for server in one.servers.split(",")]
    options = {"bootstrap_servers": servers, "security_protocol": one.security_protocol, "ssl_context": context}
    return options | (sasl if one.username is not None else {})


async def why(one: Cluster, options: Mapping[str, Any], side: Side) -> None:
    """Raises what keeps us out: aiokafka says of all that it cannot connect. Returns if one of the servers lets us in now."""
    how = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    reasons = []
    for server in options["bootstrap_servers"]:
        host, _, port = server.rpartition(":")
        try:
            there = await create_conn(host.strip("[]"), int(port), request_timeout_ms=5000, **how)
        except REFUSED as error:
            raise side.refused(
                f"Kafka at {server} refuses {one.user}: {shown(error)}: check username, password and sasl_mechanism"
            ) from None
        except (OSError, TimeoutError, kafka.KafkaError) as error:
            if said := refusal(error, "ca_file"):
                raise side.refused(f"Kafka at {server}: {said}") from None
            closed = isinstance(error, kafka.KafkaConnectionError | ConnectionResetError)
            do = ": are security_protocol, cert_file and key_file what this port wants?" if closed else ""
            reasons.append(f"Kafka at {server}: {shown(error)}{do}")
        else:
            there.close()
            return
    raise side.unavailable("; ".join(reasons))


async def _left(consumer: AIOKafkaConsumer) -> None:
    """Leaves the group. Without its broker, stop() may wait for ever, or end halfway."""
    if not await ended(consumer.stop(), LEAVING):
        for part in (consumer._fetcher, consumer._client):
            if part is not None:
                await ended(part.close(), 1)


async def ended(ending: Coroutine[Any, Any, None], seconds: float) -> bool:
    """In a task: a fetch that stop() cancels while it waits for its next try cancels who waits for stop()."""

    async def quietly() -> bool:
        try:
            await ending
        except kafka.KafkaError:
            return False
        return True

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(quietly())
    except TimeoutError:
        return False
    return not task.cancelled() and task.result()
