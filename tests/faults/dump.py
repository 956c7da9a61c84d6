"""What lies on the bus when all is over, read with a plain NATS client: nothing of the product between the disk and the checker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import unquote

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext
from nats.js.errors import ServiceUnavailableError

from .ledger import Dead, Stored, digest, foreign_id

AT_ONCE = 40  # messages, of up to 1 MB: the server cuts off who has 64 MB to take


async def dump(urls: list[str], project: str, damaged: int = 0) -> tuple[list[Stored], list[Dead], list[bytes]]:
    """What is stored, dead letters, and the data of what is quarantined.

    damaged: so many messages may be counted and not be given out, for their bytes on disk were changed.
    """
    client = await nats.connect(urls, connect_timeout=30)
    try:
        stored = [
            Stored(_id(message), message.subject.split(".")[1], digest(message.data), _position(message))
            async for message in everything(client, "events", damaged)
            if not message.subject.startswith("pos.")
        ]
        dead, quarantined = [], []
        async for message in everything(client, "dead"):
            if message.subject.startswith("quarantine."):
                quarantined.append(message.data)
                continue
            fields = {name[5:].lower(): unquote(value) for name, value in (message.headers or {}).items() if name.startswith("Faas-")}
            dead.append(Dead(_id(message), message.subject.removeprefix(f"dead.{project}--"), digest(message.data), fields))
        return stored, dead, quarantined
    finally:
        await client.close()


def _id(message: Msg) -> str:
    headers = _headers(message)
    if headers.get("ce-type") in ("kafka.record", "rabbitmq.message"):
        return foreign_id(message.data)
    return headers.get("ce-subject") or headers["ce-id"]  # as the handlers' own ledger has it


def _position(message: Msg) -> str:
    """Of the record of Kafka that it was; of a CloudEvent, which write of its producer's."""
    headers = _headers(message)
    if headers.get("ce-type") == "kafka.record":
        return unquote(headers["ce-id"])
    return f"copy {headers['ce-copy']}" if "ce-copy" in headers else ""


def _headers(message: Msg) -> dict[str, str]:
    return {name.lower(): value for name, value in (message.headers or {}).items()}


async def everything(client: Client, stream: str, damaged: int = 0) -> AsyncIterator[Msg]:
    jetstream = client.jetstream(timeout=10)
    left = (await jetstream.stream_info(stream)).state.messages
    seen, subscription = 0, await _consumer(jetstream, stream, 1)
    while left:
        try:
            messages = await subscription.fetch(min(left, AT_ONCE), timeout=2 if left <= damaged else 30)
        except TimeoutError:  # nats-py's own is one, and it raises both
            if left <= damaged:
                break
            raise AssertionError(f"{stream}: {left} messages counted and not to be read") from None
        except ServiceUnavailableError:  # a node of the cluster gave its place to another
            await asyncio.sleep(1)
            subscription = await _consumer(jetstream, stream, seen + 1)
            continue
        for message in messages:
            left -= 1
            seen = message.metadata.sequence.stream
            yield message
    await subscription.unsubscribe()


async def _consumer(jetstream: JetStreamContext, stream: str, first: int) -> JetStreamContext.PullSubscription:
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        mem_storage=True,
        inactive_threshold=60.0,  # of itself 5 s, and 100 MB may take longer
    )
    return await jetstream.pull_subscribe("", stream=stream, config=config)
