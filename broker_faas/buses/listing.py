"""Looking at queues and events without touching them: rows of every queue, who hears a topic, what waits, what is stored."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..bus import Delivery, Lag
from ..errors import BusRefused
from ..layout import DEAD, EVENTS, RETRIES, filters
from ..topics import check_pattern, matches
from . import consumers, store
from .connection import Connection
from .consumers import former_names, topics_of
from .reading import read
from .store import Api


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue as it stands on the bus.

    partitions: 0, 16 or 256. dead: dead letters. since: unix time it was made; active: of its last delivery or settlement, None
    if never. held: bytes that its unsettled events keep from being freed (their number times the mean size in their stream).
    former: names it had before renames; their retries and dead letters are counted here.
    """

    name: str
    topics: tuple[str, ...]
    partitions: int
    lag: Lag
    dead: int
    since: float
    active: float | None
    held: int
    former: tuple[str, ...] = ()


async def list_queues(bus: Api, project: str | None = None) -> list[QueueRow]:
    """By name; of one project, or all."""
    listed = {EVENTS: await consumers.listing(bus, EVENTS), RETRIES: await consumers.listing(bus, RETRIES)}
    scheduled = Counter(subject.split(".")[1] for subject in await store.subjects(bus, RETRIES, "at.>"))
    dead = {subject[5:]: count for subject, count in (await store.subjects(bus, DEAD, "dead.>")).items()}
    sizes = {stream: _mean_size((await store.info(bus, stream))["state"]) for stream in listed}
    names = sorted({consumers.queue_of(one) for infos in listed.values() for one in infos})
    rows = []
    for name in names:
        if project is not None and not name.startswith(f"{project}--"):
            continue
        parts = {stream: [one for one in infos if consumers.queue_of(one) == name] for stream, infos in listed.items()}
        rows.append(_row(name, parts, scheduled, dead, sizes))
    return rows


def _row(
    name: str,
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    scheduled: Mapping[str, int],
    dead: Mapping[str, int],
    sizes: Mapping[str, float],
) -> QueueRow:
    everything = [one for infos in parts.values() for one in infos]
    first = (parts[EVENTS] or everything)[0]
    former = tuple(former_names(name, parts[RETRIES]))
    active = [one[part]["last_active"] for one in everything for part in ("delivered", "ack_floor") if one[part].get("last_active")]
    waiting, in_progress = consumers.lag_of(everything)
    return QueueRow(
        name=name,
        topics=topics_of(first),
        partitions=int((first["config"].get("metadata") or {}).get("faas.partitions", 0)),
        lag=Lag(waiting, in_progress, sum(scheduled.get(one, 0) for one in (name, *former))),
        dead=sum(dead.get(one, 0) for one in (name, *former)),
        since=min(store.seconds(one["created"]) for one in everything),
        active=max(map(store.seconds, active), default=None),
        held=round(sum(sum(consumers.lag_of(infos)) * sizes[stream] for stream, infos in parts.items())),
        former=former,
    )


def _mean_size(state: Mapping[str, Any]) -> float:
    return state["bytes"] / state["messages"] if state["messages"] else 0.0


async def lags(bus: Api, project: str | None = None) -> dict[str, Lag]:
    return {row.name: row.lag for row in await list_queues(bus, project)}


async def hears(bus: Api, topic: str) -> list[str]:
    """Names of the queues that an event published to `topic` reaches."""
    return listeners(topic, await consumers.listing(bus, EVENTS))


def listeners(topic: str, infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of CONSUMER.INFO answers: the queues that hear `topic`, by name. A consumer without our metadata is none of ours."""
    return sorted({consumers.queue_of(one) for one in infos if any(matches(pattern, topic) for pattern in topics_of(one))})


class Peeked(NamedTuple):
    """delivered: handed out to a worker before (in progress, or to be handed out again); else it waits for its first time."""

    delivery: Delivery
    delivered: bool


async def peek(bus: Api, queue: str, n: int = 10) -> list[Peeked]:
    """The next n unsettled events of a queue, oldest first, retries and replays behind them; nothing is consumed.

    What was settled out of order behind an event in progress is shown, too: the bus does not tell it apart.
    Raises BusRefused (10014) if there is no such queue.
    """
    seen: list[Peeked] = []
    known = False
    for stream in (EVENTS, RETRIES):
        infos = [one for one in await consumers.listing(bus, stream) if consumers.queue_of(one) == queue]
        known = known or bool(infos)
        seen += await _next(bus, stream, infos, n - len(seen))
    if not known:
        raise BusRefused(f"there is no queue {queue} on the bus; `faas functions` lists them", consumers.NO_CONSUMER)
    return seen


async def _next(bus: Api, stream: str, infos: Sequence[Mapping[str, Any]], n: int) -> list[Peeked]:
    """Merge what each filter of each consumer finds next, by sequence."""
    heads: list[tuple[int, str, int, Delivery]] = []

    async def advance(subject: str, seq: int, delivered_to: int) -> None:
        if (found := await store.stored(bus, stream, seq=seq, next_by_subj=subject)) is not None:
            heapq.heappush(heads, (found.seq, subject, delivered_to, found))

    starts = [(one["ack_floor"]["stream_seq"] + 1, one["delivered"]["stream_seq"], consumers.filters_of(one)) for one in infos]
    await store.together(advance(subject, seq, delivered_to) for seq, delivered_to, subjects in starts for subject in subjects)
    seen: list[Peeked] = []
    while heads and len(seen) < n:
        seq, subject, delivered_to, found = heapq.heappop(heads)
        seen.append(Peeked(found, seq <= delivered_to))
        await advance(subject, seq + 1, delivered_to)
    return seen


def events(connection: Connection, topic: str = ">", *, since: float | None = None, follow: bool = False) -> AsyncIterator[Delivery]:
    """Events that are stored, oldest first; of one topic or pattern, stored at or after unix time `since`. follow: and those that come.

    Settled events are there until the reaper frees them.
    """
    return read(connection, EVENTS, [filters(check_pattern(topic))], since=since, follow=follow)
