"""RabbitMQ in a run: one node and one durable queue; producers that wait for the broker's confirm, of persistent, mandatory messages."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic

from benchmarks import procs, servers

from ..helpers import eventually
from ..rabbitmq_server import KINDS as QUEUES
from .brokers import TOPIC, Write, Written
from .process import Process

# single: whoever connects again is given nothing while the broker still counts on the connection that was lost.
KINDS: Mapping[str, Mapping[str, Any]] = {**QUEUES, "single": {**QUEUES["quorum"], "x-single-active-consumer": True}}
SETTLED = 50  # messages that are confirmed before anything may happen


class Rabbitmq:
    """kind: of KINDS."""

    def __init__(self, place: Path, log: Path, kind: str) -> None:
        self._place, self._kind = place, kind
        self._node: servers.Rabbit
        self._log = log
        self._settled = False
        self.process: Process

    @property
    def environ(self) -> Mapping[str, str]:
        return {"RABBITMQ": self._node.url}

    @property
    def port(self) -> int:
        return self._node.port

    async def make(self) -> None:
        self._node = servers.rabbit(self._place)
        environ = os.environ | self._node.environ
        self.process = Process("rabbitmq", servers.RABBITMQ, environ, self._place, self._log, self._ready)

    async def settle(self) -> None:
        async with self._channel() as channel:
            await channel.queue_declare(TOPIC, durable=True, arguments={**KINDS[self._kind]})
            # RabbitMQ 3.10 writes who leads a quorum queue some seconds after it was made, and killed before that never knows again.
            for n in range(SETTLED):
                await channel.basic_publish(b"%d" % n, routing_key=TOPIC, properties=Basic.Properties(delivery_mode=2))
        self.process.expect_end()
        await self.ctl("stop")
        starts = self.process.starts
        await eventually(lambda: self.process.starts > starts and self.process.up.is_set(), 120)
        async with self._channel() as channel:
            await channel.queue_purge(TOPIC)
        self._settled = True

    async def _ready(self) -> None:
        await eventually(self._leads, 60)

    async def _leads(self) -> bool:
        """Whether it answers, and its queue has a leader: then it can be written to."""
        try:
            async with self._channel() as channel:
                if self._settled:
                    await channel.queue_declare(TOPIC, passive=True)
        except (AMQPError, OSError) as error:
            raise AssertionError("not yet") from error
        return True

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        connection = await aiormq.connect(self._node.url)
        try:
            yield await connection.channel()
        finally:
            with suppress(Exception):
                await connection.close()

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Write]:
        async with self._channel() as channel:
            yield partial(_write, channel)

    async def kill(self) -> int:
        """SIGKILL of all its processes."""
        family = procs.tree(self.process.pid)
        self.process.expect_end()
        exits = len(self.process.exits)
        for pid in family:
            with suppress(ProcessLookupError):  # one of its short-lived helpers
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(self.process.exits) > exits)
        return self.process.exits[exits][0]

    async def ctl(self, *arguments: str) -> str:
        """rabbitmqctl. What it prints."""
        [binary] = glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl")
        said = self._place / "ctl.log"
        said.unlink(missing_ok=True)
        await procs.finished([binary, *arguments], os.environ | self._node.environ, said, seconds=60)
        return said.read_text()

    def timeouts(self) -> int:
        """How often it has closed a channel so far, since what it had delivered was not acknowledged in time."""
        logs = [file.read_text(errors="replace") for file in (self._place / "log.d").glob("*.log")]
        return sum(len(re.findall("timed out waiting for .*acknowledgement", log)) for log in logs)

    async def unread(self) -> bool:
        try:
            async with self._channel() as channel:
                if (await channel.queue_declare(TOPIC, passive=True)).message_count:
                    return True
        except (AMQPError, OSError):
            return True
        # What the connector holds, too, which no client is told.
        listed = await self.ctl("list_queues", "--quiet", "--no-table-headers", "name", "messages")
        return f"{TOPIC}\t0" not in listed.splitlines()

    async def holds(self) -> None:
        return None


async def _write(channel: AbstractChannel, one: Written) -> None:
    headers: dict[str, str] = {"key": one.key}
    if one.native:
        headers = {"ce-specversion": "1.0", "ce-id": one.id, "ce-source": "/load", "ce-type": "load", "ce-partitionkey": one.key}
    if one.poison:
        headers["ce-time"] = "yesterday"
    properties = Basic.Properties(delivery_mode=2, message_id=one.id, content_type="application/octet-stream", headers={**headers})
    await channel.basic_publish(one.data, routing_key=TOPIC, properties=properties, mandatory=True)
