"""Another NATS in tests: what the contracts ask of a system, of a JetStream stream with a durable consumer, and of one to send to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import nats
from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_faas.connectors.nats import NatsConnector
from broker_faas.connectors.sinks.nats import NatsSink
from broker_faas.event import CloudEvent
from broker_faas.nats_binding import from_nats
from tests.helpers import eventually
from tests.proxy import Proxy

STREAM, CONSUMER, SUBJECT = "orders", "faas", "orders.made"
OUT, TARGET = "out", "orders.done"  # what a sink sends to


@asynccontextmanager
async def nats_system(url: str) -> AsyncIterator[NatsSystem]:
    """url: of an empty account."""
    client = await nats.connect(url)
    try:
        await client.jetstream().add_stream(name=STREAM, subjects=[SUBJECT])
        await client.jetstream().add_stream(name=OUT, subjects=[TARGET])
        async with Proxy(urlsplit(url).port or 4222).open() as proxy:
            yield NatsSystem(client.jetstream(), proxy.url(url), proxy)
    finally:
        await client.close()


class NatsSystem:
    """tests/contract/: System. url: through the proxy, for the driver; the test does not go through it."""

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

    # --- as a sink ---

    def sink(self, **options: Any) -> NatsSink:
        return NatsSink(**{"url": self._url} | options)

    async def target(self) -> str:
        return TARGET

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        """NATS has no keys: what the events say."""

        async def there() -> bool:
            info = await self._jetstream.stream_info(OUT, subjects_filter=target)
            return sum((info.state.subjects or {}).values()) >= n

        await eventually(there, 30)
        found: list[CloudEvent] = []
        seq = 1
        with suppress(NotFoundError):
            while True:
                message = await self._jetstream.get_msg(OUT, seq=seq, next=True, subject=target)
                lines = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items())
                event = from_nats(lines.encode(), message.data or b"")
                assert event is not None
                found.append(event)
                seq = (message.seq or seq) + 1
        return [(event.partitionkey, event) for event in found]

    def away(self) -> None:
        self._proxy.accepting = False
        self._proxy.cut()

    def back(self) -> None:
        self._proxy.accepting = True
