"""What lies under one nats-server: full, or not what was written."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

from ...helpers import eventually
from .. import damage
from ..ledger import read
from ..run import Run
from ..scenario import scenario

# Settled events may go after 5 s instead of 120: space is freed while a run lasts. No server is restarted, so none forgets an id.
WINDOW = (
    "broker_faas.reaper",
    'window, clock = info["state"], info["config"]["duplicate_window"] / 1e9',
    'window, clock = info["state"], 5.0',
)


@scenario(
    "F23-store",
    "more is published than the store holds: publishers are refused before the disk is full, and go on when events are freed",
    proves=("I-T1", "I-L3"),
    disk_bytes=128 << 20,
    max_bytes=64 << 20,
    keep=120.0,  # the least; where space is short, what is younger goes, too
    sizes=(100_000,),
    patches=(WINDOW,),
)
async def store_full(run: Run) -> None:
    """A volume of 128 MiB, a store of 64, of which events get 32: sources are refused at 27."""
    for _ in range(run.times(5, short=2)):
        async with run.fault("bus full") as seen:
            await refused(run)
            free = shutil.disk_usage(run.disk.place).free
            seen(f"{run.refused['BusFull']} publishes refused, {free:,} bytes of the disk are free")
            assert free > 0.3 * run.disk.size, f"{free:,} bytes are left of the disk"
            await run.acknowledged(50, 30)
    assert run.refused.keys() == {"BusFull"}, run.refused
    run.notes.append(f"publishes refused: {run.refused['BusFull']}")


@scenario(
    "F23-disk",
    "somebody else fills the disk, then there is space again: the server that found it full is restarted by its keeper",
    proves=("I-T1", "I-D1", "I-L3"),
    disk_bytes=192 << 20,
    max_bytes=96 << 20,
    kept=True,
    lease=10.0,
)
async def disk_full(run: Run) -> None:
    """nats-server answers nothing once a write has failed, not even when there is space again: it takes a new process.

    Every other time it is killed meanwhile: it cannot be started then, and its keeper must wait for space as well.
    """
    filler = run.disk.place / "somebody-elses"
    for _ in range(run.times(6, short=1)):
        await run.pause(1, 3)
        kill = run.random.random() < 0.5
        async with run.fault("disk full") as seen:
            run.duplicates += run.in_flight * len(run.workers)
            pid = run.nats
            damage.fill(filler)
            await eventually(lambda: "no space left" in run.server_log(), 30)
            published = run.published
            if kill:
                os.kill(pid, signal.SIGKILL)
            await run.pause(3, 6)
            seen(f"the server says so; {run.published - published} more acknowledged{', and it was killed' if kill else ''}")
            filler.unlink()
            await eventually(partial(_other_server, run, pid), 30)
        await run.acknowledged(50, 30)


@scenario("F25-data", "one bit of an event on disk is flipped: it is not delivered altered", proves=("I-T2",), lease=10.0)
async def bit_flipped(run: Run) -> None:
    """nats-server finds it by its checksum, and passes over it without a word: that one event is lost, every other one is there."""
    for _ in range(run.times(3, short=1)):
        await without_workers(run)
        await run.acknowledged(200)
        async with run.fault("bit flip in an event") as seen:
            await stop_server(run)
            victim = run.random.choice([ack.id for ack in read(run.folder).acks[-150:]])
            run.damaged.add(victim)
            evidence = damage.flip_data(events(run), victim, run.random)
            seen(f"{victim}: {evidence}")
            await start_again(run)


@scenario(
    "F25-crash",
    "nats-server is killed and one bit of an event is flipped: what is left is not altered, and work goes on",
    short=False,
    proves=("I-T2", "I-L3"),
    lease=10.0,
)
async def bit_flipped_in_a_crash(run: Run) -> None:
    """A server that was killed reads its blocks again, and drops what follows the damage in that block, acknowledged or not.

    It says so nowhere. Sequences of what is gone are given to new events.
    """
    for _ in range(run.times(3, short=1)):
        await run.acknowledged(200)
        async with run.fault("server killed, bit flip in an event") as seen:
            run.duplicates += run.in_flight * len(run.workers)
            run.server.wanted.clear()
            os.kill(run.nats, signal.SIGKILL)
            run.server.expect_end()
            await eventually(lambda: not run.server.running, 20)
            acks = read(run.folder).acks
            victim = run.random.choice(acks[-150:])
            # Acknowledged after it, or just before: several producers publish at once.
            run.damaged.update(ack.id for ack in acks if ack.t > victim.t - 0.5)
            seen(f"{victim.id}: {damage.flip_data(events(run), victim.id, run.random)}")
            await start_again(run)


@scenario(
    "F25-end",
    "the end of the last block is missing: what was in it is lost, and nothing is altered",
    short=False,
    proves=("I-T2",),
    lease=10.0,
)
async def block_cut(run: Run) -> None:
    """What a disk that lied about its syncs leaves. Events that lay in what is gone may be missing; they were the last ones."""
    for _ in range(run.times(3, short=1)):
        await run.acknowledged(200)
        async with run.fault("last block cut") as seen:
            await stop_server(run)
            run.damaged.update(ack.id for ack in read(run.folder).acks[-30:])  # 8 producers: the last 4 KB hold less
            seen(damage.cut(last_block(run), run.random, 4096))
            await start_again(run)


@scenario(
    "F25-consumer",
    "the state of a consumer is damaged: its events come again, none is lost",
    short=False,
    proves=("I-T2", "I-D1"),
    lease=10.0,
    exits=(70, 75, 78),  # 75: one that starts while the server is stopped
)
async def consumer_damaged(run: Run) -> None:
    """nats-server does not load a consumer whose state it cannot read, nor lets it be made anew: workers end with 78 and say what to do.

    That is done here. What is left of the queue tells when it was made, and the new consumer begins there.
    """
    for _ in range(run.times(5, short=1)):
        await run.acknowledged(100)
        async with run.fault("consumer state damaged") as seen:
            await stop_server(run)
            run.duplicates += 2 * run.published  # whatever was ever acknowledged may come again, at each start
            state = run.random.choice(sorted(events(run).glob("obs/*/o.dat")))
            seen(run.random.choice((damage.flip_any, damage.cut_any))(state, run.random))
            await start_server(run)
            with suppress(AssertionError):  # it was read, after all
                await eventually(partial(_told, run, state.parent.name), 8)
            if _told(run, state.parent.name):
                run.notes.append("a consumer had to be deleted by hand")
                await stop_server(run)
                shutil.rmtree(state.parent)
            await start_again(run)


def _told(run: Run, consumer: str) -> bool:
    return any(f"obs/{consumer} in its store" in worker.said() for worker in run.workers)


@scenario(
    "F25-meta",
    "the description of the events stream is damaged: the server is not taken into use until it is mended",
    short=False,
    proves=("I-T2", "I-D1"),
    lease=10.0,
    exits=(1, 70),  # of the server, each time it is tried; of a worker that meets it before it was looked at
)
async def meta_damaged(run: Run) -> None:
    """nats-server finds it by its checksum and starts without that stream. Made anew it has its events, but its queues begin at new."""
    for _ in range(run.times(5, short=1)):
        await run.acknowledged(100)
        async with run.fault("meta.inf damaged") as seen:
            await stop_server(run)
            file = events(run) / "meta.inf"
            whole = file.read_bytes()
            evidence = damage.flip_any(file, run.random)
            starts = run.server.starts
            run.server.wanted.set()
            await eventually(lambda before=starts: run.server.starts > before + 1, 30)  # type: ignore[misc]
            assert "could not be recovered" in run.server.log.read_text()
            seen(evidence)
            run.server.wanted.clear()
            await eventually(lambda: not run.server.running, 30)
            file.write_bytes(whole)
            await start_again(run)


def events(run: Run) -> Path:
    """The folder of the events stream."""
    return damage.streams(run.store) / "events"


def last_block(run: Run) -> Path:
    return max(events(run).glob("msgs/*.blk"), key=lambda block: int(block.stem))


async def without_workers(run: Run) -> None:
    for worker in run.workers:
        worker.wanted.clear()
        await worker.end(signal.SIGTERM)


async def stop_server(run: Run) -> None:
    run.duplicates += run.in_flight * len(run.workers)
    run.server.wanted.clear()
    await run.server.end(signal.SIGTERM)


async def start_server(run: Run) -> None:
    run.server.wanted.set()
    await eventually(run.server.up.is_set, 60)


async def start_again(run: Run) -> None:
    for process in (run.server, *run.workers):
        process.wanted.set()
        await eventually(partial(process.up.is_set), 60)


async def refused(run: Run) -> None:
    """Until one more publish got BusFull."""
    before = run.refused["BusFull"]
    await eventually(lambda: run.refused["BusFull"] > before, 30)


def _other_server(run: Run, pid: int) -> bool:
    """Once it has written down its pid; meanwhile there is none, which eventually() takes for "not yet"."""
    return run.nats != pid
