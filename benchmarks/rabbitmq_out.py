"""Out to RabbitMQ and to NATS: our sinks beside bare clients. python -m benchmarks.rabbitmq_out [MESSAGES] [ROUNDS]

Each sends batches of 500 events of 200 bytes and waits until all of a batch are confirmed: aio-pika with publisher confirms and gather,
nats-py with publishes to JetStream and gather. The bare ones write the same headers and properties.
µs: of Python, for one event.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, process_time

import aio_pika
import nats
from aio_pika.abc import AbstractExchange

from benchmarks import servers
from broker_faas.amqp_binding import to_amqp
from broker_faas.connectors.sink import Outgoing, SinkDriver
from broker_faas.connectors.sinks.nats import NatsSink
from broker_faas.connectors.sinks.rabbitmq import RabbitmqSink
from broker_faas.event import CloudEvent
from broker_faas.service import new_event_loop

SIZE, BATCH = 200, 500  # bytes, events
QUEUE = "bench.out"
Send = Callable[[Sequence[Outgoing]], Awaitable[object]]


@asynccontextmanager
async def ours(driver: SinkDriver) -> AsyncIterator[Send]:
    async with driver.open() as sink:

        async def send(events: Sequence[Outgoing]) -> None:
            assert not any(await sink.send(events))

        yield send


@asynccontextmanager
async def bare_pika(url: str) -> AsyncIterator[Send]:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange: AbstractExchange = channel.default_exchange

        def publish(one: Outgoing) -> Awaitable[object]:
            headers, content_type, body = to_amqp(one.event)
            message = aio_pika.Message(
                body, headers={**headers}, content_type=content_type, delivery_mode=2, message_id=one.event.id, type=one.event.type
            )
            return exchange.publish(message, one.target, mandatory=True)

        yield lambda events: asyncio.gather(*map(publish, events))


@asynccontextmanager
async def bare_nats(url: str) -> AsyncIterator[Send]:
    client = await nats.connect(url)
    js = client.jetstream()

    def publish(one: Outgoing) -> Awaitable[object]:
        headers = {f"ce-{name}": value for name, value in one.event.attributes.items()}
        return js.publish(one.target, one.event.data or b"", headers=headers | {"Nats-Msg-Id": one.event.id})

    try:
        yield lambda events: asyncio.gather(*map(publish, events))
    finally:
        await client.close()


async def empty_queue(url: str, kind: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(QUEUE)
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": kind})


async def empty_stream(url: str) -> None:
    client = await nats.connect(url)
    for stream in await client.jetstream().streams_info():
        await client.jetstream().delete_stream(str(stream.config.name))
    await client.jetstream().add_stream(name="bench", subjects=[QUEUE])
    await client.close()


async def main(count: int = 10_000, rounds: int = 3) -> None:
    rates: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        async with (
            servers.rabbitmq(root / "rabbit") as rabbit,
            servers.nats(root / "nats") as synced,
            servers.nats_unsynced(root / "unsynced") as unsynced,
        ):
            systems: list[tuple[str, Callable[[], Awaitable[None]], SinkDriver, Callable[[], AbstractAsyncContextManager[Send]]]] = []
            for kind in ("classic", "quorum"):
                empty, bare = partial(empty_queue, rabbit.url, kind), partial(bare_pika, rabbit.url)
                systems.append((f"rabbitmq {kind}", empty, RabbitmqSink(url=rabbit.url), bare))
            for mode, url in (("an fsync a message", synced.url), ("an fsync every 2 min", unsynced.url)):
                systems.append((f"nats, {mode}", partial(empty_stream, url), NatsSink(url=url), partial(bare_nats, url)))
            for turn in range(rounds):
                for name, make_empty, driver, open_bare in systems:
                    # Interleaved, and in turns first: a slow moment of the machine hits both.
                    for contender in ("ours", "bare") if turn % 2 else ("bare", "ours"):
                        await make_empty()
                        events = [
                            Outgoing(QUEUE, CloudEvent(type="t", source="/bench", id=f"{turn}-{n}", data=b"%0*d" % (SIZE, n)))
                            for n in range(count)
                        ]
                        async with ours(driver) if contender == "ours" else open_bare() as send:
                            started, busy = monotonic(), process_time()
                            for at in range(0, count, BATCH):
                                await send(events[at : at + BATCH])
                            rates.setdefault((name, contender), []).append(count / (monotonic() - started))
                            costs.setdefault((name, contender), []).append((process_time() - busy) / count * 1e6)
    for name, *_ in systems:
        (own, own_cpu), (bare_rate, bare_cpu) = [(median(rates[name, one]), median(costs[name, one])) for one in ("ours", "bare")]
        print(f"{name}: ours {own:,.0f}/s ({own_cpu:.1f} µs), bare {bare_rate:,.0f}/s ({bare_cpu:.1f} µs), ratio {own / bare_rate:.2f}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*map(int, sys.argv[1:])))
