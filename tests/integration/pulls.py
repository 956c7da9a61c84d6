"""Pulling exactly so many records from one durable consumer, without the driver: whatever its queue's code says, no prefetch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client

from broker_faas.bus import Delivery
from broker_faas.event import CloudEvent
from broker_faas.layout import EVENTS


class Pull:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def __call__(self, durable: str, n: int, *, stream: str = EVENTS, settle: bool = True, timeout: float = 5.0) -> list[Delivery]:
        """The next n, or as many as come within `timeout` seconds."""
        taken: list[Delivery] = []
        subscription = await self._client.jetstream().pull_subscribe_bind(durable, stream=stream)
        try:
            while len(taken) < n:
                for message in await subscription.fetch(n - len(taken), timeout=timeout):
                    headers = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items()).encode()
                    meta = message.metadata
                    seq, stored_at = meta.sequence.stream, meta.timestamp.timestamp()
                    taken.append(Delivery(message.subject, headers, message.data, seq, meta.num_delivered, stored_at, durable, ""))
                    if settle:
                        await message.ack_sync()
        except nats.errors.TimeoutError:
            pass
        await subscription.unsubscribe()
        return taken


@asynccontextmanager
async def pulling(url: str) -> AsyncIterator[Pull]:
    client = await nats.connect(url)
    try:
        yield Pull(client)
    finally:
        await client.close()


def ids(deliveries: list[Delivery]) -> list[int]:
    """Event ids, which are numbers in these tests, in order of arrival."""
    return [int(CloudEvent.from_headers(one.headers, one.data).id) for one in deliveries]
