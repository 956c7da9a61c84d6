"""Every call leaves a line in data/journal.tsv, so that demo.py can count what ran, in which order, and how soon."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

from broker_faas import Context

# function, what, attempt, ns (CLOCK_MONOTONIC: the same clock in every process), when published (ns), sequence, key, source, id


def note(ctx: Context, what: str = "entered") -> None:
    """One line, in one write to a file opened with O_APPEND: lines of several processes do not mix."""
    event = ctx.event
    published, sequence = event.get("published", "-"), event.get("sequence", "-")
    fields = (ctx.function, what, ctx.attempt, time.monotonic_ns(), published, sequence, event.partitionkey or "-", event.source, event.id)
    os.write(_journal(os.environ["DATA"]), ("\t".join(map(str, fields)) + "\n").encode())


@cache
def _journal(folder: str) -> int:
    """Opened at the first call, which is after the fork."""
    Path(folder).mkdir(exist_ok=True)
    return os.open(Path(folder, "journal.tsv"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
