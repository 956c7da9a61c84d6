"""What an operator may do to a bus in use: delete a queue, delete a stream, take a permission away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker_faas.buses.nats import NatsBus

from ...helpers import eventually
from ..ledger import read
from ..run import PROJECT, Run
from ..scenario import scenario

GONE = "was deleted on the bus while it was served"
LEAST = 2.0  # seconds before a deletion: what was published then may not have been handled yet


@scenario(
    "F28-consumer",
    "an operator deletes one consumer of a function: its workers say so, end with 70, and make it anew; nothing is lost",
    short=False,
    proves=("I-L4", "I-D1"),
    exits=(70,),
)
async def consumer_deleted(run: Run) -> None:
    """What is left of the queue tells when it was made, and the new consumer begins there: all that is still kept comes again."""
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        run.duplicates += run.published + run.in_flight
        await deleted(run, "consumer deleted", f"CONSUMER.DELETE.events.{PROJECT}--plain")
        await run.pause(2, 3)


@scenario(
    "F28-queue",
    "an operator deletes a function's queue: its workers say so, end with 70, and make it anew",
    short=False,
    proves=("I-L4",),
    exits=(70,),
)
async def queue_deleted(run: Run) -> None:
    """What the queue still had to deliver goes with it, and so does what comes until it is made again; later events are all there."""
    for _ in range(run.times(3, short=1)):
        await run.pause(1, 3)
        queue = f"{PROJECT}--plain"
        async with losing(run):
            await deleted(run, "queue deleted", f"CONSUMER.DELETE.retries.{queue}", f"CONSUMER.DELETE.events.{queue}")
        await run.pause(2, 3)


@scenario(
    "F28-stream",
    "an operator deletes the events stream: workers say so, end with 70, and make it anew",
    short=False,
    proves=("I-L4",),
    exits=(70,),
    keep=3600.0,  # what the deleted stream held is not on the bus
)
async def stream_deleted(run: Run) -> None:
    """Queues are made anew with it; what was in the stream is gone."""
    await run.pause(1, 3)
    async with losing(run):
        await deleted(run, "stream deleted", "STREAM.DELETE.events")
    await run.pause(2, 3)


@scenario(
    "F30",
    "a permission is taken away from the workers' user: they end with 78 and name it within 10 s, and work when it is back",
    proves=("I-L4", "I-D1"),
    exits=(78,),
    lease=10.0,
)
async def not_permitted(run: Run) -> None:
    denied = ["$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>"]
    for subject in run.random.sample(denied, run.times(2, short=1)):
        await run.pause(1, 3)
        async with run.fault(f"no permission for {subject}") as seen:
            run.duplicates += run.in_flight * len(run.workers)
            exits = [len(worker.exits) for worker in run.workers]
            logs = [worker.log.stat().st_size for worker in run.workers]
            reload(run, {"publish": {"allow": [">"], "deny": [subject]}})
            for worker, before, size in zip(run.workers, exits, logs, strict=True):
                began = time.monotonic()
                await eventually(lambda worker=worker, before=before: len(worker.exits) > before, 10)  # type: ignore[misc]
                run.notes.append(f"{worker.name} ended {time.monotonic() - began:.1f} s after {subject} was denied")
                said = worker.log.read_bytes()[size:].decode()
                assert "may not publish to " + subject.rstrip(">").lower() in said.lower(), said[-500:]
            seen(f"ended with {[worker.exits[before][0] for worker, before in zip(run.workers, exits, strict=True)]}")
            reload(run, {})
        for worker in run.workers:
            await asyncio.wait_for(worker.up.wait(), 30)
        await run.pause(1, 2)


def reload(run: Run, permissions: dict[str, object]) -> None:
    """The server reads its configuration anew, with these permissions of the one user."""
    file = run.disk.place / "nats" / "nats.conf"
    settings = json.loads(file.read_text().partition("\n")[2])
    [user] = settings["accounts"]["faas"]["users"]
    user.pop("permissions", None)
    if permissions:
        user["permissions"] = permissions
    file.write_text("#\n" + json.dumps(settings))
    os.kill(run.nats, signal.SIGHUP)


async def deleted(run: Run, what: str, *verbs: str) -> None:
    """By these calls of JetStream's API. Every worker ends with 70 and a reason, and is started again."""
    async with run.fault(what) as seen:
        run.duplicates += run.in_flight * len(run.workers)
        exits = [len(worker.exits) for worker in run.workers]
        logs = [worker.log.stat().st_size for worker in run.workers]
        async with NatsBus(run.url, manage=False).open() as bus:
            for verb in verbs:
                await bus.api(verb)
        for worker, before, size in zip(run.workers, exits, logs, strict=True):
            await eventually(lambda worker=worker, before=before: len(worker.exits) > before, 15)  # type: ignore[misc]
            assert GONE in (said := worker.log.read_bytes()[size:].decode()), said[-500:]
        seen(f"ended with {[worker.exits[before][0] for worker, before in zip(run.workers, exits, strict=True)]}")
        for worker in run.workers:
            await asyncio.wait_for(worker.up.wait(), 30)


@asynccontextmanager
async def losing(run: Run) -> AsyncIterator[None]:
    """Events of the time in the body may be lost, and no others."""
    began = time.monotonic()
    yield
    over = time.monotonic()
    run.damaged.update(ack.id for ack in read(run.folder).acks if began - LEAST < ack.t < over)
