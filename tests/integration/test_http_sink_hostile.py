"""The HTTP sink against servers that lie, drip, flood or hang up: they hold neither the sink nor its memory, and confirm nothing."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TypeAlias

import pytest

from broker_faas.connectors.sink import Outgoing, Undelivered
from broker_faas.connectors.sinks.http import HttpSession, HttpSink
from broker_faas.errors import SinkUnavailable
from broker_faas.event import CloudEvent

EVENT = Outgoing("t", CloudEvent(type="t", source="/s", id="1", data={"n": 1}))
TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
Behave: TypeAlias = Callable[[asyncio.StreamWriter, int], Awaitable[None]]
TIMEOUT = 0.5  # seconds; what is measured may take a loaded machine longer


class Hostile:
    """behave: is called with each request after it was read, and its number, from 1. heads: of all requests."""

    def __init__(self, behave: Behave) -> None:
        self.heads: list[bytes] = []
        self.port = 0
        self._behave = behave

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Hostile]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self.heads.append(head)
                await self._behave(writer, len(self.heads))
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def hostile(behave: Behave, concurrency: int = 16, timeout: float = TIMEOUT) -> AsyncIterator[tuple[Hostile, HttpSession]]:
    async with Hostile(behave).open() as server:
        sink = HttpSink(url=f"http://127.0.0.1:{server.port}/{{target}}", timeout=timeout, concurrency=concurrency)
        async with sink.open() as session:
            yield server, session


def says(*parts: bytes, pause: float = 0.0, close: bool = False) -> Behave:
    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            raise EOFError

    return behave


def floods(head: bytes, data: bytes) -> Behave:
    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(head)
        while not writer.transport.is_closing():
            writer.write(data)
            await writer.drain()

    return behave


ENDLESS = {
    "a body": (b"HTTP/1.1 500 X\r\nContent-Length: 10737418240\r\n\r\n", b"x" * 65536),
    "chunks": (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    "one chunk": (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n", b"x" * 65536),
    "a chunk's extension": (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
    "trailers": (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 10_000),
    "headers": (b"HTTP/1.1 204 X\r\n", b"a: b\r\n" * 10_000),
    "a header": (b"HTTP/1.1 204 X\r\na: ", b"x" * 65536),
    "a first line": (b"HTTP/1.1 204 ", b"x" * 65536),
    "answers that are none yet": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
    "no HTTP": (b"", b"SSH-2.0-x\r\n" * 5000),
}


@pytest.mark.parametrize(("head", "data"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_what_does_not_end_holds_neither_time_nor_memory(head: bytes, data: bytes) -> None:
    async with hostile(floods(head, data)) as (_, sink):
        began = monotonic()
        with suppress(SinkUnavailable):
            assert None not in await sink.send([EVENT] * 2)
        took = monotonic() - began
        tracemalloc.start()  # which makes all of it slow
        try:
            with suppress(SinkUnavailable):
                await sink.send([EVENT] * 2)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert took < 20 * TIMEOUT  # the flood is made by the same core
        assert peak < 16 << 20  # of both sides


@pytest.mark.parametrize(
    ("head", "drip", "delivered"),
    [
        (b"HTTP/1.1 204 X\r\n", b"a: b\r\n", False),
        (b"HTTP/1.1 204 X\r\na: ", b"b", False),
        (b"HTTP/1.1 500 X\r\nContent-Length: 1000\r\n\r\n", b"x", False),
        (b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n", b"x", True),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", True),
        (b"", b"HTTP/1.1 100 X\r\n\r\n", False),
        (b"", b"", False),
    ],
)
async def test_what_drips_holds_the_sink_no_longer_than_its_timeout(head: bytes, drip: bytes, delivered: bool) -> None:
    async with hostile(says(head, *[drip] * 1000, pause=0.02)) as (_, sink):
        began = monotonic()
        [answer] = await sink.send([EVENT])

        assert (answer is None) == delivered
        assert TIMEOUT * 0.9 < monotonic() - began < 5 * TIMEOUT


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 204 No",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 2OO OK\r\n\r\n",
        b"HTTP/9.9 204\r\n\r\n",
        b"204\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\na\x00: b\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46",
        b"\x00" * 1000,
    ],
)
async def test_what_is_no_answer_confirms_nothing(answer: bytes) -> None:
    async with hostile(says(answer, close=True), timeout=10) as (_, sink):
        with pytest.raises(SinkUnavailable, match=r"127.0.0.1:\d+ did not answer: \w+"):
            await sink.send([EVENT] * 3)


async def test_an_answer_counts_from_its_head_on() -> None:
    async with hostile(says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", close=True), timeout=10) as (_, sink):
        assert [None] == await sink.send([EVENT])
    async with hostile(says(b"HTTP/1.1 409 X\r\nContent-Length: 100\r\n\r\nhalf", close=True), timeout=10) as (_, sink):
        assert [Undelivered("it answered 409 Conflict: half", again=False)] == await sink.send([EVENT])


async def test_one_answer_too_many_is_not_the_answer_to_the_next_request() -> None:
    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        if number > 1:
            writer.write(b"HTTP/1.1 422 X\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(TAKEN)
        await writer.drain()
        await idle.wait()
        writer.write(TAKEN)
        await writer.drain()
        unasked.set()

    idle, unasked = asyncio.Event(), asyncio.Event()
    async with hostile(behave, concurrency=1, timeout=10) as (server, sink):
        assert [None] == await sink.send([EVENT])
        idle.set()
        await unasked.wait()
        await asyncio.sleep(0.05)  # it is in the socket; now the loop takes it from there
        [answer] = await sink.send([EVENT])

        assert answer is not None
        assert answer.reason.startswith("it answered 422")
        assert 2 == len(server.heads)


async def test_a_connection_that_is_closed_as_it_is_used_again_costs_no_attempt() -> None:
    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 2:
            raise EOFError  # as a server does that had just given it up
        writer.write(TAKEN)

    async with hostile(behave, concurrency=1, timeout=10) as (server, sink):
        assert [None] == await sink.send([EVENT])
        assert [None] == await sink.send([EVENT])
        assert 3 == len(server.heads)


async def test_one_that_breaks_its_connection_takes_nobody_along() -> None:
    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        if b"/poison " in server.heads[-1]:
            raise EOFError
        writer.write(TAKEN)

    async with hostile(behave, timeout=10) as (server, sink):
        poison = EVENT._replace(target="poison")
        got = await sink.send([EVENT, poison, EVENT])

        assert got == [None, Undelivered(f"127.0.0.1:{server.port} did not answer: it closed the connection"), None]
        with pytest.raises(SinkUnavailable):
            await sink.send([poison])


async def test_cookies_are_not_kept() -> None:
    async with hostile(says(b"HTTP/1.1 204 X\r\nSet-Cookie: a=b; Path=/\r\n\r\n"), timeout=10) as (server, sink):
        for _ in range(3):
            await sink.send([EVENT])

        assert not any(b"cookie" in head.lower() for head in server.heads)


async def test_what_is_compressed_stays_so() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 500 X\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with hostile(says(head + bomb), timeout=10) as (server, sink):
        tracemalloc.start()
        try:
            got = await sink.send([EVENT] * 4)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert [Undelivered("it answered 500 Internal Server Error")] * 4 == got
        assert peak < 5 << 20
        assert all(b"accept-encoding: identity\r\n" in head.lower() for head in server.heads)


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with hostile(says(TAKEN), timeout=10) as (_, sink):
        assert [None] == await sink.send([EVENT])


async def test_a_send_that_is_cut_off_leaves_no_connection() -> None:
    gone = asyncio.Semaphore(0)

    async def behave(writer: asyncio.StreamWriter, number: int) -> None:
        asked.release()
        with suppress(OSError):
            while True:  # until it hears that it is alone
                writer.write(b"HTTP/1.1 102 X\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.release()

    asked = asyncio.Semaphore(0)
    async with hostile(behave, timeout=10) as (_, sink), asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(sink.send([EVENT] * 3))
            for _ in range(3):
                await asked.acquire()
            sending.cancel()
        for _ in range(3):
            await gone.acquire()

    assert sending.cancelled()
