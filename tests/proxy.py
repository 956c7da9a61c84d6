"""A TCP proxy that cuts, freezes, slows and corrupts: the network's faults, without root."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """port: where clients connect. accepting: whether new connections reach the server.

    delay, jitter: seconds that every chunk takes longer, in both directions; its order stays. rate: bytes a second of one connection's
    direction; 0: no limit. deaf: what the server says does not reach clients, while the server hears them (half open);
    lost: bytes of it so far.
    flips: so many bits are turned over, each in one of the next chunks from the server, anywhere in it.
    resets: so many connections are reset, each in the middle of one of the next chunks from the server.
    swap: the first of the two, where it is in what the server says, becomes the second, of the same length: an address, say. Not seen
    across two chunks.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.port = 0
        self.accepting = True
        self.delay = self.jitter = self.rate = 0.0
        self.deaf = False
        self.lost = 0
        self.flips = self.resets = 0
        self.swap: tuple[bytes, bytes] | None = None
        self._random = random.Random(seed)
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, real: str) -> str:
        """The server's url, through here."""
        return real.replace(f":{self._target}", f":{self.port}")

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Connections stay open and nothing passes: a dead link."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self.accepting:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, back, answers=False))
                    group.create_task(self._pass(there, writer, answers=True))
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if self.delay or self.jitter:
                    await asyncio.sleep(self.delay + self._random.uniform(0, self.jitter))
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                if answers:
                    if self.swap:
                        data = data.replace(*self.swap)
                    if self.deaf:
                        self.lost += len(data)
                        continue
                    if self.flips:
                        self.flips -= 1
                        data = self._flipped(data)
                    if self.resets:
                        self.resets -= 1
                        writer.write(data[: len(data) // 2])
                        await asyncio.sleep(0)
                        break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def _flipped(self, data: bytes) -> bytes:
        where = self._random.randrange(len(data))
        return data[:where] + bytes([data[where] ^ 1 << self._random.randrange(8)]) + data[where + 1 :]
