"""A worker that is connected and gets nothing although events wait ends itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker_faas.bus import Lag, Queue, Subscription
from broker_faas.buses.memory import MemoryBus
from broker_faas.errors import BusUnavailable
from broker_faas.service import Stuck
from broker_faas.workers import worker as module
from broker_faas.workers.worker import Worker
from tests.unit.test_dispatch import spec


class Silent:
    """A bus whose subscriptions never deliver."""

    def __init__(self, bus: Any, lag: Lag | None) -> None:
        self._bus = bus
        self._lag = lag
        self.asked = asyncio.Event()

    async def publish(self, *args: Any, **options: Any) -> int:
        return int(await self._bus.publish(*args, **options))

    @asynccontextmanager
    async def subscribe(self, queue: Queue, prefetch: int) -> AsyncIterator[Subscription]:
        async with self._bus.subscribe(Queue("nobody--hears", ("x.y.z",)), prefetch) as subscription:
            yield subscription

    async def lag(self, queue: Queue) -> Lag:
        self.asked.set()
        if self._lag is None:
            raise BusUnavailable("away")
        return self._lag


async def forbidden(*_: Any) -> Any:
    raise AssertionError("nothing is to be run")


async def test_waiting_events_and_no_delivery_for_a_minute_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_AFTER", 0.06)
    async with MemoryBus().open() as bus:
        worker = Worker(Silent(bus, Lag(3, 0, 0)), "p", [spec()], forbidden)

        with pytest.raises(Stuck, match="f: 3 events wait"):
            await worker.run(asyncio.Event())


@pytest.mark.parametrize("lag", [Lag(0, 0, 0), Lag(0, 5, 2), None], ids=["nothing waits", "others hold it", "bus is away"])
async def test_a_quiet_queue_or_a_lost_connection_is_not_stuck(monkeypatch: pytest.MonkeyPatch, lag: Lag | None) -> None:
    monkeypatch.setattr(module, "STUCK_AFTER", 0.06)
    async with MemoryBus().open() as bus:
        silent = Silent(bus, lag)
        worker = Worker(silent, "p", [spec()], forbidden)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(worker.run(stop))
            for _ in range(3):
                silent.asked.clear()
                await silent.asked.wait()

            assert not running.done()

            stop.set()
