"""What a deploy would change on the bus: the functions of the code against the queues that exist. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..bus import Queue
from ..topics import covers
from .listing import QueueRow

Kind = Literal["new", "gone", "renamed", "topics", "ordered"]


@dataclass(frozen=True, slots=True)
class Change:
    """refused: a worker with this code will not start, because the change would lose events. says: what follows or what to do."""

    kind: Kind
    queue: str
    says: str
    refused: bool = False


def plan(queues: Iterable[Queue], rows: Iterable[QueueRow], was: Mapping[str, str] | None = None) -> list[Change]:
    """queues: of the code. rows: of the bus, this project's. was: new queue name → the queue's name before (`was="old"`)."""
    was = was or {}
    there = {row.name: row for row in rows}
    wanted = {queue.name: queue for queue in queues}
    changes: list[Change] = []
    inherited = set()
    for name, queue in sorted(wanted.items()):
        row, old = there.get(name), there.get(was.get(name, ""))
        if old and old.name not in wanted:
            inherited.add(old.name)
            changes.append(_renamed(old, queue, row))
            row = row or old
        if row is None:
            changes.append(Change("new", name, f"new: starts at {_start(queue)}"))
        else:
            changes += _compared(row, queue)
    for name, row in sorted(there.items()):
        if name not in wanted and name not in inherited:
            changes.append(Change("gone", name, f"no function serves it any more: {_left(row)}; `faas functions prune` discards it"))
    return changes


def _compared(row: QueueRow, queue: Queue) -> list[Change]:
    left = row.lag.waiting + row.lag.in_progress
    changes = []
    if row.partitions != queue.partitions:
        kinds = {0: "plain", 16: "ordered (16 partitions)", 256: "ordered (256 partitions)"}
        says = f"{kinds[row.partitions]} becomes {kinds[queue.partitions]}" + (f": drain first, {left} events waiting" if left else "")
        changes.append(Change("ordered", queue.name, says, refused=left > 0))
    if set(row.topics) != set(queue.topics):
        dropped = [old for old in row.topics if not any(covers(new, old) for new in queue.topics)]
        says = f"topics {', '.join(row.topics)} become {', '.join(queue.topics)}, with {left} events waiting"
        if dropped and left:
            says += f": those of {', '.join(dropped)} would be lost; drain first"
        changes.append(Change("topics", queue.name, says, refused=bool(dropped and left)))
    return changes


def _renamed(old: QueueRow, queue: Queue, row: QueueRow | None) -> Change:
    if row and old.lag.total:
        says = f"was {old.name}, but both exist: {_left(old)} under the old name. Drain it with the old code, or prune it"
        return Change("renamed", queue.name, says, refused=True)
    return Change("renamed", queue.name, f"was {old.name}: keeps its position, {_left(old)}")


def _left(row: QueueRow) -> str:
    return f"{row.lag.total} events waiting, {row.dead} dead letters"


def _start(queue: Queue) -> str:
    return {"new": "new events", "first": "the oldest event that is kept"}.get(queue.start, queue.start)
