"""What a connector reads from a real Kafka: the rows of the fault matrix that are about its protocol.

The bus forgets ids after three seconds here, and not after two minutes: that a position is stored once is shown by positions alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from ...helpers import eventually
from ..brokers import gone_often, through
from ..foreign_kafka import Kafka
from ..process import Process, state
from ..run import Run
from ..scenario import scenario
from .connector import POINTS as PUMP
from .connector import crashes, without_a_bus_for

BATCH = ("batch-before-write", "batch-written", "batch-answered")  # of the bus: published, and nothing is known of it
HOLDING = ("pump-read", "pump-quarantined", "pump-before-ack")  # with a batch in its hands
KAFKA: dict[str, Any] = {
    "broker": "kafka",
    "connector": """
[[connector]]
name = "orders"
type = "kafka"
servers = "${KAFKA}"
topics = ["load"]
group = "faults"
session_timeout = 6.0
heartbeat_interval = 0.5
rebalance_timeout = 6.0
""",
    "short": False,
    "rate": 100.0,  # three systems share the machine
    "needs": ("root", "kafka"),
    "patches": (("broker_faas.layout", "DUPLICATE_WINDOW = 120.0", "DUPLICATE_WINDOW = 3.0"),),
}


@scenario(
    "F7-kafka",
    "Kafka's connector dies at each line that matters: nothing is lost, no position is stored twice",
    proves=("I-D1", "I-D4", "I-D5", "I-U2", "I-O1"),
    crash=(*PUMP, *BATCH, "kafka-committed", "kafka-assigned"),
    exits=(-signal.SIGKILL,),
    **KAFKA,
)
async def log_crashes(run: Run) -> None:
    await crashes(run)


@scenario(
    "F8-kafka",
    "one of two connectors stands still, with a batch in its hands, until the other has its partitions: what it does then is refused",
    proves=("I-D1", "I-U2", "I-O1", "I-L3"),
    connectors=2,
    **KAFKA,
)
async def zombie(run: Run) -> None:
    first = run.connectors[0]
    for _ in range(run.times(2, short=1)):
        await run.pause(1, 3)
        os.kill(first.pid, signal.SIGSTOP)
        await _overtaken(run, first, "at random")
    for point in HOLDING if not run.short else HOLDING[1:2]:
        stopping = {
            "PYTHON_FAULTS_CRASH_AT": f"{point}:{run.random.randint(1, 20)}",
            "PYTHON_FAULTS_SIGNAL": "SIGSTOP",
            "PYTHON_FAULTS_CRASHED": str(run.folder / f"stopped-{point}"),
        }
        first.env |= stopping
        await first.end(signal.SIGTERM)
        await eventually(lambda: first.running and state(first.pid) == "T", 60)
        for name in stopping:
            del first.env[name]
        await _overtaken(run, first, f"at {point}")


async def _overtaken(run: Run, frozen: Process, where: str) -> None:
    """It is healed when the other has brought all that was there, and the frozen one goes on and reads again."""
    kafka = run.broker
    assert isinstance(kafka, Kafka)
    async with run.fault(f"freeze {frozen.name} {where}") as seen:
        await eventually(lambda: state(frozen.pid) == "T")
        seen(f"pid {frozen.pid} is in state T")
        ends = await kafka.ends()
        await eventually(lambda: kafka.committed(ends), 30)
        await run.pause(3, 4)  # beyond the window of ids
        os.kill(frozen.pid, signal.SIGCONT)
    await through(run)


@scenario(
    "F9-kafka",
    "connectors come and go every three seconds, drained or killed: partitions are handed over all the time",
    proves=("I-D1", "I-D4", "I-U2", "I-O1"),
    connectors=3,
    crash=("kafka-revoked",),
    exits=(-signal.SIGKILL,),
    **KAFKA,
)
async def storm(run: Run) -> None:
    async with run.fault("connectors come and go") as seen:
        for _ in range(run.times(20, short=6)):
            there = [one for one in run.connectors if one.wanted.is_set()]
            away = [one for one in run.connectors if not one.wanted.is_set()]
            if away and (len(there) == 1 or run.random.random() < 0.5):
                run.random.choice(away).wanted.set()
            elif (one := run.random.choice(there)).running:
                one.wanted.clear()
                await one.end(run.random.choice([signal.SIGTERM, signal.SIGKILL]))
            await run.pause(2, 3)
        seen(f"{[one.starts for one in run.connectors]} starts")
        for one in run.connectors:
            one.wanted.set()
        for one in run.connectors:
            await asyncio.wait_for(one.up.wait(), 60)


@scenario(
    "F10-kafka",
    "Kafka is killed, and comes back; it is gone for a minute",
    proves=("I-D1", "I-D4", "I-U2", "I-O1", "I-L3"),
    gap=15.0 + 6.0,  # its group waits for session_timeout: it remembers the member that was lost with the connection
    **KAFKA,
)
async def killed(run: Run) -> None:
    await gone_often(run)


@scenario(
    "D9-kafka",
    "the bus is killed, cut off, and stands still for 20 s, while Kafka goes on: it waits there, and all of it comes",
    proves=("I-D1", "I-D4", "I-D9", "I-U2", "I-O1", "I-L3"),
    **KAFKA | {"needs": ("root", "kafka", "nft")},
)
async def without_a_bus(run: Run) -> None:
    await without_a_bus_for(run, run.times(3, short=1))
