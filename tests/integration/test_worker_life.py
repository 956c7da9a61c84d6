"""A worker that starts, one that has nothing to do, and one whose events all fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_faas.bus import Queue, Subscription
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.workers import worker as worker_module
from broker_faas.workers.host import open_worker
from tests.helpers import eventually
from tests.project import Project


class SlowToMake:
    """A bus that takes its time to make one queue."""

    def __init__(self, bus: JetStreamBus, queue: str) -> None:
        self._bus = bus
        self._queue = queue
        self.made = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    @asynccontextmanager
    async def subscribe(self, queue: Queue, prefetch: int) -> AsyncIterator[Subscription]:
        if queue.name.endswith(self._queue):
            await self.made.wait()
        async with self._bus.subscribe(queue, prefetch) as subscription:
            yield subscription


async def test_events_are_settled_while_other_functions_queues_are_still_being_made(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", sends="x", start="first")
        async def early(event): return {}
        @function(on="b")
        async def late(event): pass
    """,
    )
    async with project.running(bus_url) as before:
        await before.publish("a", {})
        await eventually(lambda: before.counts("early").done == 1)  # its queue is made, and the next worker gets one event
        slow = SlowToMake(before.bus, "--late")
        before.stop.set()
        await before.task
        await before.publish("a", {}, first=1)
        stop = asyncio.Event()
        async with open_worker(project.config, slow) as worker, asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await eventually(lambda: worker.feeds and worker.feeds[0].counts.done == 1)

            assert not worker.ready.is_set()

            slow.made.set()
            await worker.ready.wait()
            stop.set()


async def test_a_worker_of_an_ordered_function_is_not_stuck_while_another_one_has_the_key(
    bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUCK_AFTER", 0.5)
    project = Project(tmp_path, '@function(on="a", ordered=True)\nasync def f(event): await asyncio.sleep(1)')
    async with NatsBus(bus_url).open() as bus, project.worker(bus) as one, project.worker(bus) as two:
        await one.publish("a", *range(4), key="k")
        await eventually(lambda: one.counts("f").done + two.counts("f").done == 4)

        assert not one.task.done()
        assert not two.task.done()


async def test_last_attempts_overlap_like_any_other(bus_url: str, tmp_path: Path) -> None:
    """Only an event that crashed an executor, or that no worker ever reported on, runs alone: else failures would stop a queue."""
    project = Project(
        tmp_path,
        """
        last = 0
        @function(on="a", concurrency=16, retry=RetryPolicy(max_attempts=2, min_backoff=0.05, jitter=0))
        async def f(event, ctx):
            global last
            last += ctx.attempt == 2
            note("overlap", last)
            await asyncio.sleep(0.2)
            last -= ctx.attempt == 2
            raise ValueError
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", *range(16))
        await eventually(lambda: running.counts("f").dead == 16)

    assert max(map(int, project.lines("overlap"))) >= 4
