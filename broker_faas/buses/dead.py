"""Dead letters: list, group by cause, show, replay, purge."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from ..bus import Bus, Delivery, Queue
from ..errors import BusRefused, ConfigError
from ..layout import DEAD, RETRIES, faas_headers, header_lines, replay_filter, replay_record
from . import consumers, store
from .admin import REPLAYED, hear_replays
from .connection import Connection
from .consumers import former_names
from .reading import read
from .store import Api

CHUNK = 50  # dead letters replayed in one publish, and so in memory at once
ANNOUNCE = REPLAYED / 4  # seconds after which filters for replays are announced again


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """seq: its number on the bus. size: bytes of the event's data. first, last: unix time the event was stored, and failed last.

    reason: one line; detail: traceback. id, source, type: of the event, "" if it is none. version: of the code that ran.
    """

    seq: int
    queue: str
    topic: str
    reason: str
    fingerprint: str
    attempts: int
    first: float
    last: float
    version: str
    detail: str
    id: str
    source: str
    type: str
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one queue with one cause. first, last: unix time of the earliest and latest failure; sample: the latest of them."""

    queue: str
    fingerprint: str
    count: int
    first: float
    last: float
    sample: DeadLetter


async def list_dead(connection: Connection, queues: Sequence[str] = (), *, after: int = 0, limit: int = 100) -> list[DeadLetter]:
    """One page, oldest first: of some queues or all, behind number `after`. The next page begins after the last one's seq."""
    page: list[DeadLetter] = []
    if limit > 0:
        async for letter in read_dead(connection, queues, after=after):
            page.append(letter)
            if len(page) == limit:
                break
    return page


async def read_dead(connection: Connection, queues: Sequence[str] = (), *, after: int = 0) -> AsyncIterator[DeadLetter]:
    """All that are stored now, oldest first; their data is not fetched."""
    async for delivery in read(connection, DEAD, _subjects(queues), first=after + 1, data=False):
        yield letter_of(delivery)


async def group_dead(connection: Connection, queues: Sequence[str] = ()) -> list[Group]:
    """Same queue, same cause: one group; the largest first."""
    groups: dict[tuple[str, str], Group] = {}
    async for letter in read_dead(connection, queues):
        key = letter.queue, letter.fingerprint
        old = groups.get(key)
        first, count = (min(old.first, letter.last), old.count + 1) if old else (letter.last, 1)
        groups[key] = Group(*key, count, first, max(letter.last, old.last if old else 0.0), letter)
    return sorted(groups.values(), key=lambda group: (-group.count, group.queue, group.fingerprint))


async def show_dead(bus: Api, seq: int) -> tuple[DeadLetter, Delivery]:
    """The letter and the record with the event's own headers and data. BusRefused if it is gone."""
    delivery = await store.stored(bus, DEAD, seq=seq)
    if delivery is None:
        raise BusRefused(f"there is no dead letter {seq} (any more); `faas dead list` shows those there are", store.NO_MESSAGE)
    return letter_of(delivery), delivery


async def replay(
    connection: Connection,
    bus: Bus,
    queue: Queue,
    *,
    seqs: Collection[int] | None = None,
    fingerprint: str | None = None,
    rate: float | None = None,
) -> int:
    """Send dead letters to the function that failed, as attempt 1, oldest first; how many. Default: all that are there now.

    seqs, fingerprint: only those. rate: at most so many a second. Each is deleted once its replay is stored, so a number
    is replayed once in its life, and what fails again is a new dead letter with a new number. Killed in between, the letter is still
    there: replayed again within the bus's duplicate window (2 min) it is not stored twice; later, the function sees it twice.
    Raises BusRefused if the queue is gone: nobody would hear the replay.
    """
    retries = await consumers.find(connection, RETRIES, queue.name)
    if retries is None:
        raise BusRefused(
            f"there is no queue {queue.name} on the bus, so nothing would hear a replay; start its worker first",
            consumers.NO_CONSUMER,
        )
    names = [queue.name, *former_names(queue.name, [retries])]
    chosen = await _chosen(connection, names, seqs, fingerprint)
    began, sent = monotonic(), 0
    heard, announced = set[tuple[str, str]](), monotonic()
    step = CHUNK if rate is None else max(1, min(CHUNK, int(rate / 10)))  # ten publishes a second
    for start in range(0, len(chosen), step):
        if rate is not None:
            await asyncio.sleep(began + start / rate - monotonic())
        letters = [found for seq in chosen[start : start + step] if (found := await store.stored(connection, DEAD, seq=seq))]
        replays = [replay_record(queue, letter, 0) for letter in letters]
        if queue.partitions:
            if monotonic() > announced + ANNOUNCE:
                heard.clear()
                announced = monotonic()
            fresh = {replay_filter(queue, replay.subject) for replay in replays} - heard
            await hear_replays(connection, queue, fresh)
            heard |= fresh
        await bus.publish(replays, output=True)
        sent += len(letters)
        await store.together(store.delete(connection, DEAD, letter.seq) for letter in letters)
    return sent


