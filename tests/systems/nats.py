"""Another NATS in tests: what the contract of connectors asks of a system, of one JetStream stream and a durable consumer on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import nats
from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_faas.connectors.nats import NatsConnector
from broker_faas.event import CloudEvent
from tests.proxy import Proxy

STREAM, CONSUMER, SUBJECT = "orders", "faas", "orders.made"


@asynccontextmanager
async def nats_system(url: str) -> AsyncIterator[NatsSystem]:
    """url: of an empty account."""
    client = await nats.connect(url)
    try:
        await client.jetstream().add_stream(name=STREAM, subjects=[SUBJECT])
        async with Proxy(urlsplit(url).port or 4222).open() as proxy:
            yield NatsSystem(client.jetstream(), proxy.url(url), proxy)
    finally:
        await client.close()


class NatsSystem:
    """tests/contract/test_connectors.py: System. url: through the proxy, for the connector; the test does not go through it."""

    replayable = False
    """The stream has what was acknowledged, but its consumer, which says where reading goes on, does not go back."""

    def __init__(self, jetstream: JetStreamContext, url: str, proxy: Proxy) -> None:
        self._jetstream = jetstream
        self._url = url
        self._proxy = proxy

    async def produce(self, *data: bytes) -> None:
        await asyncio.gather(*[await self._jetstream.publish_async(SUBJECT, one) for one in data])

    async def produce_native(self, event: CloudEvent) -> None:
        """The SDK has no binding for NATS, which is HTTP's but for the name of one header."""
        message = to_binary_event(SdkEvent(dict(event.attributes), event.data))
        if event.time is None:
            del message.headers["ce-time"]  # which the SDK makes up
        named = {"ce-datacontenttype" if name == "content-type" else name: value for name, value in message.headers.items()}
        await self._jetstream.publish(SUBJECT, message.body, headers=named)

    async def produce_poison(self) -> None:
        named = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/", "ce-type": "t", "ce-time": "yesterday"}
        await self._jetstream.publish(SUBJECT, b"poison", headers=named)

    def connector(self) -> NatsConnector:
        # A batch is small, so that what a claim needs comes in more than one.
        return NatsConnector(url=self._url, stream=STREAM, consumer=CONSUMER, create=True, batch=20)

    async def acked(self) -> int:
        """Sequences begin at 1 and have no gaps, so the last one that was delivered is how many were."""
        try:
            info = await self._jetstream.consumer_info(STREAM, CONSUMER)
        except NotFoundError:  # nobody has read yet
            return 0
        return (info.delivered.stream_seq if info.delivered else 0) - (info.num_ack_pending or 0)

    async def cut(self) -> None:
        self._proxy.cut()
