"""A durable consumer: messages are asked for in batches, and acknowledged when they are stored on the bus."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...buses.durable import fields, nak
from ...errors import SourceRefused, SourceUnavailable
from ..batch import Batch
from .inbox import MAX_HELD, Inbox, source_errors
from .messages import Message, batch, stored_message

if TYPE_CHECKING:
    from ...buses.connection import Connection
    from ..nats import NatsConnector

log = logging.getLogger(__name__)

EXPIRES = 5.0  # seconds that a request for messages stands
HAND_BACK = 2.0  # seconds that the server has to end a request, and then to take back what is not acknowledged


class ConsumerSource:
    """pump.Source of a durable consumer.

    A position says that all up to a sequence of the stream is stored, so it is only given while this session knows that: the consumer
    counts its deliveries, so a gap in that count is one that somebody else got; and what was delivered before the session and not
    acknowledged has to have come again. Until then, and for shared consumers, ids alone keep events from being stored twice.
    """

    def __init__(
        self, one: NatsConnector, source: str, connection: Connection, inbox: Inbox, info: dict[str, Any], position: str | None
    ) -> None:
        self._one = one
        self._source = source
        self._connection = connection
        self._inbox = inbox
        self._partition = partition(info)
        config, delivered = info["config"], info["delivered"]
        self._all = config["ack_policy"] == "all"
        self._batch = min(one.batch, config.get("max_batch") or one.batch, 999)  # with its position one batch of the bus
        self._expires = min(int(EXPIRES * 1e9), config.get("max_expires") or int(EXPIRES * 1e9))
        self._max_bytes = min(MAX_HELD // 2, config.get("max_bytes") or MAX_HELD)
        self._before, self._counted = delivered["stream_seq"], delivered["consumer_seq"]
        said = int(position) if position and position.isdecimal() else 0
        self._position = said if said <= self._before else 0  # behind what was ever delivered: the stream is one from an older copy
        self._missing = 0 if self._position >= self._before else info["num_ack_pending"]
        self._seen: set[int] = set()  # of those that are missing; bounded by the consumer's max_ack_pending
        self._alone = True
        self._top = 0  # highest sequence handed to the pump
        self._held: dict[int, tuple[str, int]] = {}  # by sequence: how to acknowledge it, bytes
        self._held_bytes = 0
        self._given: deque[int] = deque()  # handed to the pump and not acknowledged; bounded as _held
        self._acked = 0  # messages, counted as the pump got them
        self._last = (0, "")  # of an "all" consumer: the highest that may be acknowledged
        self._asked = 0
        self._asked_at = 0.0
        self._answered = asyncio.Event()  # nothing is asked for
        self._more = info["num_pending"] + info["num_ack_pending"] > 0  # the server has something for a request
        self._oversized = False  # the next one is larger than a request may bring: ask for it alone, without a limit
        self._sid = 0
        self._reply = connection.fresh_inbox()
        self._closing = False

    async def begin(self) -> None:
        self._sid = await self._connection.subscribe(self._reply, self._arrived)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while True:
            self._ask()
            if messages := await self._inbox.take(self._batch, EXPIRES + 1):
                return self._given_out(messages)
            if self._asked and asyncio.get_running_loop().time() > self._asked_at + EXPIRES + 1:
                self._ended()  # the request got lost, or its end

    def _given_out(self, messages: list[Message]) -> Batch:
        for message in messages:
            self._given.append(message.sequence)
            self._top = max(self._top, message.sequence)
            if message.sequence <= self._before:
                self._seen.add(message.sequence)
        positions = {}
        if self._alone and len(self._seen) >= self._missing:
            self._position = max(self._position, self._top)
            positions[self._partition] = str(self._position)
        return batch(messages, self._source, self._one.event_type, self._acked + len(self._given), positions)

    async def ack(self, token: object) -> None:
        assert isinstance(token, int)
        acks = []
        while self._acked < token and self._given:
            sequence = self._given.popleft()
            ack, size = self._held.pop(sequence)
            self._held_bytes -= size
            self._acked += 1
            self._last = max(self._last, (sequence, ack))
            acks.append(ack)
        if self._all:  # one speaks for all before it, so it has to wait for those that have to come again
            acks = [self._last[1]] if acks and len(self._seen) >= self._missing else []
        if acks:
            self._connection.write("".join(f"PUB {ack} 4\r\n+ACK\r\n" for ack in acks).encode())
        self._ask()

    async def lag(self) -> int | None:
        with source_errors():
            info = await self._connection.api(f"CONSUMER.INFO.{self._one.stream}.{self._one.consumer}")
        if info["ack_floor"]["stream_seq"] >= self._before:
            self._missing = 0
        waiting, delivered = int(info["num_pending"]), int(info["num_ack_pending"])
        if info.get("paused") or (delivered and not waiting and not self._held):
            return None  # it gives none on purpose; or what there is is in other hands, or was, and comes when its lease has ended
        return waiting + delivered

    async def close(self) -> None:
        """Hands back what is not acknowledged, so that it comes again at once and in its order."""
        self._closing = True
        if self._asked and self._more and not self._inbox.failure:
            # What is on its way when nobody listens any more is delivered again, behind what is asked for meanwhile.
            with suppress(TimeoutError):
                async with asyncio.timeout(HAND_BACK):
                    await self._answered.wait()
        self._connection.unsubscribe(self._sid)
        await self._connection.flush()
        self._connection.forget(self._sid)
        if not self._held:
            await self._connection.flush()
            return
        *others, last = (ack for ack, _ in self._held.values())
        async with self._connection.expect([last]) as replies:
            # The server puts acknowledgements into a queue, and requests overtake them: whoever opens next would get what is behind
            # these. They are taken in turn, so that the last one has an answer is enough.
            naks = [*(nak(ack, 0.0) for ack in others), nak(f"{last} {replies.prefix}0", 0.0)]
            if self._connection.write("".join(naks).encode()):
                await replies.wait(HAND_BACK)

    # --- requests ---

    def _ask(self) -> None:
        """For one batch, while the pump has no more than one and the bytes have room."""
        if self._asked or self._closing or len(self._held) > self._batch or self._held_bytes > MAX_HELD // 2:
            return
        batch, limit = (1, "") if self._oversized else (self._batch, f',"max_bytes":{self._max_bytes}')
        body = f'{{"batch":{batch},"expires":{self._expires}{limit}}}'
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._one.stream}.{self._one.consumer}"
        if self._connection.write(f"PUB {subject} {self._reply} {len(body)}\r\n{body}\r\n".encode()):
            self._asked = batch
            self._answered.clear()
            self._asked_at = asyncio.get_running_loop().time()

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if self._inbox.failure:
            return
        if not reply:
            self._status(headers)
            return
        ack = reply.decode("utf-8", "replace")
        said = fields(ack)
        numbers = len(said) >= 7 and all(word.isdecimal() and len(word) < 20 for word in said[2:7])
        ours = numbers and said[:2] == [self._one.stream, self._one.consumer]
        if not (ack.startswith("$JS.ACK.") and ours):  # an answer would be to say what somebody else wants said
            log.warning("ignored what this consumer did not deliver", extra={"source": self._source, "reply": ack[:200]})
            return
        sequence, counted, nanoseconds = int(said[3]), int(said[4]), int(said[5])
        self._asked = max(0, self._asked - 1)
        self._more = int(said[6]) > 0
        self._oversized = False
        if counted != self._counted + 1:
            self._shared()
        self._counted = counted
        if sequence in self._held:  # its lease ended, and it is on its way to the bus all the same
            self._held[sequence] = (ack, self._held[sequence][1])
        elif sequence <= self._position:  # stored, and the acknowledgement got lost
            self._seen.add(sequence)
            self._connection.write(f"PUB {ack} 4\r\n+ACK\r\n".encode())
        elif not self._inbox.failure:
            message = stored_message(self._one.stream, sequence, nanoseconds // 1000, subject, headers, data)
            self._held[sequence] = ack, message.size
            self._held_bytes += message.size
            self._inbox.put(message)
        if not self._asked:
            self._ended()

    def _ended(self) -> None:
        self._asked = 0
        self._answered.set()
        self._inbox.wake()

    def _shared(self) -> None:
        if self._alone:
            log.info("this consumer has other readers: what is stored is known by its ids alone", extra={"source": self._source})
        self._alone = False
        if self._all:
            self._inbox.fail(
                SourceUnavailable(f"consumer {self._one.consumer!r} acknowledges all before a message, and others read it, too")
            )

    def _status(self, headers: bytes) -> None:
        """The end of a request: `NATS/1.0 408 Request Timeout` and the like."""
        line = headers[9:].partition(b"\r\n")[0].decode("utf-8", "replace")
        low = line.lower()
        if not line[:3].isdecimal():
            log.warning("ignored what is no status", extra={"source": self._source})
            return
        if line.startswith("100"):
            return
        self._ended()
        if "consumer deleted" in low:
            self._inbox.fail(
                SourceRefused(
                    f"consumer {self._one.consumer!r} was deleted while it was read; what it had not delivered is no longer kept for it. "
                    "Start the connector again once there is a new one"
                )
            )
        elif "message size" in low:
            self._oversized = True
        elif not low.startswith(("404", "408")) and "batch completed" not in low:
            self._inbox.fail(SourceUnavailable(f"NATS ended a request for messages: {line}"))


def partition(info: dict[str, Any]) -> str:
    """One consumer made at one time: a later one of its name counts anew, or is there to read all again."""
    return f"{info['stream_name']}/{info['name']}/{info['created']}"