async def purge_dead(
    connection: Connection,
    queues: Sequence[str],
    *,
    seqs: Collection[int] | None = None,
    fingerprint: str | None = None,
    before: float | None = None,
    erase: bool = False,
) -> int:
    """Discard dead letters of these queues; how many. Default: all. before: only those stored before that unix time.

    erase: overwrite the bytes on disk, too: one at a time, 0.3 s each.
    """
    if not queues:
        return 0  # and not those of all, as when reading
    below = None
    if before is not None:
        below = await store.first_since(connection, DEAD, before, (await store.info(connection, DEAD))["state"]["last_seq"])
    if seqs is None and fingerprint is None and not erase:
        return sum([await store.purge(connection, DEAD, subject, below) for subject in _subjects(queues)])
    chosen = [seq for seq in await _chosen(connection, queues, seqs, fingerprint) if below is None or seq < below]
    return sum([await store.delete(connection, DEAD, seq, erase=erase) for seq in chosen])


async def _chosen(connection: Connection, queues: Sequence[str], seqs: Collection[int] | None, fingerprint: str | None) -> list[int]:
    """Numbers of the dead letters of these queues that are meant, in order. ConfigError for a number that is another queue's."""
    if seqs is None:
        return [one.seq async for one in read_dead(connection, queues) if fingerprint in (None, one.fingerprint)]

    async def check(seq: int) -> int | None:
        letter, _ = await show_dead(connection, seq)
        if letter.queue not in queues:
            raise ConfigError(
                f"dead letter {seq} belongs to {letter.queue}, not to {queues[0]}; name its function, or leave that number out"
            )
        return seq if fingerprint in (None, letter.fingerprint) else None

    return [seq for seq in await store.together(check(seq) for seq in sorted(set(seqs))) if seq is not None]


def _subjects(queues: Iterable[str]) -> list[str]:
    return [f"dead.{queue}" for queue in queues] or ["dead.>"]


def letter_of(delivery: Delivery) -> DeadLetter:
    """Of a record on the dead stream, whoever put it there."""
    ours, lines = faas_headers(delivery.headers), dict(header_lines(delivery.headers))
    return DeadLetter(
        seq=delivery.seq,
        queue=delivery.subject[5:],
        topic=ours.get("topic", ""),
        reason=ours.get("reason", ""),
        fingerprint=ours.get("fingerprint", ""),
        attempts=int(_number(ours.get("attempts"), 0)),
        first=_number(ours.get("first"), delivery.stored_at),
        last=_number(ours.get("last"), delivery.stored_at),
        version=ours.get("version", ""),
        detail=ours.get("detail", ""),
        id=lines.get("ce-id", ""),
        source=lines.get("ce-source", ""),
        type=lines.get("ce-type", ""),
        size=int(_number(lines.get("nats-msg-size"), len(delivery.data))),
    )


def _number(text: str | None, otherwise: float) -> float:
    try:
        number = float(text or otherwise)
    except ValueError:
        return otherwise
    return number if math.isfinite(number) else otherwise
