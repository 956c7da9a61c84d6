"""Plain subjects in a queue group: nothing is acknowledged, and what comes too fast is dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from time import time_ns
from typing import TYPE_CHECKING

from ...layout import header_lines
from ..batch import Batch
from .inbox import MAX_HELD, Inbox
from .messages import Message, batch

if TYPE_CHECKING:
    from ...buses.connection import Connection
    from ..nats import NatsConnector

log = logging.getLogger(__name__)

MAX_WAITING = 10_000  # messages that are not read yet
WARN_EVERY = 10.0  # seconds


class CoreSource:
    """pump.Source of plain subjects."""

    def __init__(self, one: NatsConnector, source: str, connection: Connection, inbox: Inbox, group: str | None = None) -> None:
        self._one = one
        self._source = source
        self._connection = connection
        self._inbox = inbox
        self._group = one.queue_group if group is None else group
        # Nobody but this connection gets its n-th message, and it only once: that is the position, where there is no other.
        self._place = f"{time_ns()}/{connection.client.client_id}"
        self._count = self._dropped = 0
        self._warned = -WARN_EVERY
        self._sids: list[int] = []

    async def begin(self) -> None:
        for subject in self._one.core:
            self._sids.append(await self._connection.subscribe(subject, self._arrived, self._group))

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while not (messages := await self._inbox.take(self._one.batch, 60.0)):
            pass
        return batch(messages, self._source, self._one.event_type)

    async def ack(self, token: object) -> None:
        """Nobody waits for one."""

    async def lag(self) -> int | None:
        return None

    async def close(self) -> None:
        for sid in self._sids:
            self._connection.unsubscribe(sid)
            self._connection.forget(sid)

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        inbox = self._inbox
        self._count += 1
        if inbox.failure or len(inbox.messages) >= MAX_WAITING or (inbox.messages and inbox.size + len(data) + len(headers) > MAX_HELD):
            self._dropped += 1
            now = asyncio.get_running_loop().time()
            if now - self._warned >= WARN_EVERY:
                self._warned = now
                log.warning("dropped: plain subjects are faster than the bus", extra={"source": self._source, "dropped": self._dropped})
            return
        given = next((value for name, value in header_lines(headers) if name == "nats-msg-id"), "") if headers else ""
        inbox.put(Message(subject, headers, data, given or f"{self._place}/{self._count}"))
