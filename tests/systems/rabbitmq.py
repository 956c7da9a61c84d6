"""RabbitMQ in tests: what the contracts ask of a system, of a durable classic queue to read and a topic exchange to send to."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from cloudevents.core.bindings.rabbitmq import to_binary_event
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from pamqp.commands import Basic

from broker_faas.amqp_binding import from_amqp
from broker_faas.connectors.rabbitmq import RabbitmqConnector
from broker_faas.connectors.sinks.rabbitmq import RabbitmqSink
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.proxy import Proxy
from tests.rabbitmq_server import Rabbit


@asynccontextmanager
async def rabbitmq_system(rabbit: Rabbit) -> AsyncIterator[RabbitmqSystem]:
    queue = f"q{secrets.token_hex(4)}"
    exchange, out = f"x-{queue}", f"out-{queue}"
    await rabbit.declare(queue, out)
    async with rabbit.channel() as channel:
        await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        await channel.queue_bind(out, exchange, "#")
    async with Proxy(urlsplit(rabbit.url).port or 5672).open() as proxy:
        yield RabbitmqSystem(rabbit, queue, proxy)
    async with rabbit.channel() as channel:
        await channel.exchange_delete(exchange)
        for name in (queue, out):
            await channel.queue_delete(name)


class RabbitmqSystem:
    """tests/contract/: System. The driver's connections go through the proxy, and those of the test do not.

    Foreign messages have a `message_id`: the broker has no name for a message, so one without is another event when it comes again.
    """

    replayable = False
    """A queue forgets what was acknowledged."""

    def __init__(self, rabbit: Rabbit, queue: str, proxy: Proxy) -> None:
        self._rabbit = rabbit
        self._queue = queue
        self._proxy = proxy
        self._produced = 0
        self._received: list[tuple[str, str | None, CloudEvent]] = []

    async def produce(self, *data: bytes) -> None:
        named = [(one, Basic.Properties(delivery_mode=2, message_id=f"{self._queue}-{n}")) for n, one in enumerate(data, self._produced)]
        async with self._rabbit.channel() as channel:
            await asyncio.gather(*(channel.basic_publish(one, routing_key=self._queue, properties=each) for one, each in named))
        self._produced += len(data)

    async def produce_native(self, event: CloudEvent) -> None:
        message = to_binary_event(SdkEvent(dict(event.attributes), event.data))
        if event.time is None:
            del message.headers["ce-time"]  # which the SDK makes up
        await self._send(message.body, Basic.Properties(delivery_mode=2, content_type=message.content_type, headers={**message.headers}))

    async def produce_poison(self) -> None:
        named = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/", "ce-type": "t", "ce-time": "yesterday"}
        await self._send(b"poison", Basic.Properties(delivery_mode=2, headers={**named}))

    async def _send(self, body: bytes, properties: Basic.Properties) -> None:
        await self._rabbit.send(self._queue, [body], properties)
        self._produced += 1

    def connector(self) -> RabbitmqConnector:
        # A batch is small, so that what a claim needs comes in more than one.
        return RabbitmqConnector(url=self._proxy.url(self._rabbit.url), queue=self._queue, batch=20)

    async def acked(self) -> int:
        return self._produced - await self._rabbit.left(self._queue)

    async def cut(self) -> None:
        self._proxy.cut()

    # --- as a sink ---

    def sink(self, **options: Any) -> RabbitmqSink:
        """Whatever its target, an event comes to one queue."""
        return RabbitmqSink(**{"url": self._proxy.url(self._rabbit.url), "exchange": f"x-{self._queue}"} | options)

    async def target(self) -> str:
        return "orders.done"

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        async with self._rabbit.channel() as channel:

            async def there() -> bool:
                while (message := await channel.basic_get(f"out-{self._queue}", no_ack=True)).delivery_tag is not None:
                    headers = message.header.properties.headers or {}
                    event = from_amqp(headers, message.header.properties.content_type, message.body)
                    assert event is not None
                    key = next((str(value) for name, value in headers.items() if name.endswith("partitionkey")), None)
                    self._received.append((str(message.routing_key), key, event))
                return len([one for one in self._received if one[0] == target]) >= n

            await eventually(there, 30)
        return [(key, event) for name, key, event in self._received if name == target]

    def away(self) -> None:
        self._proxy.accepting = False
        self._proxy.cut()

    def back(self) -> None:
        self._proxy.accepting = True
