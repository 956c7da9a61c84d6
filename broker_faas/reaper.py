"""Reaper: frees settled events. Nobody else does; a bus whose events are all settled would fill up and refuse.

One pass is a few requests: all that is older than `keep` and below what any queue has yet to settle goes at once. When
space is short, history is cut further, oldest first, down to the duplicate window; and then a queue that is behind
holds back only what it listens to itself, topic by topic, partition by partition.

Any number of reapers may run: a purge below a sequence is idempotent, and what was settled once stays settled.
A queue that is behind is never robbed: its floor is read after `last_seq`, and nothing at or above it is touched.
One race remains: a queue being made with start="first" while a pass is under way counts from the next pass on. Of events
older than `keep` (short of space: 2 min) that all other queues have settled, it may miss what that pass frees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .buses import consumers, store
from .buses.store import Api
from .errors import BusError, BusRefused
from .layout import DUPLICATE_WINDOW, EVENTS, RETRIES
from .service import pause
from .topics import covers, overlap

log = logging.getLogger(__name__)

SHORT = 0.70  # of the space: history is cut from here on; sources are refused at 0.85
ENOUGH = 0.60  # and until here
STEPS = 4  # in which history is cut: each costs a few requests, and keeps what the others need not have freed
OLDEST_SERVER = (2, 15, 1)  # before, a filtered purge made queues with several filters skip events (nats-server #8571)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did. freed: messages. used: share of the events stream's space afterwards, 0.0 if it has no limit.

    holding: queues whose unsettled events keep this pass from freeing what it should; the lowest first.
    """

    freed: int
    used: float
    holding: tuple[str, ...] = ()

    @property
    def short(self) -> bool:
        return self.used > SHORT


async def run(bus: Api, stop: asyncio.Event, *, keep: float = 86400.0, interval: float = 10.0) -> None:
    """A pass every `interval` seconds, more often while space is short, until `stop`. What the bus refuses is logged and tried again."""
    while not stop.is_set():
        wait = interval
        try:
            done = await reap(bus, keep)
            if done.short:
                wait = interval / 5
                # Nothing younger than the duplicate window is freed: a second copy of it would be stored.
                held_by = done.holding[:5] or (f"what was stored in the last {DUPLICATE_WINDOW:g} s",)
                log.warning("bus is filling up", extra={"used": round(done.used, 2), "held_by": held_by})
        except BusError as error:
            log.warning("no space was freed: %s", error)
        await pause(stop, wait)


async def reap(bus: Api, keep: float = 86400.0, *, now: float | None = None) -> Pass:
    """One pass. keep: seconds that settled events stay readable, while there is space. now: unix time; None: the server's clock."""
    info = await store.info(bus, EVENTS)
    _check_server(info)
    freed = await _reap_retries(bus, now)
    state, window, clock = info["state"], info["config"]["duplicate_window"] / 1e9, now or store.seconds(info["ts"])
    last, used = state["last_seq"], _used(info)
    # Ages come before queues: between asking where these stand and acting there must be nothing that takes long.
    old = await store.first_since(bus, EVENTS, clock - max(keep, window), last)
    recent = await store.first_since(bus, EVENTS, clock - window, last) if used > SHORT else old
    positions = await _positions(bus)
    holding: tuple[str, ...] = ()
    for below in cuts(max(state["first_seq"], old), recent):
        if below <= state["first_seq"] or (below > old and used <= ENOUGH):
            continue
        queues = holds_of(await consumers.listing(bus, EVENTS), last)
        holds = queues + positions
        holding = tuple(dict.fromkeys(hold.queue for hold in sorted(holds, key=lambda hold: hold.floor) if hold.floor < below))
        # crash point: purge-before
        freed += await store.purge(bus, EVENTS, ">", min([below, *(hold.floor for hold in holds)]))
        # A source that was silent for long keeps its position, and nothing else of that age.
        if holding and (used > SHORT or all(hold.floor >= below for hold in queues)):
            subjects = await store.subjects(bus, EVENTS, ">")
            first = (await store.info(bus, EVENTS))["state"]["first_seq"]
            for subject, floor in floors(holds, subjects, below).items():
                if floor > first:
                    freed += await store.purge(bus, EVENTS, subject, floor)
        used = _used(await store.info(bus, EVENTS))
    return Pass(freed, used, holding)


async def _positions(bus: Api) -> list[Hold]:
    """The last position of each partition of a source: what its connector begins behind, however old it is."""
    subjects = await store.subjects(bus, EVENTS, "pos.>")
    last = await store.together(store.stored(bus, EVENTS, last_by_subj=subject) for subject in subjects)
    return [Hold(one.subject, (one.subject,), one.seq) for one in last if one]


