"""What lies on the bus when all is over, read with a plain NATS client: nothing of the product between the disk and the checker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import unquote

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingLeft
from nats.js.api import AckPolicy, ConsumerConfig

from .ledger import Dead, Stored, digest


async def dump(urls: list[str], project: str, damaged: int = 0) -> tuple[list[Stored], list[Dead]]:
    """damaged: so many messages may be counted and not be given out, for their bytes on disk were changed."""
    client = await nats.connect(urls, connect_timeout=30)
    try:
        stored = [
            Stored(_id(message), message.subject.split(".")[1], digest(message.data)) async for message in _all(client, "events", damaged)
        ]
        dead = []
        async for message in _all(client, "dead"):
            fields = {name[5:].lower(): unquote(value) for name, value in (message.headers or {}).items() if name.startswith("Faas-")}
            dead.append(Dead(_id(message), message.subject.removeprefix(f"dead.{project}--"), digest(message.data), fields))
        return stored, dead
    finally:
        await client.close()


def _id(message: Msg) -> str:
    headers = {name.lower(): value for name, value in (message.headers or {}).items()}
    return headers.get("ce-subject") or headers["ce-id"]  # as the handlers' own ledger has it


async def _all(client: Client, stream: str, damaged: int = 0) -> AsyncIterator[Msg]:
    jetstream = client.jetstream(timeout=10)
    left = (await jetstream.stream_info(stream)).state.messages
    # The server forgets a consumer of this kind after 5 s without a request, and 100 MB may take longer.
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=60.0)
    subscription = await jetstream.pull_subscribe("", stream=stream, config=config)
    while left:
        try:
            messages = await subscription.fetch(min(left, 200), timeout=2 if left <= damaged else 30)
        except NothingLeft:
            if left <= damaged:
                break
            raise AssertionError(f"{stream}: {left} messages counted and not to be read") from None
        for message in messages:
            left -= 1
            yield message
    await subscription.unsubscribe()
