"""What was sent when, entered when, and how often: one file that every process of a round maps. Standard library only.

17 bytes an event: u64 sent, u64 entered (CLOCK_MONOTONIC, ns, the same clock in all processes of a machine), u8 times entered.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from time import monotonic_ns

BYTES = 17
PATH = "BENCH_MARKS"  # the environment variable that names the file


class Marks:
    def __init__(self, path: Path | str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.total = len(self._map) // BYTES
        view = memoryview(self._map)
        self.sent = view[: 8 * self.total].cast("Q")
        self.entered = view[8 * self.total : 16 * self.total].cast("Q")
        self._counts = view[16 * self.total :]

    def numbers(self) -> range:
        """The events that this process is to publish: all, or those that BENCH_NUMBERS says, like 0-1."""
        first, _, end = os.environ.get("BENCH_NUMBERS", f"0-{self.total}").partition("-")
        return range(int(first), int(end))

    def enter(self, number: int) -> None:
        """Every contender's handler calls this, and nothing else: 0.25 µs."""
        self.entered[number] = monotonic_ns()
        self._counts[number] = (self._counts[number] + 1) & 255

    def send(self, number: int) -> None:
        self.sent[number] = monotonic_ns()

    def done(self) -> int:
        return self.total - bytes(self._counts).count(0)

    def lost(self) -> int:
        return bytes(self._counts).count(0)

    def repeated(self) -> int:
        """How many ran more than once."""
        counts = bytes(self._counts)
        return self.total - counts.count(0) - counts.count(1)

    def seconds(self) -> float:
        """From the first entry to the last."""
        entered = [at for at in self.entered.tolist() if at]
        return (max(entered) - min(entered)) / 1e9 if entered else 0.0

    def latencies(self, first: int) -> list[float]:
        """Seconds from send to entry, sorted, of all events from number `first` on."""
        pairs = zip(self.sent[first:].tolist(), self.entered[first:].tolist(), strict=True)
        return sorted((entered - sent) / 1e9 for sent, entered in pairs if entered)


def make(path: Path, total: int) -> Marks:
    with open(path, "wb") as file:
        file.truncate(BYTES * total)
    return Marks(path)


def here() -> Marks:
    """Of the round that this process is part of."""
    return Marks(os.environ[PATH])


def payload(number: int, size: int = 200) -> dict[str, object]:
    """An event's data: JSON of `size` bytes."""
    data: dict[str, object] = {"number": number, "customer": "c-4711", "items": ["apple", "plum"], "total": 12.5, "note": ""}
    data["note"] = "x" * max(0, size - 79 - len(str(number)))
    return data
