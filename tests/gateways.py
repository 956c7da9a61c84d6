"""A gateway in this event loop, on a real bus, and the plainest of HTTP clients: bytes out, bytes in."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import nats

from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.config import Config, load
from broker_faas.gateway.keys import KeyFile
from broker_faas.gateway.server import Server, open_gateway
from broker_faas.layout import EVENTS

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "order", "content-type": "application/json"}


class Answer(NamedTuple):
    """headers: lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.tls = parts.hostname or "", parts.port or 0, tls
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that close() closes."""
        name = "localhost" if self.tls else None
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls, server_hostname=name)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            await closed(writer)
        self._writers.clear()

    async def post(self, topic: str, body: bytes = b"{}", headers: Mapping[str, str] = EVENT, path: str = "/topics/") -> Answer:
        return await self.ask("POST", path + topic, body, headers)

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        fields = {"Host": "localhost", "Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return parsed(await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body))

    async def raw(self, data: bytes, timeout: float = 20.0) -> bytes:
        """What comes back until the connection is closed."""
        reader, writer = await self.connect()
        try:
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            said = b""
            async with asyncio.timeout(timeout):
                with suppress(ConnectionError):
                    while chunk := await reader.read(1 << 16):
                        said += chunk
            return said
        finally:
            await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def parsed(said: bytes) -> Answer:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = [line.partition(": ") for line in lines]
    return Answer(int(first.split()[1]) if first else 0, {name.lower(): value for name, _, value in fields}, body)


class Gateway(Client):
    def __init__(self, server: Server, bus: JetStreamBus, config: Config, stop: asyncio.Event) -> None:
        super().__init__(server.url)
        self.server, self.bus, self.config, self.stop = server, bus, config, stop
        self.keys = KeyFile(config.keys_file)


@asynccontextmanager
async def gateway(folder: Path, url: str, toml: str = "", **bus: Any) -> AsyncIterator[Gateway]:
    """toml: of the [gateway] table. bus: options of NatsBus. Leaving drains it."""
    (folder / "faas.toml").write_text(f'project = "p"\nmodules = ["m"]\n[gateway]\nport = 0\n{toml}')
    config, stop = load(folder / "faas.toml"), asyncio.Event()
    async with (
        NatsBus(url, **{"try_timeout": 1.0} | bus).open() as bus_,
        open_gateway(config, bus_) as server,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(server.run(stop))
        await server.ready.wait()
        http = Gateway(server, bus_, config, stop)
        try:
            yield http
        finally:
            stop.set()
            await http.close()


class Stored(NamedTuple):
    topic: str
    headers: dict[str, str]
    data: bytes
    seq: int


async def stored(url: str) -> list[Stored]:
    """All events on the bus, in their order."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info(EVENTS)).state
        found = []
        for seq in range(max(1, state.first_seq), state.last_seq + 1):
            message = await jetstream.get_msg(EVENTS, seq)
            topic = str(message.subject).removeprefix("ev.").rsplit(".", 2)[0]
            found.append(Stored(topic, dict(message.headers or {}), message.data or b"", seq))
        return found
    finally:
        await client.close()
