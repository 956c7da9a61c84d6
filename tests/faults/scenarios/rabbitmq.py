"""What a connector reads from a real RabbitMQ: the rows of the fault matrix that are about its protocol.

A queue forgets what was acknowledged, and has no positions: what comes again is known by its id, for two minutes.
"""

from __future__ import annotations

import signal
from typing import Any

from ..brokers import gone_often, through
from ..foreign_rabbitmq import Rabbitmq
from ..run import Run
from ..scenario import scenario
from .connector import POINTS as PUMP
from .connector import crashes, without_a_bus_for

RABBITMQ: dict[str, Any] = {
    "connector": '[[connector]]\nname = "orders"\ntype = "rabbitmq"\nurl = "${RABBITMQ}"\nqueue = "load"\nkey_header = "key"\n',
    "short": False,
    "rate": 100.0,  # three systems share the machine
    "needs": ("root", "rabbitmq"),
}
QUORUM: dict[str, Any] = RABBITMQ | {"broker": "rabbitmq/quorum"}


def rabbitmq(run: Run) -> Rabbitmq:
    assert isinstance(run.broker, Rabbitmq)
    return run.broker


@scenario(
    "F13-rabbitmq",
    "RabbitMQ's connector dies at each line that matters: nothing is lost, and what comes again is stored once",
    proves=("I-D1", "I-D4", "I-D5", "I-O1"),
    crash=(*PUMP, "batch-before-write", "batch-written", "batch-answered", "rabbitmq-acked"),
    exits=(-signal.SIGKILL,),
    **QUORUM,
)
async def queue_crashes(run: Run) -> None:
    await crashes(run)


@scenario(
    "F14",
    "RabbitMQ is killed, and comes back; it is gone for a minute",
    proves=("I-D1", "I-D4", "I-O1", "I-L3"),
    **QUORUM,
)
async def killed(run: Run) -> None:
    await gone_often(run)


@scenario(
    "F14-classic",
    "RabbitMQ with a classic queue is killed, and comes back; it is gone for a minute",
    proves=("I-D1", "I-D4", "I-O1", "I-L3"),
    broker="rabbitmq/classic",
    **RABBITMQ,
)
async def killed_classic(run: Run) -> None:
    await gone_often(run)


@scenario(
    "F14-app",
    "RabbitMQ's application is stopped, it blocks publishers, the way to it is cut: a single active consumer keeps the order",
    proves=("I-D1", "I-D4", "I-O1", "I-L3"),
    **RABBITMQ | {"broker": "rabbitmq/single", "needs": ("root", "rabbitmq", "nft")},
)
async def stopped(run: Run) -> None:
    broker = rabbitmq(run)
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        async with run.fault("rabbitmq's application is stopped") as seen:
            seen(await broker.ctl("stop_app"))
            await run.pause(3, 5)
            await broker.ctl("start_app")
        await through(run)
        async with run.fault("rabbitmq blocks publishers") as seen:
            seen(await broker.ctl("set_vm_memory_high_watermark", "0.00001"))
            await run.pause(3, 5)
            await broker.ctl("set_vm_memory_high_watermark", "0.6")
        await through(run)
        for how in ("reject", "drop"):
            await run.cut(run.times(30, short=5), how, duplicates=0, port=broker.port)
            await through(run)


@scenario(
    "F15",
    "the bus stands still for longer than RabbitMQ waits for acknowledgements: it closes the channel, and what was held comes again",
    proves=("I-D1", "I-D4", "I-D9", "I-O1", "I-L3"),
    **QUORUM,
)
async def timed_out(run: Run) -> None:
    broker = rabbitmq(run)
    for name, milliseconds in (("consumer_timeout", 10_000), ("channel_tick_interval", 2_000)):
        await broker.ctl("eval", f"application:set_env(rabbit, {name}, {milliseconds}).")
    await run.kill(run.connectors[0], duplicates=0)  # channels ask for these when they are opened
    for _ in range(run.times(3, short=1)):
        await through(run)
        before = broker.timeouts()
        await run.freeze(run.nats, "nats-server", 30, duplicates=run.in_flight * len(run.workers))
        async with run.fault("rabbitmq takes back what it waited for") as seen:
            if (times := broker.timeouts() - before) > 0:
                seen(f"{times} times")
        await through(run)


@scenario(
    "D9-rabbitmq",
    "the bus is killed, cut off, and stands still for 20 s, while RabbitMQ goes on: it waits there, and all of it comes",
    proves=("I-D1", "I-D4", "I-D9", "I-O1", "I-L3"),
    **QUORUM | {"needs": ("root", "rabbitmq", "nft")},
)
async def without_a_bus(run: Run) -> None:
    await without_a_bus_for(run, run.times(3, short=1))
