"""A real RabbitMQ for tests: Debian's, as a process of its own; and the smallest client that fills its queues."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any

import aiormq
import pytest
import pytest_asyncio
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from benchmarks import procs, servers


class Raw(Basic.Properties):
    """Properties as bytes. aiormq gives a message without id one of its own; here it does not reach the wire."""

    def __init__(self, block: bytes) -> None:
        super().__init__()
        self.block = block

    def marshal(self) -> bytes:
        return self.block


KINDS: dict[str, dict[str, str]] = {"classic": {}, "quorum": {"x-queue-type": "quorum"}, "stream": {"x-queue-type": "stream"}}


class Rabbit:
    """node: None for a server that others have started (AMQP_URL)."""

    def __init__(self, url: str, node: servers.Rabbit | None = None) -> None:
        self.url, self.node = url, node
        self._open = AsyncExitStack()
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        assert self.node is not None
        self._process = await self._open.enter_async_context(self.node.running())

    async def stop(self) -> None:
        await self._open.aclose()

    async def kill(self) -> None:
        """SIGKILL of all its processes; start() brings it back on the same folder and port."""
        for pid in procs.tree(self._process.pid):
            with suppress(ProcessLookupError):  # one of its short-lived helpers
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()
        await self.stop()

    async def ctl(self, *arguments: str) -> str:
        """rabbitmqctl. What it prints."""
        if self.node is None:
            pytest.skip("NOT TESTED: needs a RabbitMQ that the test has started itself, not AMQP_URL")
        [binary] = glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl")
        said = self.node.folder / "ctl.log"
        said.unlink(missing_ok=True)
        await procs.finished([binary, *arguments], self.node.environ, said, seconds=60)
        return said.read_text()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        connection = await aiormq.connect(self.url)
        try:
            yield await connection.channel()
        finally:
            await connection.close()

    async def declare(self, *queues: str, kind: str = "classic") -> None:
        async with self.channel() as channel:
            for queue in queues:
                await channel.queue_delete(queue)
                await channel.queue_declare(queue, durable=True, arguments={**KINDS[kind]})

    async def send(self, queue: str, bodies: Iterable[bytes], properties: Basic.Properties | None = None) -> None:
        """Returns when all are confirmed, in the order of `bodies`."""
        async with self.channel() as channel:
            block = (properties or Basic.Properties(delivery_mode=2)).marshal()
            options: dict[str, Any] = {"routing_key": queue, "properties": Raw(block)}
            await asyncio.gather(*(channel.basic_publish(body, **options) for body in bodies))

    async def ready(self, queue: str) -> int:
        """Messages that nobody holds."""
        async with self.channel() as channel:
            return (await channel.queue_declare(queue, passive=True)).message_count or 0

    async def left(self, queue: str) -> int:
        """Messages that are not acknowledged: ready, or in somebody's hands, which no client is told."""
        listed = await self.ctl("list_queues", "--quiet", "--no-table-headers", "name", "messages")
        return next(int(line.split("\t")[1]) for line in listed.splitlines() if line.startswith(f"{queue}\t"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rabbit]:
    """The server that all tests share. Do not stop it: take `own_rabbitmq`. AMQP_URL: one that runs already."""
    if url := os.environ.get("AMQP_URL"):
        yield Rabbit(url)
        return
    made = rabbit_node(tmp_path_factory.mktemp("rabbitmq") / "node")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


@pytest_asyncio.fixture
async def own_rabbitmq(tmp_path: Path) -> AsyncIterator[Rabbit]:
    """A started one, to break."""
    made = rabbit_node(tmp_path / "own-rabbitmq")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def rabbit_node(folder: Path, *settings: str) -> Rabbit:
    """Not started. settings: lines of its rabbitmq.conf."""
    try:
        node = servers.rabbit(folder)
    except servers.Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"NO REAL SERVER, NOT TESTED: {error}")
    with open(folder / "rabbitmq.conf", "a") as conf:
        conf.writelines(f"{line}\n" for line in settings)
    return Rabbit(node.url, node)
