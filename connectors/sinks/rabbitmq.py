"""To RabbitMQ: an exchange that is there, a routing key for each target, publisher confirms.

Nothing is declared, bound or changed. A message that no queue gets is not delivered, and neither is one that a full queue refuses.
What makes the broker close the channel is found out and told apart, so that what was sent beside it is delivered.

amqp/publisher.py  confirms, returns and closed channels
amqp/frames.py     a publish in bytes
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...amqp_binding import to_amqp
from ...errors import EventInvalid
from ...options import masked
from ..amqp.connection import check_server, connected, sink_errors
from ..amqp.frames import properties, publish, room_for
from ..amqp.publisher import Closed, Publisher, Sent, blamed, too_large
from ..sink import Outgoing, Undelivered

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, AbstractConnection

CALL = 10.0  # seconds that the broker has for an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitmqSink:
    """Options; docs/connectors/rabbitmq.md says more.

    url: amqp:// or amqps://, the path is the vhost. exchange: that exists; "": the default one, whose routing keys are names of queues.
    format: binary, attributes in headers with this prefix, or structured, one JSON object.
    ca, cert, cert_key: PEM files. insecure: another machine without TLS.
    """

    url: str = field(repr=False)
    exchange: str = ""
    format: Literal["binary", "structured"] = "binary"
    prefix: Literal["ce-", "ce_", "cloudEvents_", "cloudEvents:"] = "ce-"
    ca: str = ""
    cert: str = ""
    cert_key: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        check_server(self, self.insecure)
        if len(self.exchange.encode()) > 255 or not self.exchange.isprintable():
            raise ValueError("exchange must be a name of at most 255 bytes without control characters")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[_Session]:
        gate = asyncio.Event()
        gate.set()
        publisher = Publisher(self.exchange)
        async with connected(self, "broker_faas sink", gate, sink_errors, publisher) as connection:
            session = _Session(self, connection, publisher)
            await session.begin()
            yield session


class _Session:
    """connectors/sink.py: Sink."""

    most = 1000

    def __init__(self, how: RabbitmqSink, connection: AbstractConnection, publisher: Publisher) -> None:
        self._how, self._connection, self._publisher = how, connection, publisher
        self._room = room_for(connection.connection_tune.frame_max)
        self._limit: int | None = None  # bytes of one message, once the broker has said so
        self._proven = False

    async def begin(self) -> None:
        def closed(future: asyncio.Future[None]) -> None:
            self._publisher.lost("" if future.cancelled() else masked(str(future.exception() or "")))

        self._connection.closing.add_done_callback(closed)
        channel = await self._channel()
        if self._how.exchange:
            with sink_errors():
                async with asyncio.timeout(CALL):
                    await channel.exchange_declare(self._how.exchange, passive=True)

    async def _channel(self) -> AbstractChannel:
        with sink_errors():
            async with asyncio.timeout(CALL):
                channel = await self._connection.channel(publisher_confirms=True)
        self._publisher.opened(channel.number, self._connection.connection_tune.frame_max)
        return channel

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Undelivered | None]:
        outcomes: list[Undelivered | None] = [None] * len(events)
        left = list(range(len(events)))
        alone = False
        while left:
            await self._publisher.unblocked()
            # The first one of a connection goes alone: only to it a broker that is short of memory says so, and what has been
            # written by then it stores when it has found some.
            several = left[:1] if alone or not self._proven else left
            sent = await self._pass(events, several, outcomes)
            said = {one.position for one in sent if one.said}
            for one in sent:
                outcomes[one.position] = one.outcome
            unsaid = [one for one in sent if not one.said]
            tried = {one.position for one in sent}
            if closed := self._publisher.closed:
                guilty = blamed(closed, unsaid) or (unsaid if len(unsaid) == 1 else [])
                self._limit = too_large(closed) or self._limit
                for one in guilty:
                    outcomes[one.position] = self._refusal(closed, one)
                    said.add(one.position)
                alone = not guilty  # until it is found
                await self._channel()
            else:
                self._proven = self._proven or bool(sent)
            refused = {n for n in several if n not in tried and outcomes[n]}
            left = [n for n in left if n not in said and n not in refused]
        return outcomes

    async def _pass(self, events: Sequence[Outgoing], several: list[int], outcomes: list[Undelivered | None]) -> list[Sent]:
        """Those that were published. The others have an outcome, or the channel was closed before their turn."""
        sent: list[Sent] = []
        for position in several:
            if self._publisher.closed:
                break
            try:
                one = self._message(position, events[position])
            except EventInvalid as error:
                outcomes[position] = Undelivered(str(error), again=False)
                continue
            sent.append(one)
            await self._publisher.publish(one)
        await self._publisher.settle()
        return sent

    def _message(self, position: int, out: Outgoing) -> Sent:
        """Raises EventInvalid for what RabbitMQ has no room for."""
        how, event = self._how, out.event
        if len(out.target.encode()) > 255:
            raise EventInvalid(f"the target has {len(out.target.encode())} bytes; a routing key has at most 255")
        headers, content_type, body = to_amqp(event, how.format == "structured", how.prefix)
        if self._limit is not None and len(body) > self._limit:
            raise EventInvalid(_too_large(len(body), self._limit))
        time = event.timestamp
        block = properties(
            headers, content_type, event.get("correlationid"), event.id, None if time is None else int(time.timestamp()), event.type
        )
        if len(block) > self._room:
            raise EventInvalid(
                f"attributes of {len(block):,} bytes do not fit into a frame of this broker (frame_max, {self._room:,} of it): "
                'raise that, or say format = "structured"'
            )
        return Sent(position, out.target, publish(how.exchange, out.target), block, body)

    def _refusal(self, closed: Closed, one: Sent) -> Undelivered:
        if limit := too_large(closed):
            return Undelivered(_too_large(len(one.body), limit), again=False)
        name = f"exchange {self._how.exchange!r}" if self._how.exchange else "the default exchange"
        hint = {403: f": allow this login to write to {name}", 404: ": make the exchange; a sink makes none"}.get(closed.code, "")
        return Undelivered(f"RabbitMQ closes the channel on what goes to {name} with routing key {one.key!r}: {closed.text}{hint}")


def _too_large(size: int, limit: int) -> str:
    return f"a message of {size:,} bytes, and this broker takes {limit:,} (max_message_size)"
