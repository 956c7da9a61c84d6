"""The hand-written loop: what somebody who knows NATS would write for this one job, and nothing more. The ceiling.

Pull requests, a protocol reader, orjson, `await handler(data)`, acknowledgements in one write. No ids, no filters, no retries, no
deadlines, no isolation: a handler that fails or hangs takes it down, and so does a lost connection.

    loop.py publish        every event of the round, in atomic batches of 500
    loop.py paced RATE     one at a time
    loop.py work           noop() for each
    loop.py send           the same, and one event out an event in, stored before the acknowledgement
    loop.py ordered MS     over 16 consumers with one event in flight each; the handler sleeps MS first, or not at all
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit
from zlib import crc32

import orjson

from benchmarks.marks import here, payload

SIZE = int(os.environ.get("BENCH_SIZE", "200"))
KEYS = int(os.environ.get("BENCH_KEYS", "0"))
PULL = max(2, min(1000, (4 << 20) // max(SIZE, 1000)))  # events one request asks for; two requests stand
CHUNK = max(1, min(500, (4 << 20) // SIZE))
PARTITIONS = 16
INBOX = b"_L%d" % os.getpid()
_PENDING = re.compile(rb"Nats-Pending-Messages: (\d+)")

marks = here()


class Nats(asyncio.Protocol):
    """One connection; all that it is sent comes to inboxes `INBOX.…`: answers to whoever asked, the rest to events()."""

    def __init__(self, user: str | None, password: str | None) -> None:
        self._login = {"verbose": False, "headers": True, "no_responders": True, "user": user, "pass": password}
        self._rest = b""
        self._events: list[tuple[bytes, bytes, bytes]] = []
        self._arrived = asyncio.Event()
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        self._numbers = count()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.write(b"CONNECT %b\r\nSUB %b.> 1\r\n" % (orjson.dumps(self._login), INBOX))

    def connection_lost(self, exc: Exception | None) -> None:
        os._exit(3)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        start = 0
        while (stop := data.find(b"\r\n", start)) >= 0:
            words = data[start:stop].split(b" ")
            if words[0] == b"HMSG":
                head, reply = stop + 2 + int(words[-2]), words[3] if len(words) == 6 else b""
            elif words[0] == b"MSG":
                head, reply = stop + 2, words[3] if len(words) == 5 else b""
            else:
                self._line(data[start:stop])
                start = stop + 2
                continue
            end = stop + 2 + int(words[-1])
            if end + 2 > len(data):
                break
            if answer := self._answers.pop(words[1], None):
                answer.set_result(data[head:end])
            else:
                self._events.append((reply, data[stop + 2 : head], data[head:end]))
            start = end + 2
        self._rest = data[start:]
        if self._events:
            self._arrived.set()

    def _line(self, line: bytes) -> None:
        if line == b"PING":
            self.write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            print(line.decode(), file=sys.stderr)
            os._exit(3)

    async def events(self) -> list[tuple[bytes, bytes, bytes]]:
        """(reply, status, data) of all that came since the last call, at least one; without a reply it is the end of a request."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    def asking(self, subject: bytes, data: bytes, headers: bytes = b"") -> tuple[bytes, asyncio.Future[bytes]]:
        """The bytes of a request, and its answer to come."""
        inbox = b"%b.a.%d" % (INBOX, next(self._numbers))
        answer = self._answers[inbox] = asyncio.get_running_loop().create_future()
        return frame(subject, inbox, data, headers), answer

    async def api(self, verb: str, body: dict[str, Any]) -> None:
        request, answer = self.asking(f"$JS.API.{verb}".encode(), orjson.dumps(body))
        self.write(request)
        check(await answer)

    async def store(self, events: Sequence[tuple[bytes, bytes]], batch: str) -> None:
        """(subject, data) each, as one atomic batch: when this returns they are on disk."""
        head = f"Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: "
        frames = [frame(subject, b"", data, f"{head}{n}\r\n".encode()) for n, (subject, data) in enumerate(events[:-1], 1)]
        subject, data = events[-1]
        commit, answer = self.asking(subject, data, f"{head}{len(events)}\r\nNats-Batch-Commit: 1\r\n".encode())
        self.write(b"".join([*frames, commit]))
        check(await answer)


def frame(subject: bytes, reply: bytes, data: bytes, headers: bytes = b"") -> bytes:
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(data), data)
    head = b"NATS/1.0\r\n" + headers + b"\r\n"
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(head), len(head) + len(data), head, data)


def check(answer: bytes) -> None:
    if b'"error"' in answer:
        raise RuntimeError(answer.decode())


