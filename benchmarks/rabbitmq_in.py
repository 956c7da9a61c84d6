"""From RabbitMQ to the bus: our connector beside a bare aio-pika loop. python -m benchmarks.rabbitmq_in [MESSAGES] [ROUNDS]

Both read with a prefetch of 2000, store up to 500 or what comes in 20 ms in one publish, and acknowledge behind it.
The loop makes the same events of them, but looks at nothing: no errors, no bound of bytes, no reconnection.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic

import aio_pika

from benchmarks import servers
from broker_faas.bus import Bus, Position
from broker_faas.buses.nats import NatsBus
from broker_faas.connectors.batch import Route
from broker_faas.connectors.pump import Pump
from broker_faas.connectors.rabbitmq import RabbitmqConnector
from broker_faas.event import CloudEvent
from broker_faas.layout import event_record
from broker_faas.service import new_event_loop

SIZE = 200  # bytes
QUEUE = "bench.in"
KINDS = ("classic", "quorum")


async def fill(url: str, kind: str, count: int) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.queue_delete(QUEUE)
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": kind})
        for number in range(count):
            body = b"%0*d" % (SIZE, number)
            message = aio_pika.Message(body, delivery_mode=2, message_id=f"{kind}-{monotonic()}-{number}")
            await channel.default_exchange.publish(message, QUEUE)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await _until(count, lambda: _ready(channel), 0.1)


async def ours(url: str, bus: Bus, count: int) -> None:
    async def none(partition: str) -> Position:
        return Position()

    pump = Pump(RabbitmqConnector(url=url, queue=QUEUE), Route(name="bench", source="/bench"), bus, none)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pump.run(stop))
        await _until(count, lambda: _stored(pump), 0.005)
        stop.set()


async def _ready(channel: aio_pika.abc.AbstractChannel) -> int:
    return (await channel.declare_queue(QUEUE, passive=True)).declaration_result.message_count or 0


async def _stored(pump: Pump) -> int:
    return pump.status.stored


async def _until(count: int, look: Callable[[], Awaitable[int]], pause: float) -> None:
    """pause: seconds between two looks."""
    while True:
        if await look() >= count:
            return
        await asyncio.sleep(pause)


async def loop(url: str, bus: Bus, count: int) -> None:
    arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=2000)
        queue = await channel.declare_queue(QUEUE, passive=True)
        await queue.consume(arrived.put)
        stored = 0
        while stored < count:
            batch = [await arrived.get()]
            try:
                async with asyncio.timeout(0.02):
                    while len(batch) < 500:
                        batch.append(await arrived.get())
            except TimeoutError:
                pass
            events = [CloudEvent(type="t", source="/bench", id=one.message_id or "", data=one.body) for one in batch]
            await bus.publish([event_record(QUEUE, event) for event in events])
            await batch[-1].ack(multiple=True)
            stored += len(batch)


async def main(count: int = 30_000, rounds: int = 3) -> None:
    rates: dict[tuple[str, str], list[float]] = {}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        async with servers.rabbitmq(root / "rabbit") as rabbit, servers.nats(root / "nats") as nats, NatsBus(nats.url).open() as bus:
            for _ in range(rounds):
                for kind in KINDS:
                    for contender in (ours, loop):  # interleaved: a slow moment of the machine hits both
                        await fill(rabbit.url, kind, count)
                        started = monotonic()
                        await contender(rabbit.url, bus, count)
                        rates.setdefault((kind, contender.__name__), []).append(count / (monotonic() - started))
    for kind in KINDS:
        own, bare = median(rates[kind, "ours"]), median(rates[kind, "loop"])
        print(f"{kind}: ours {own:,.0f}/s, bare aio-pika {bare:,.0f}/s, ratio {own / bare:.2f}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*map(int, sys.argv[1:])))
