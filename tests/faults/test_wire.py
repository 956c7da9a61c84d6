"""The connection to the bus on a bad wire: slow, cut in the middle of a message, half open, with bits turned over."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker_faas.bus import Queue, Record
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.buses.pull import PullSubscription
from broker_faas.embedded import Server
from tests.helpers import eventually
from tests.proxy import Proxy

QUEUE = Queue("shop--f", ("a",), start="first", ack_wait=2.0)


class Reader:
    """Settles everything; how often each number came."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    async def run(self, subscription: PullSubscription) -> None:
        async for batch in subscription:
            for delivery in batch:
                found = re.search(rb"^ce-id: (\d+)\r\n", delivery.headers, re.MULTILINE)
                n = int(found[1]) if found else -1  # spoiled
                self.seen[n] = self.seen.get(n, 0) + 1
            subscription.settle(batch)

    def has(self, numbers: range) -> bool:
        return self.seen.keys() >= {*numbers}


@asynccontextmanager
async def behind(server: Server, url: str, seed: int = 1, try_timeout: float = 1.0) -> AsyncIterator[tuple[Proxy, JetStreamBus, Reader]]:
    """A reader whose connection goes through the proxy."""
    reader = Reader()
    async with (
        Proxy(server.port, seed).open() as proxy,
        NatsBus(proxy.url(url), try_timeout=try_timeout).open() as bus,
        bus.subscribe(QUEUE, 100) as subscription,
        asyncio.TaskGroup() as tasks,
    ):
        reading = tasks.create_task(reader.run(subscription))
        yield proxy, bus, reader
        reading.cancel()


async def publish(bus: JetStreamBus, numbers: range) -> None:
    for n in numbers:
        await bus.publish([Record("ev.a.-.-", f"a:{n}", b"ce-id: %d\r\n" % n, b"x" * 300)])


async def test_a_slow_and_trembling_wire_costs_time_alone(nats_server: Server, bus_url: str) -> None:
    """The second publish takes longer than one try may last: it is not sent again and again, each time behind the one before."""
    async with behind(nats_server, bus_url, try_timeout=0.3) as (proxy, bus, reader):
        proxy.delay, proxy.jitter, proxy.rate = 0.02, 0.03, 300_000
        await publish(bus, range(30))
        await bus.publish([Record("ev.a.-.-", f"a:{n}", b"ce-id: %d\r\n" % n, b"x" * 300) for n in range(30, 300)])
        await eventually(lambda: reader.has(range(300)), 20)

        assert set(reader.seen.values()) == {1}


async def test_connections_that_are_reset_in_the_middle_of_a_message_lose_nothing(nats_server: Server, bus_url: str) -> None:
    async with behind(nats_server, bus_url) as (proxy, bus, reader):
        for first in range(0, 60, 20):
            proxy.resets = 1
            await publish(bus, range(first, first + 20))
            await eventually(lambda: proxy.resets == 0, 20)
        await eventually(lambda: reader.has(range(60)), 20)

        assert -1 not in reader.seen


async def test_a_wire_that_loses_what_the_server_says_for_a_while_is_not_trusted_afterwards(nats_server: Server, bus_url: str) -> None:
    """TCP does not do that; a middlebox may. What comes then begins in the middle of a message."""
    async with behind(nats_server, bus_url) as (proxy, bus, reader), NatsBus(bus_url).open() as other:
        await publish(bus, range(10))
        await eventually(lambda: reader.has(range(10)))
        proxy.deaf = True
        await publish(other, range(10, 40))
        await eventually(lambda: proxy.lost)
        proxy.deaf = False
        await publish(other, range(40, 60))
        await eventually(lambda: reader.has(range(60)), 25)

        assert bus.connected


@pytest.mark.parametrize("seed", range(8))
async def test_bits_turned_over_on_the_wire_may_spoil_messages_and_never_the_connection_for_good(
    nats_server: Server, bus_url: str, seed: int
) -> None:
    """No checksum of ours: TCP's and TLS's are there. But no garbage ends the process, or makes it deaf."""
    async with behind(nats_server, bus_url, seed) as (proxy, bus, reader), NatsBus(bus_url).open() as other:
        for first in range(0, 200, 10):
            proxy.flips = 2
            await publish(other, range(first, first + 10))
        proxy.flips = 0
        await publish(other, range(1000, 1050))
        await eventually(lambda: reader.has(range(1000, 1050)), 40)

        assert not bus.closed.is_set()
