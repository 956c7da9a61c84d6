"""What a connection to a source brings: messages for its reader, and errors in the terms of a source."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ...errors import BusRefused, BusUnavailable, ConfigError, SinkRefused, SinkUnavailable, SourceError, SourceRefused, SourceUnavailable
from .messages import Message

MAX_HELD = 8 << 20  # bytes read and not acknowledged, or, of plain subjects, not read yet; and one message, however large


class Inbox:
    """What arrived and was not read yet. Also connection.Listener: its reader hears how the connection ended."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()  # bounded by who puts in
        self.size = 0  # bytes
        self.failure: SourceError | None = None
        self._news = asyncio.Event()

    def put(self, message: Message) -> None:
        self.messages.append(message)
        self.size += message.size
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    def fail(self, error: SourceError) -> None:
        self.failure = self.failure or error
        self._news.set()

    async def take(self, n: int, seconds: float) -> list[Message]:
        """n or fewer; none after so many seconds, or when woken. Raises the failure once all is taken."""
        if not self.messages and not self.failure:
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                pass
        if not self.messages and self.failure:
            raise self.failure
        taken = [self.messages.popleft() for _ in range(min(n, len(self.messages)))]
        self.size -= sum(message.size for message in taken)
        return taken

    def lost(self) -> None:
        self.fail(SourceUnavailable("the connection to NATS was lost"))

    def restored(self) -> None:
        """Too late: requests and deliveries that were on their way are lost, and the next open() knows what is missing."""

    def refused(self, subject: str) -> None:
        self.fail(SourceRefused(f"this NATS user may not publish to {subject}, which reading needs; grant it in the server's permissions"))


def source_errors() -> AbstractContextManager[None]:
    """What our own client says of a bus, said of a source."""
    return _errors(SourceUnavailable, SourceRefused)


def sink_errors() -> AbstractContextManager[None]:
    """What our own client says of a bus, said of a sink."""
    return _errors(SinkUnavailable, SinkRefused)


@contextmanager
def _errors(unavailable: type[Exception], refused: type[Exception]) -> Iterator[None]:
    try:
        yield
    except BusRefused as error:
        raise refused(str(error).replace(" of the bus", "")) from None
    except BusUnavailable as error:
        raise unavailable(str(error)) from None
    except ConfigError as error:
        raise refused(str(error)) from None