@asynccontextmanager
async def connected() -> AsyncIterator[Nats]:
    """With the stream made."""
    url = urlsplit(os.environ["BENCH_URL"])
    loop = asyncio.get_running_loop()
    _, nats = await loop.create_connection(lambda: Nats(url.username, url.password), url.hostname or "127.0.0.1", url.port or 4222)
    config = {"name": "LOOP", "subjects": ["loop.>"], "storage": "file", "allow_atomic": True}
    await nats.api("STREAM.CREATE.LOOP", config)
    yield nats


# --- publishing ---------------------------------------------------------------------------------------------


async def publish(nats: Nats) -> None:
    every = marks.numbers()
    for start in range(0, len(every), CHUNK):
        numbers = every[start : start + CHUNK]
        events = [(subject_of(number), orjson.dumps(payload(number, SIZE))) for number in numbers]
        for number in numbers:
            marks.send(number)
        await nats.store(events, f"p{numbers[0]}")


def subject_of(number: int) -> bytes:
    return b"loop.in.%d" % (crc32(b"key-%d" % (number % KEYS)) % PARTITIONS) if KEYS else b"loop.in.0"


async def paced(nats: Nats, rate: float) -> None:
    started = monotonic()
    answers = []
    for turn, number in enumerate(marks.numbers()):
        await asyncio.sleep(max(0.0, started + turn / rate - monotonic()))
        marks.send(number)
        request, answer = nats.asking(b"loop.in.0", orjson.dumps(payload(number, SIZE)))
        nats.write(request)
        answers.append(answer)
    for answer in answers:
        check(await answer)


# --- working ------------------------------------------------------------------------------------------------


async def noop(data: dict[str, Any]) -> None:
    marks.enter(data["number"])


async def work(nats: Nats, sending: bool = False) -> None:
    await consumer(nats, "all", "loop.in.>", 50_000)
    nats.write(pull("all", PULL) + pull("all", PULL))
    asked = 2 * PULL
    for turn in count():
        acks, out = [], []
        for reply, status, data in await nats.events():
            if not reply:
                ended = _PENDING.search(status)
                asked -= int(ended[1]) if ended else 0
                continue
            asked -= 1
            await noop(orjson.loads(data))
            if sending:
                out.append((b"loop.out", data))
            acks.append(b"PUB %b 4\r\n+ACK\r\n" % reply)
        if asked <= PULL:
            acks.append(pull("all", PULL))
            asked += PULL
        for start in range(0, len(out), 1000):
            await nats.store(out[start : start + 1000], f"o{turn}.{start}")
        nats.write(b"".join(acks))


async def ordered(nats: Nats, seconds: float) -> None:
    """Each consumer's next event comes when the one before is acknowledged."""

    async def slow(reply: bytes, data: bytes) -> None:
        await asyncio.sleep(seconds)
        await noop(orjson.loads(data))
        nats.write(b"PUB %b 4\r\n+ACK\r\n" % reply)

    for partition in range(PARTITIONS):
        await consumer(nats, f"p{partition}", f"loop.in.{partition}", 1)
        nats.write(pull(f"p{partition}", PULL))
    asked = [PULL] * PARTITIONS
    async with asyncio.TaskGroup() as tasks:
        while True:
            writes = []
            for reply, _, data in await nats.events():
                if not reply:  # requests of a round never expire: it is shorter
                    continue
                partition = int(reply.split(b".", 4)[3][1:])
                asked[partition] -= 1
                if not asked[partition]:
                    writes.append(pull(f"p{partition}", PULL))
                    asked[partition] = PULL
                if seconds:
                    tasks.create_task(slow(reply, data))
                else:
                    await noop(orjson.loads(data))
                    writes.append(b"PUB %b 4\r\n+ACK\r\n" % reply)
            nats.write(b"".join(writes))


async def consumer(nats: Nats, name: str, filter: str, pending: int) -> None:
    config = {"durable_name": name, "ack_policy": "explicit", "max_ack_pending": pending, "filter_subject": filter}
    await nats.api(f"CONSUMER.DURABLE.CREATE.LOOP.{name}", {"stream_name": "LOOP", "config": config})


def pull(name: str, batch: int) -> bytes:
    body = b'{"batch":%d,"expires":300000000000}' % batch
    return b"PUB $JS.API.CONSUMER.MSG.NEXT.LOOP.%b %b.e %d\r\n%b\r\n" % (name.encode(), INBOX, len(body), body)


async def main(how: str, *arguments: str) -> None:
    async with connected() as nats:
        match how:
            case "publish":
                await publish(nats)
            case "paced":
                await paced(nats, float(arguments[0]))
            case "ordered":
                await ordered(nats, float(arguments[0]) / 1000)
            case _:
                await work(nats, sending=how == "send")
    os._exit(0)


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(*sys.argv[1:]))
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