async def _reap_retries(bus: Api, now: float | None) -> int:
    """Retries and replays that were settled are of no more use than for duplicates. Schedules (`at.`) leave by themselves."""
    info = await store.info(bus, RETRIES)
    last, clock = info["state"]["last_seq"], now or store.seconds(info["ts"])
    below = await store.first_since(bus, RETRIES, clock - info["config"]["duplicate_window"] / 1e9, last)
    if below <= max(info["state"]["first_seq"], 1):
        return 0
    subjects = await store.subjects(bus, RETRIES, "go.>")
    holds = holds_of(await consumers.listing(bus, RETRIES), last)
    freed = 0
    for subject in subjects:
        heard = [hold.floor for hold in holds if any(covers(filter, subject) for filter in hold.filters)]
        if heard:  # else its queue is about to be made, or its function was taken away: nothing has settled it
            freed += await store.purge(bus, RETRIES, subject, min(below, *heard))
            # crash point: retries-purged
    return freed


def _used(info: Mapping[str, Any]) -> float:
    limit = info["config"].get("max_bytes", -1)
    return info["state"]["bytes"] / limit if limit > 0 else 0.0


def _check_server(info: Mapping[str, Any]) -> None:
    version = (info["config"].get("metadata") or {}).get("_nats.ver", "0")
    numbers = tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())
    if numbers < OLDEST_SERVER:
        raise BusRefused(f"nats-server {version} skips events of some queues when space is freed; run 2.15.1 or newer")


# --- pure ---------------------------------------------------------------------------------------------------


class Hold(NamedTuple):
    """One durable consumer: of which queue, what it hears, and the sequence below which it has settled everything."""

    queue: str
    filters: tuple[str, ...]
    floor: int


def holds_of(infos: Iterable[Mapping[str, Any]], last_seq: int) -> list[Hold]:
    """last_seq: the stream's, read before the consumers."""
    return [Hold(consumers.queue_of(one), consumers.filters_of(one), consumers.unsettled(one, last_seq)) for one in infos]


def cuts(old: int, recent: int, steps: int = STEPS) -> Iterator[int]:
    """Sequences to free below, one after the other until there is enough space: first `old`, in the end `recent`."""
    yield old
    for step in range(1, steps + 1 if recent > old else 1):
        yield old + (recent - old) * step // steps


def floors(holds: Sequence[Hold], subjects: Iterable[str], below: int) -> dict[str, int]:
    """{subject filter: purge below this sequence}, with as few filters as the queues that hold something back allow.

    subjects: what is stored. One filter a topic if its queues hear all of it; else one a first digit of the
    partition; else one a subject. What nobody hears is freed by age alone.
    """
    held = [_Held(pattern.split("."), pattern, hold.floor) for hold in holds if hold.floor < below for pattern in hold.filters]
    if not held:
        return {">": below}
    tails: dict[str, set[tuple[str, str]]] = {}
    for subject in subjects:
        *topic, a, b = subject.split(".") if subject.count(".") > 1 else ("", "", "")
        # A client may store under a literal `*`; as a filter that would reach topics of others. Such a one waits for all.
        if topic[0] and not {"*", ">"} & {*topic, a, b}:
            tails.setdefault(".".join(topic), set()).add((a, b))
    index = _Index(held)
    return {subject: floor for topic in sorted(tails) for subject, floor in _split(topic, "*", "*", tails[topic], index.near(topic), below)}


class _Held(NamedTuple):
    """One filter of a consumer that holds something back."""

    parts: list[str]
    pattern: str
    floor: int


def _split(topic: str, a: str, b: str, tails: set[tuple[str, str]], held: list[_Held], below: int) -> Iterator[tuple[str, int]]:
    """The filters of a topic (`ev.a.b`), or of its part with digits a and b; tails: what is stored there. `*` for any digit."""
    subject = f"{topic}.{a}.{b}"
    parts = subject.split(".")
    held = [one for one in held if overlap(one.parts, parts)]
    if b != "*" or all(covers(one.pattern, subject) for one in held):
        yield subject, min((one.floor for one in held), default=below)
    elif a == "*":
        for digit in sorted({first for first, _ in tails}):
            yield from _split(topic, digit, "*", {tail for tail in tails if tail[0] == digit}, held, below)
    else:
        for _, digit in sorted(tails):
            yield from _split(topic, a, digit, tails, held, below)


class _Index:
    """Filters by the topic they name, so that a thousand topics need not be compared with a thousand queues each."""

    def __init__(self, held: Iterable[_Held]) -> None:
        self._named: dict[str, list[_Held]] = {}
        self._wild: list[_Held] = []
        for one in held:
            topic = one.parts[:-2]
            if one.parts[-1] == ">" or "*" in topic:
                self._wild.append(one)
            else:
                self._named.setdefault(".".join(topic), []).append(one)

    def near(self, topic: str) -> list[_Held]:
        return self._wild + self._named.get(topic, [])
