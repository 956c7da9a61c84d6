"""A user's project in a folder, run by a real worker on a real bus."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.config import load
from broker_faas.event import CloudEvent
from broker_faas.layout import delayed_record, event_record
from broker_faas.workers.executor import Executor, Line
from broker_faas.workers.feed import Counts, Feed
from broker_faas.workers.host import open_worker
from broker_faas.workers.worker import Worker

IMPORTS = """
import asyncio, os, time
from pathlib import Path
from broker_faas import CloudEvent, Context, Reject, Retry, RetryPolicy, function
HERE = Path(__file__).parent
def note(name, text):
    with open(HERE / name, "a") as file: file.write(f"{text}\\n")
"""


class Project:
    """Its handlers write what happened into files with note(name, text); lines(name) reads them."""

    def __init__(self, folder: Path, code: str, toml: str = "") -> None:
        self.folder = folder
        self.printed: list[str] = []
        (folder / "faas.toml").write_text(f'project = "{folder.name[:20].replace("_", "-").strip("-") or "p"}"\nmodules = ["app"]\n{toml}')
        (folder / "app.py").write_text(IMPORTS + textwrap.dedent(code))
        self.config = load(folder / "faas.toml")

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def output(self, executor: Executor, lines: list[Line]) -> None:
        self.printed += [line.text for line in lines]

    @asynccontextmanager
    async def running(self, url: str, **options: Any) -> AsyncIterator[Running]:
        """A worker that is ready. Leaving drains it."""
        async with NatsBus(url, try_timeout=1.0).open() as bus, self.worker(bus, **options) as running:
            yield running

    @asynccontextmanager
    async def worker(self, bus: JetStreamBus, **options: Any) -> AsyncIterator[Running]:
        async with open_worker(self.config, bus, output=self.output, **options) as worker, asyncio.TaskGroup() as tasks:
            stop = asyncio.Event()
            task = tasks.create_task(worker.run(stop))
            await worker.ready.wait()
            running = Running(bus, worker, stop, task)
            yield running
            stop.set()


class Running:
    def __init__(self, bus: JetStreamBus, worker: Worker, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.bus = bus
        self.worker = worker
        self.stop = stop
        self.task = task

    def feed(self, function: str) -> Feed:
        return next(feed for feed in self.worker.feeds if feed.spec.name == function)

    def counts(self, function: str) -> Counts:
        return self.feed(function).counts

    async def publish(self, topic: str, *data: Any, key: str | None = None, first: int = 0) -> None:
        await self.bus.publish([event_record(topic, event(topic, n, item, key)) for n, item in enumerate(data, first)])

    async def publish_at(self, at: float, topic: str, data: Any) -> None:
        await self.bus.publish([delayed_record(topic, event(topic, 0, data), at)])


def event(topic: str, n: int, data: Any, key: str | None = None) -> CloudEvent:
    return CloudEvent(type=topic, source="/test", id=f"{n}", data=data, partitionkey=key)
