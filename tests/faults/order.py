"""Order per key: what may run when, and the one exception. Part of the checker, and as pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

from .ledger import Ledgers, Start, place


class Frozen(NamedTuple):
    """Executors that stood still, with or without their worker, for longer than its lease; times of ledgers. until: soon after they thawed.

    docs/guarantees.md, "There is one exception": what they were at goes to another worker meanwhile, and both may run.
    """

    pids: frozenset[int]
    begin: float
    until: float


def order(
    function: str,
    run: Ledgers,
    dead: set[str],
    frozen: Sequence[Frozen] = (),
    damaged: frozenset[str] = frozenset(),
    *,
    unheard: bool = False,
) -> Iterable[tuple[str, str]]:
    """No event of a key starts before an earlier one is done or dead, and no two events of a key run at once.

    An event that is done already may be run again: the bus may have lost its settlement. That is a duplicate, not disorder.
    unheard: the bus may have heard a settlement only after it had handed the event out again: a second run may overlap with the next event.
    """
    starts = [start for start in run.starts if start.function == function and start.key != "-"]
    ends = [end for end in run.ends if end.function == function]
    first: dict[str, float] = {}
    keys: dict[str, list[str]] = defaultdict(list)
    for start in starts:
        if start.id not in first:
            first[start.id] = start.t
            keys[start.key].append(start.id)
    over: dict[str, float] = {}  # done, or ran for the last time before it died
    for end in ends:
        if end.how == "ok":
            over.setdefault(end.id, end.t)
        elif end.id in dead:
            over[end.id] = end.t
    wrong: list[str] = []
    for key, ids in keys.items():
        for before, after in pairwise(sorted(ids, key=lambda id: place(id)[1])):
            if before in dead and before not in over:  # killed in every attempt: it has no end of its own
                over[before] = max(start.t for start in starts if start.id == before)
            if before in damaged and before not in over:
                continue  # lost while it ran
            if over.get(before, first[after] + 1) > first[after]:
                wrong.append(f"{after} of {key} began before {before} was over")
    ended = {(end.id, end.t) for end in ends}
    done: dict[str, float] = {}
    for end in ends:
        if end.how == "ok":
            done.setdefault(end.id, end.t)
    rerun = {start for start in starts if done.get(start.id, inf) <= start.t} if unheard else set()
    wrong += _overlap([start for start in starts if start not in rerun and not _excused(start, starts, ended, frozen)], ended)
    if wrong:
        yield "order", f"{function}: {len(wrong)} times: {'; '.join(wrong[:5])}"


def _excused(start: Start, starts: list[Start], ends: set[tuple[str, float]], frozen: Sequence[Frozen]) -> bool:
    """Run by an executor that was frozen, under way between its freeze and its thaw, of an event that another one was given."""
    for pids, begin, until in frozen:
        if start.pid in pids and start.t <= until and not any(id == start.id and start.t <= t < begin for id, t in ends):
            return any(other.id == start.id and other.pid not in pids for other in starts)
    return False


def _overlap(starts: list[Start], ends: set[tuple[str, float]]) -> Iterable[str]:
    """Two executions of one key at once. One that never ended (its executor was killed) is taken to have ended at the next start.

    An end belongs to the last start of its event before it: not to one whose executor was killed earlier.
    """
    by_id: dict[str, list[float]] = defaultdict(list)
    for id, t in sorted(ends, key=lambda end: end[1]):
        by_id[id].append(t)
    begun: dict[str, list[float]] = defaultdict(list)
    for start in starts:
        begun[start.id].append(start.t)
    running: dict[str, tuple[str, float]] = {}  # key → (id, until)
    for start in starts:
        id, until = running.get(start.key, ("", 0.0))
        if id and until > start.t and id != start.id:
            yield f"{start.id} and {id} of {start.key} ran at the same time"
        again = next((t for t in begun[start.id] if t > start.t), inf)
        running[start.key] = start.id, next((t for t in by_id[start.id] if start.t <= t < again), 0.0)
