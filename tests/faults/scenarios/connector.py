"""What goes through a connector: pump() killed at every line, frozen, without a bus. Its source is a file of lines, in two kinds:

a log, which can be read again from any line, as Kafka; and a queue, which forgets what was acknowledged, as RabbitMQ. The rows of the
fault matrix that are about one system's protocol belong to that connector's own tests.
"""

from __future__ import annotations

import asyncio
import signal

from ..brokers import through
from ..run import Run
from ..scenario import scenario
from .points import POINT, PRODUCT, at_work, crashed

LINES = """
import asyncio, json, os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from broker_faas import CloudEvent
from broker_faas.connectors.batch import Batch, Refused
from broker_faas.errors import SourceUnavailable

def acked():  # workers import this module too, and have no such variable
    return Path(os.environ["SOURCE"] + ".acked")

@dataclass(frozen=True, kw_only=True)
class Lines:
    log: bool = True
    batch: int = 20

    @asynccontextmanager
    async def open(self, source, positions):
        stored = await positions("file") if self.log else None
        done = int(acked().read_text()) if acked().exists() else 0
        yield Reader(self, source, int(stored) if stored else done)

class Reader:
    def __init__(self, options, source, at):
        self.options, self.source, self.at = options, source, at

    async def __aiter__(self):
        path = os.environ["SOURCE"]
        while True:
            lines = []
            with open(path, "rb") as file:
                file.seek(self.at)
                while len(lines) < self.options.batch and (line := file.readline()).endswith(b"\\n"):
                    lines.append(line)
            if not lines:
                await asyncio.sleep(0.02)
                continue
            begin, self.at = self.at, self.at + sum(map(len, lines))
            items = [Refused(f"line of byte {begin}", "as planned", {}, b"\\xff")]
            for line in lines:
                id, key, data = json.loads(line)
                items.append(CloudEvent(type="line", source=self.source, id=id, partitionkey=key, data=bytes.fromhex(data)))
            yield Batch([("load", items)], self.at, {"file": str(self.at)} if self.options.log else {})

    async def ack(self, token):
        new = acked().with_suffix(".new")
        new.write_text(str(token))
        new.rename(acked())

    async def lag(self):
        return os.stat(os.environ["SOURCE"]).st_size - self.at
"""
LOG = '[[connector]]\nname = "lines"\ntype = "lines:Lines"\n'
QUEUE = LOG + "log = false\n"
POINTS = tuple(POINT.findall((PRODUCT / "connectors" / "pump.py").read_text()))


@scenario(
    "F7",
    "a connector of a log dies at each line that matters: nothing is lost, nothing is stored twice",
    proves=("I-D1", "I-D4", "I-D5", "I-U2", "I-O1"),
    modules={"lines": LINES},
    connector=LOG,
    crash=POINTS,
    exits=(-signal.SIGKILL,),
)
async def log_crashes(run: Run) -> None:
    await crashes(run)


@scenario(
    "F13",
    "a connector of a queue dies at each line that matters: nothing is lost, and what comes again is stored once",
    proves=("I-D1", "I-D4", "I-D5", "I-O1"),
    short=False,
    modules={"lines": LINES},
    connector=QUEUE,
    crash=POINTS,
    exits=(-signal.SIGKILL,),
)
async def queue_crashes(run: Run) -> None:
    await crashes(run)


@scenario(
    "F13-kill",
    "a connector of a queue is killed at random",
    proves=("I-D1", "I-D4", "I-O1"),
    short=False,
    modules={"lines": LINES},
    connector=QUEUE,
)
async def killed(run: Run) -> None:
    for _ in range(run.times(10, short=3)):
        await run.pause(0.5, 2)
        await run.kill(run.connectors[0], duplicates=0)


@scenario(
    "D9",
    "the bus is killed and cut off under a connector: the source waits, and all of it comes",
    proves=("I-D1", "I-D4", "I-D9", "I-O1", "I-L3"),
    short=False,
    modules={"lines": LINES},
    connector=LOG,
)
async def without_a_bus(run: Run) -> None:
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        await run.kill_server()
        await run.pause(1, 3)
        await run.cut(5, run.random.choice(["drop", "reject", "requests", "answers"]))


@scenario(
    "F8",
    "a connector stands still for 12 s, its connection and all",
    proves=("I-D1", "I-U2", "I-O1", "I-L3"),
    short=False,
    modules={"lines": LINES},
    connector=LOG,
)
async def frozen(run: Run) -> None:
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        await run.freeze(run.connectors[0].pid, "the connector", 12)


async def without_a_bus_for(run: Run, times: int) -> None:
    """The bus killed, cut off, and standing still for 20 s."""
    for _ in range(times):
        await run.pause(1, 3)
        await run.kill_server()
        await through(run)
        await run.cut(5, run.random.choice(["drop", "reject", "requests", "answers"]))
        await through(run)  # or the next fault would count as time that this one took
        await run.freeze(run.nats, "nats-server", 20, duplicates=run.in_flight * len(run.workers))
        await through(run)


async def crashes(run: Run) -> None:
    """Drains it again and again, so that those lines are reached, too."""
    wanted = run.scenario.crash
    async with run.fault(f"crash at {', '.join(wanted)}") as seen:
        async with asyncio.timeout(20 + 12 * len(wanted)):
            while len(crashed(run)) < len(wanted):
                connector = await at_work(run, run.connectors[0])
                if len(crashed(run)) == len(wanted) - 1:  # of all but pump-draining
                    await connector.end(signal.SIGTERM)
        seen(" ".join(crashed(run)))
    await asyncio.wait_for(run.connectors[0].up.wait(), 30)
