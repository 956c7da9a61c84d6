"""Counting, twice: what the functions' journal says was done, and what a plain count of the file says should have been."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """One line of the journal; times in nanoseconds of CLOCK_MONOTONIC."""

    function: str
    what: str
    attempt: int
    at: int
    published: int
    sequence: int
    key: str
    source: str
    id: str


@dataclass
class Tally:
    """Everything in the journal so far. Events that came twice (after a kill) count once."""

    path: Path
    notes: list[Note] = field(default_factory=list)
    _offset: int = 0
    _seen: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def read(self) -> bool:
        """Reads what is new; whether there was anything."""
        try:
            with open(self.path, "rb") as journal:
                journal.seek(self._offset)
                new = journal.read()
        except FileNotFoundError:
            return False
        new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        for line in new.decode().splitlines():
            function, what, attempt, at, published, sequence, key, source, id = line.split("\t")
            note = Note(function, what, int(attempt), int(at), _whole(published), _whole(sequence), key, source, id)
            self.notes.append(note)
            self._seen[function, source].add(id)
        return bool(new)

    def ran(self, function: str, source: str) -> int:
        """How many events of this source the function has run on."""
        return len(self._seen[function, source])

    def of(self, function: str, source: str) -> list[Note]:
        return [note for note in self.notes if (note.function, note.source, note.what) == (function, source, "entered")]

    def retried(self, function: str, source: str) -> int:
        """Attempts after the first."""
        return len({(note.id, note.attempt) for note in self.of(function, source) if note.attempt > 1})


class Expected(NamedTuple):
    events: int
    alerts: int
    strange: int


def expected(lines: Iterable[str]) -> Expected:
    """From the file alone, with none of the code under test."""
    features = [json.loads(line)["properties"] for line in lines]
    alerts = sum(quake["mag"] is not None and quake["mag"] >= 4.5 for quake in features)
    return Expected(len(features), alerts, sum(quake["type"] != "earthquake" for quake in features))


def disorder(notes: Iterable[Note]) -> list[str]:
    """What breaks the promise of an ordered function: two events of one key at once, or one begun before an earlier one is done.

    An event may come again: the process that ran it was killed, or the server was, and forgot the last acknowledgements. Then those
    events come once more, in their order and one at a time.
    """
    wrong = []
    running: dict[str, int | None] = {}
    latest: Counter[str] = Counter()
    done: set[tuple[str, int]] = set()
    for note in notes:
        inside = running.get(note.key)
        if note.what == "left":
            if inside != note.sequence:
                wrong.append(f"{note.key}: event {note.sequence} ended, but {inside} was running")
            running[note.key] = None
            done.add((note.key, note.sequence))
            continue
        if inside is not None and inside != note.sequence:
            wrong.append(f"{note.key}: event {note.sequence} began while {inside} was running")
        if note.sequence < latest[note.key] and (note.key, note.sequence) not in done:
            wrong.append(f"{note.key}: event {note.sequence} began after {latest[note.key]}")
        running[note.key] = note.sequence
        latest[note.key] = max(latest[note.key], note.sequence)
    return wrong


def quantile(values: list[float], q: float) -> float:
    """The value that a share q of the values does not exceed. There must be one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0
