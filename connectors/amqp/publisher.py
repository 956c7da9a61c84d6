"""Publishing with confirms on one channel, many in flight. aiormq keeps the connection and its channels; publishes pass it by.

aiormq tells returned messages apart by their `message_id`, which is an event's id, and two sources may use the same: then one that was
returned would count as confirmed. Here a return is compared with what was sent. benchmarks/rabbitmq_out.py says how fast it is.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from ...errors import SinkUnavailable
from ..sink import Undelivered
from .connection import HEARTBEAT
from .frames import message

PATIENCE = 30.0  # seconds without any news about what is in flight
WINDOW = 8 << 20  # bytes in flight
WRITE = 128 << 10  # bytes of one write

_ACK, _NACK, _RETURN = b"\0\x3c\0\x50", b"\0\x3c\0\x78", b"\0\x3c\0\x32"
_CLOSE, _BLOCKED, _UNBLOCKED = b"\0\x14\0\x28", b"\0\x0a\0\x3c", b"\0\x0a\0\x3d"
_SIZES = re.compile(r"larger than configured max size (\d+)")


class Closed(NamedTuple):
    """Why the broker has closed the channel."""

    code: int
    text: str


@dataclass(slots=True, eq=False)
class Sent:
    """position: of the event in its call. publish, properties, body: what was sent. said: whether the broker has; outcome: what."""

    position: int
    key: str
    publish: bytes
    properties: bytes
    body: bytes
    said: bool = False
    outcome: Undelivered | None = None

    @property
    def size(self) -> int:
        return len(self.properties) + len(self.body) + 64

    def end(self, outcome: Undelivered | None) -> None:
        """Its bytes are let go: a batch may be a gigabyte."""
        self.said, self.outcome = True, outcome
        self.properties = self.body = b""


class Publisher:
    """connection.Tap. exchange: for what is said of returned messages."""

    def __init__(self, exchange: str) -> None:
        self.closed: Closed | None = None
        self._exchange = exchange
        self._lost = ""
        self._blocked = ""
        self._channel = 0
        self._frame_max = 0
        self._flight: dict[int, Sent] = {}  # by delivery tag, in order; bounded by WINDOW, and one message
        self._held = 0  # bytes
        self._tag = 0
        self._unwritten: list[bytes] = []
        self._unwritten_size = 0
        self._returned: tuple[str, str, list[bytes], int] | None = None  # why, key, properties and body, bytes to come
        self._news = asyncio.Event()
        self._heard_at = 0.0  # loop time of the last frame
        self._since = 0.0  # loop time of the last news of what is in flight

    def opened(self, channel: int, frame_max: int) -> None:
        """A fresh channel that confirms, where delivery tags begin at 1."""
        self._channel, self._frame_max = channel, frame_max
        self.closed = self._returned = None
        self._forget()

    def lost(self, why: str) -> None:
        self._lost = self._lost or f"the connection was lost{why and ': '}{why}"
        self._news.set()

    # --- out ---

    async def publish(self, sent: Sent) -> None:
        """Waits while too much is in flight. Not on a channel that is closed: then there is nothing said of it. Raises SinkUnavailable."""
        assert not self.closed
        if not self._flight:
            self._since = asyncio.get_running_loop().time()
        frames = message(self._channel, sent.publish, sent.properties, sent.body, self._frame_max)
        self._tag += 1
        self._flight[self._tag] = sent
        self._held += sent.size
        self._unwritten.append(frames)
        self._unwritten_size += len(frames)
        if self._unwritten_size >= WRITE:
            await self._write()
        if self._held > WINDOW:
            await self.settle(WINDOW // 2)

    async def settle(self, held: int = 0) -> None:
        """Until at most so many bytes are in flight, or the channel is closed; what nothing was said of is not delivered.

        Raises SinkUnavailable.
        """
        await self._write()
        while self._held > held and not self.closed:
            self._news.clear()
            self._check()
            try:
                async with asyncio.timeout_at(self._since + PATIENCE):
                    await self._news.wait()
            except TimeoutError:
                self._check(tired=True)
                said = f"RabbitMQ has not confirmed it within {PATIENCE:g} s: has its queue a leader, is its disk full?"
                for sent in self._flight.values():
                    sent.end(Undelivered(said))
                self._flight.clear()
                self._held = 0

    async def unblocked(self) -> None:
        """While the broker takes nothing, nothing is sent: it would read and store it later, beside what is sent again."""
        until = asyncio.get_running_loop().time() + PATIENCE
        while self._blocked or self._lost:
            self._news.clear()
            self._check()
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                self._check(tired=True)

    async def _write(self) -> None:
        self._check()
        data, self._unwritten, self._unwritten_size = b"".join(self._unwritten), [], 0
        if not data or self.closed:
            return
        self._writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._writer.drain()
        except TimeoutError:
            self._check(tired=True)
            raise SinkUnavailable(f"RabbitMQ has read nothing for {PATIENCE:g} s") from None
        except OSError as error:
            raise SinkUnavailable(f"the connection was lost: {error}") from None

    def _check(self, tired: bool = False) -> None:
        if self._lost:
            raise SinkUnavailable(self._lost)
        if tired and self._blocked:
            raise SinkUnavailable(f"RabbitMQ takes no messages: {self._blocked}. Free memory or disk space on its machine")
        if tired and asyncio.get_running_loop().time() - self._heard_at > HEARTBEAT:  # which it sends twice in that time
            raise SinkUnavailable(f"nothing was heard from RabbitMQ for {PATIENCE:g} s")

    def _forget(self) -> None:
        self._flight.clear()
        self._unwritten.clear()
        self._held = self._tag = self._unwritten_size = 0

    # --- in ---

    def begin(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def heard(self, kind: int, channel: int, payload: bytes) -> bool:
        self._heard_at = asyncio.get_running_loop().time()
        method = payload[:4] if kind == 1 else b""
        if channel == 0:
            if method in (_BLOCKED, _UNBLOCKED):
                self._blocked = _text(payload, 4)[0] or "an alarm" if method == _BLOCKED else ""
                self._news.set()
            return False
        if channel != self._channel:
            return False
        if kind in (2, 3):
            self._take(kind, payload)
        elif method in (_ACK, _NACK):
            tag, bits = int.from_bytes(payload[4:12]), payload[12]
            self._confirmed(tag, bool(bits & 1), method == _ACK)
        elif method == _RETURN:
            why, at = _text(payload, 6)
            _, at = _text(payload, at)
            key, _ = _text(payload, at)
            self._returned = f"{int.from_bytes(payload[4:6])} {why}", key, [], 0
        elif method == _CLOSE:  # aiormq answers it; until it has, nothing more may be written on this channel
            self.closed = Closed(int.from_bytes(payload[4:6]), _text(payload, 6)[0])
            self._forget()
            self._news.set()
            return False
        else:
            return False
        return True

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        for one in list(takewhile(tag.__ge__, self._flight)) if multiple else [tag]:
            if sent := self._flight.pop(one, None):  # else it was given up
                self._held -= sent.size
                sent.end(sent.outcome if taken else Undelivered(self._refused(sent.key)))
        self._since = self._heard_at
        self._news.set()

    def _take(self, kind: int, payload: bytes) -> None:
        """Content of a message that is returned; its confirm comes after it."""
        if self._returned is None:
            return
        why, key, parts, left = self._returned
        if kind == 2:
            left = int.from_bytes(payload[4:12])
            parts.append(payload[12:])
        else:
            left -= len(payload)
            parts.append(payload)
        self._returned = (why, key, parts, left)
        if left > 0:
            return
        self._returned = None
        properties, body = parts[0], b"".join(parts[1:])
        same_key = [sent for sent in self._flight.values() if sent.key == key and not sent.outcome]
        same = [sent for sent in same_key if sent.properties == properties and sent.body == body]
        for sent in same[:1] or same_key:  # if the broker has changed it on the way, it may be any of them
            sent.outcome = Undelivered(self._unroutable(key, why))

    def _unroutable(self, key: str, why: str) -> str:
        if self._exchange:
            return f"no queue gets what goes to {self._names(key)} ({why}): bind one; a sink makes none"
        return f"there is no queue {key!r} for what goes to the default exchange ({why}): make it, or name an exchange; a sink makes none"

    def _refused(self, key: str) -> str:
        return f"RabbitMQ refuses what goes to {self._names(key)}: a queue is full, or has failed"

    def _names(self, key: str) -> str:
        return (
            f"exchange {self._exchange!r} with routing key {key!r}" if self._exchange else f"the default exchange with routing key {key!r}"
        )


def _text(payload: bytes, at: int) -> tuple[str, int]:
    """A short string, and where it ends."""
    end = at + 1 + payload[at]
    return payload[at + 1 : end].decode("utf-8", "replace"), end


def blamed(closed: Closed, flight: list[Sent]) -> list[Sent]:
    """Which of these made the broker close the channel; none if that cannot be told. Pure."""
    if found := _SIZES.search(closed.text):
        return [sent for sent in flight if len(sent.body) > int(found[1])]
    if closed.code == 403 and "topic" in closed.text:
        return [sent for sent in flight if f"topic '{sent.key}'" in closed.text]
    if closed.code in (403, 404):  # of the exchange
        return flight
    return []


def too_large(closed: Closed) -> int | None:
    """The broker's limit, if it says one."""
    found = _SIZES.search(closed.text)
    return int(found[1]) if found else None
