"""Delivery: standing pull requests on the durable consumers of one queue, all answered to one inbox.

Credit: a request asks for so many events that what is unsettled and what is asked for stay within `prefetch`; it is renewed when
half is used. Each durable has at least one place, so that a retry is never stuck behind a full queue of events; of the rest, the
durables that delivered lately have equal shares. A partition of an ordered queue always has its one request standing:
`max_ack_pending=1` lets the server push the next event into it as soon as the one before is settled.

A request lives EXPIRES seconds at most, so one that got lost costs that long; all are renewed at once after a reconnect.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from ..bus import Delivery, Queue
from ..errors import BusError, BusRefused
from ..layout import MAX_RECORD
from .connection import Connection
from .durable import Durable, Held, fields, nak
from .replies import not_permitted

log = logging.getLogger(__name__)

EXPIRES = 5.0  # seconds
IN_A_ROW = 32  # events a request of a partition may bring, one after the other: fewer requests to send
LINGER = 0.01  # seconds between two writes of acks, unless there are MANY of them or something else is to be written
MANY = 100
MAX_HELD = 16 << 20  # bytes unsettled above which no request is sent
MAX_PULL = 4 << 20  # bytes one request may bring
MAX_SUBJECTS = 1000  # remembered
MIN_PULL = MAX_RECORD + (192 << 10)  # one record always fits: the server counts its headers, subject and reply too
_PENDING = re.compile(rb"Nats-Pending-Messages: (\d+)")


class PullSubscription:
    """bus.Subscription on JetStream. Bytes held are bounded by MAX_HELD, plus one request or one record of each partition."""

    def __init__(
        self,
        connection: Connection,
        queue: Queue,
        consumers: Iterable[tuple[str, dict[str, Any]]],
        prefetch: int,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._prefetch = prefetch
        self._spawn = spawn
        self._all = [Durable(stream, config) for stream, config in consumers]
        self._by_name = {tuple(consumer.source.split("/")): consumer for consumer in self._all}
        self._by_first = {consumer.first: consumer for consumer in self._all}
        self._shared = [consumer for consumer in self._all if not consumer.partition]
        self._thirsty = {consumer for consumer in self._all if consumer.partition}  # partitions without a request
        self._held: dict[str, Held] = {}  # by token, next lease to end first
        self._held_bytes = 0
        self._ready: list[Delivery] = []  # what nobody read yet
        self._acks: list[str] = []  # tokens to acknowledge at the end of this turn of the loop, and
        self._dated: list[tuple[str, float]] = []  # those of partitions, with the end of their lease
        self._naks: list[str] = []  # frames
        self._renewed: list[Held] = []
        self._acked = -math.inf  # when acks were last written
        self._lingering = False
        self._due = False  # the end of this turn was asked for
        self._subjects: dict[bytes, str] = {}  # seen lately
        self._last = self._all[0]  # consumer that delivered last
        self._delivered: list[Durable] = []  # in this turn
        self._until = 0.0  # when the leases of what arrives in this turn end
        self._reader: asyncio.Future[None] | None = None
        self._failure: BusRefused | None = None
        self._stopped = False
        self._requests = 0
        self._inbox = connection.fresh_inbox()
        self._sid = 0
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        self._sid = await self._connection.subscribe(f"{self._inbox}.*", self._arrived)
        self._connection.listeners.add(self)
        self._soon()

    # --- bus.Subscription ---

    @property
    def prefetch(self) -> int:
        return self._prefetch

    @prefetch.setter
    def prefetch(self, prefetch: int) -> None:
        self._prefetch = prefetch
        self._soon()

    def __aiter__(self) -> AsyncIterator[list[Delivery]]:
        return self

    async def __anext__(self) -> list[Delivery]:
        while not self._ready:
            if self._failure:
                raise self._failure
            if self._stopped:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        batch, self._ready = self._ready, []
        return batch

    def settle(self, done: Iterable[Delivery], again: Iterable[tuple[Delivery, float]] = (), renew: Iterable[Delivery] = ()) -> None:
        """What a turn of the loop settles leaves in one write, with the requests that it makes room for."""
        held, acks = self._held, self._acks
        for delivery in done:
            one = held.pop(delivery.token, None)
            if one is not None and not one.consumer.partition:
                one.consumer.unsettled -= 1
                self._held_bytes -= one.size
                acks.append(one.token)
            elif self._may_say(delivery, one):
                self._dated.append((delivery.token, one.until if one else math.inf))
        for delivery, delay in again:
            if self._may_say(delivery, held.pop(delivery.token, None)):
                self._naks.append(nak(delivery.token, delay))
        self._renewed += [one for delivery in renew if (one := held.get(delivery.token))]
        self._soon()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._turned()
            # Which also ends the requests: the server sees that nobody listens, and takes back what it had on its way to us.
            self._connection.unsubscribe(self._sid)
            self._wake()

    async def close(self) -> None:
        """After stop(): hands back what nobody read, and what was on its way."""
        self._connection.listeners.discard(self)
        await self._connection.flush()
        self._connection.forget(self._sid)
        self.settle((), [(delivery, 0.0) for delivery in self._ready])
        self._ready = []
        self._turned()

    # --- in ---

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        """Once an event. What one read of the socket brought becomes one batch."""
        if self._stopped:
            if reply:
                self._connection.write(nak(reply.decode(), 0.0).encode())
            return
        if not reply:
            self._status(subject, headers, self._loop.time())
            self._soon()
            return
        token = reply.decode("utf-8", "replace")
        consumer, deliveries = self._last, 1
        if not token.startswith(consumer.first):
            first = self._by_first.get(token[: token.find(".1.") + 3])
            sender = (first, 1) if first else self._sender(token)
            if sender is None:
                log.warning(
                    "bus: ignored what no consumer of this queue delivered", extra={"queue": self._queue.name, "reply": token[:200]}
                )
                return
            consumer, deliveries = sender
            self._last = consumer
        until = self._until or self._burst()
        size = len(headers) + len(data)
        where = self._subjects.get(subject) or self._subject(subject)
        held = Held(where, headers[10:-2], data, 0, deliveries, 0.0, consumer.source, token, consumer, until, size)
        self._held[token] = held
        self._held_bytes += size
        self._ready.append(held)
        if not consumer.arrived:
            self._delivered.append(consumer)
        consumer.arrived += 1

    def _sender(self, token: str) -> tuple[Durable, int] | None:
        """Who delivered it, and how often. None: another client wrote to this inbox; answering would be to say what it wants said."""
        said = fields(token)
        if not token.startswith("$JS.ACK.") or len(said) < 7 or not all(word.isdecimal() for word in said[2:7]):
            return None
        consumer = self._by_name.get((said[0], said[1]))
        return (consumer, int(said[2])) if consumer else None

    def _burst(self) -> float:
        """The first of what one read brought. When their leases end."""
        self._due = True
        self._connection.client.afterwards.append(self._turned)
        self._until = self._loop.time() + self._queue.ack_wait
        return self._until

    def _subject(self, subject: bytes) -> str:
        if len(self._subjects) >= MAX_SUBJECTS:
            self._subjects.clear()
        name = self._subjects[subject] = subject.decode("utf-8", "replace")  # other clients may store anything
        return name

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turned)

    def _turned(self) -> None:
        """The end of a turn of the loop: deliveries go to their reader; acks and requests leave in one write."""
        if not self._due:
            return
        self._due = False
        self._until = 0.0
        now = self._loop.time()
        for consumer in self._delivered:
            consumer.delivered(now)
            if consumer.partition and not consumer.asked:
                self._thirsty.add(consumer)
        self._delivered.clear()
        if self._ready:
            self._wake()
        self._write()

    def _write(self) -> None:
        requests = self._requests_now()
        now = self._loop.time()
        if not (requests or self._dated or self._naks or self._renewed):
            if self._acks and len(self._acks) < MANY and now < self._acked + LINGER and not self._stopped:
                self._linger()
                return
            if not self._acks:
                return
        if self._acks:
            self._acked = now
        acks, self._acks = self._acks, []
        dated, self._dated = self._dated, []
        naks, self._naks = self._naks, []
        renewed, self._renewed = [one for one in self._renewed if one.token in self._held], []
        tokens = acks + [token for token, _ in dated]
        frames = ["PUB ", " 4\r\n+ACK\r\nPUB ".join(tokens), " 4\r\n+ACK\r\n"] if tokens else []
        frames += naks
        frames += [f"PUB {one.token} 4\r\n+WPI\r\n" for one in renewed]
        frames += requests
        # crash point: settlements-before-write
        if self._connection.write("".join(frames).encode()):
            # crash point: settlements-written
            until = now + self._queue.ack_wait
            for one in renewed:
                del self._held[one.token]
                one.until = until
                self._held[one.token] = one
        else:  # a late ack still spares an event a second run; a late nak or renewal is of no use
            for token, end in [(token, math.inf) for token in acks] + dated:
                self._connection.keep(f"PUB {token} 4\r\n+ACK\r\n".encode(), end)

    def _linger(self) -> None:
        """Acks that nothing waits for: with every ack synced to disk, a write of many costs the server no more than a write of one."""
        if not self._lingering:
            self._lingering = True
            self._loop.call_at(self._acked + LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = False
        self._soon()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    def _may_say(self, delivery: Delivery, held: Held | None) -> bool:
        """Whether what becomes of it may still be said. held: it, if its lease had not ended.

        Not so of a partition whose lease has ended: another worker may be at it, and the next event of the key would come before
        that one is through.
        """
        if held is None:
            return not (isinstance(delivery, Held) and delivery.consumer.partition)
        held.consumer.unsettled -= 1
        self._held_bytes -= held.size
        return not held.consumer.partition or held.until > self._loop.time()

    # --- requests ---

    def _requests_now(self) -> list[str]:
        """The frames of every request that is due."""
        if self._stopped or self._failure or self._prefetch < 1 or self._held_bytes >= MAX_HELD or not self._connection.up.is_set():
            return []
        now = self._loop.time()
        frames = []
        for consumer in [c for c in self._thirsty if c.not_before <= now]:
            frames.append(self._request(consumer, IN_A_ROW, now))
            self._thirsty.discard(consumer)
        busy = sum(c.busy for c in self._shared)
        share = max(1, (self._prefetch - (len(self._shared) - busy)) // max(1, busy))
        room = self._prefetch - sum(max(1, c.unsettled + c.asked) for c in self._shared)
        for consumer in self._shared:
            used = consumer.unsettled + consumer.asked
            want = share if consumer.busy else 1
            batch = min(want - used, room + (not used))
            if not used:
                batch = max(1, batch)
            if consumer.not_before <= now and batch > 0 and (not consumer.asked or batch * 2 >= want):
                frames.append(self._request(consumer, batch, now))
                room -= batch - (not used)
        return frames

    def _request(self, consumer: Durable, batch: int, now: float) -> str:
        self._requests += 1
        limit = f',"max_bytes":{max(MIN_PULL, min(MAX_PULL, (MAX_HELD - self._held_bytes) // 2))}'
        if consumer.oversized:
            batch, limit = 1, ""
        body = f'{{"batch":{batch},"expires":{int(EXPIRES * 1e9)}{limit}}}'
        consumer.asked += batch
        consumer.requests[self._requests] = batch, now
        reply = f"{self._inbox}.{self._all.index(consumer)}-{self._requests}"
        return f"PUB {consumer.subject} {reply} {len(body)}\r\n{body}\r\n"

    def _status(self, subject: bytes, headers: bytes, now: float) -> None:
        """The server ends a request: `NATS/1.0 408 Request Timeout` and the like."""
        which, _, number = subject.rpartition(b".")[2].partition(b"-")
        if not (headers and which.isdigit() and number.isdigit() and int(which) < len(self._all)):
            log.warning(
                "bus: ignored what is no status", extra={"queue": self._queue.name, "subject": subject[:200].decode("utf-8", "replace")}
            )
            return
        consumer = self._all[int(which)]
        line = headers[9:].split(b"\r\n", 1)[0].decode("utf-8", "replace")
        code, low = line[:3], line.lower()
        if code == "100":
            return
        if request := consumer.requests.get(int(number)):
            found = _PENDING.search(headers)
            consumer.ended(int(number), int(found[1]) if found else 0)
            in_vain = consumer.heard < request[1]
            consumer.busy = consumer.busy and not (in_vain and code == "408")
            consumer.oversized = in_vain and "message size" in low
        if "consumer deleted" in low:
            self._fail(self._gone())
        elif code == "503" or "leadership" in low or "shutdown" in low:
            consumer.ended(None, 0)
            consumer.not_before = now + 0.5
            if code == "503":
                self._spawn(self._verify(consumer))
        elif code != "408" and "message size" not in low and "batch completed" not in low:
            log.warning("bus: pull request refused; trying again", extra={"source": consumer.source, "status": line})
            consumer.not_before = now + 1.0
        if consumer.partition and not consumer.asked:
            self._thirsty.add(consumer)

    async def _verify(self, consumer: Durable) -> None:
        """Nobody answers its requests: is it gone, or JetStream not there yet?"""
        try:
            await self._connection.api(consumer.subject.removeprefix("$JS.API.").replace("MSG.NEXT", "INFO"))
        except BusRefused as e:
            self._fail(self._gone() if e.code in (10014, 10059) else e)
        except BusError as e:
            log.debug("bus: %s", e)

    def tick(self) -> None:
        """Twice a second: leases that ended make room, requests that got no answer are forgotten and sent again."""
        now = self._loop.time()
        while self._held and (first := next(iter(self._held.values()))).until <= now:
            self._may_say(first, self._held.pop(first.token))
        self._ready = [delivery for delivery in self._ready if delivery.token in self._held]  # it will come again
        for consumer in self._all:
            for number in [n for n, (_, sent) in consumer.requests.items() if sent + EXPIRES + 1 < now]:
                consumer.requests.pop(number)
                consumer.asked = min(consumer.asked, sum(batch for batch, _ in consumer.requests.values()))
            if consumer.partition and not consumer.asked:
                self._thirsty.add(consumer)
        self._soon()

    # --- connection.Listener ---

    def lost(self) -> None:
        for consumer in self._all:
            consumer.ended(None, 0)
            if consumer.partition:
                self._thirsty.add(consumer)

    def restored(self) -> None:
        self._soon()

    def refused(self, subject: str) -> None:
        for consumer in self._all:
            durable = consumer.source.replace("/", ".").lower()
            if subject == consumer.subject.lower() or (subject.startswith("$js.ack.") and f".{durable}." in subject):
                self._fail(not_permitted(f"{subject}, which queue {self._queue.name} needs"))

    def _gone(self) -> BusRefused:
        return BusRefused(
            f"queue {self._queue.name} was deleted on the bus while it was served; what it had not handled is no longer addressed to it. "
            "Start the worker again to make a new queue, or take the function out of the project",
            10014,
        )

    def _fail(self, error: BusRefused) -> None:
        self._failure = self._failure or error
        self._wake()
