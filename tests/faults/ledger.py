"""Ledgers: what producers, functions and injected faults wrote down while it happened, outside of the system under test.

Files of lines, appended with one write each, so a line is whole whoever dies; on a mount that no fault reaches. Times are seconds of
time.monotonic(), the same clock in every process. An event's id is `p{producer}-{n}`: n counts that producer's events from 0.

    producers   attempt t id key sha256       before publish() is called
                ack     t id -                it returned
    functions   start   t id key function attempt pid sha256
                end     t id function ok|err
    faults      planned t what                 something will be broken
                begin   t what evidence        it is broken, and how that was seen
                heal    t what
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

# What a function under test does, in the executor that runs it: it cannot import from here.
HANDLER = """
import hashlib, os, time
_ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _write(*fields):
    os.write(_ledger, ("\\n" + "\\t".join(map(str, fields)) + "\\t.\\n").encode())
def _id(event):
    if event.type in ("kafka.record", "rabbitmq.message"):  # of no CloudEvent: its data begin with what the ledger calls it
        return event.data.partition(b" ")[0].decode()
    return event.subject or event.id  # what a function sends on has the id of its cause as subject
def start(event, ctx):
    _write("start", time.monotonic(), _id(event), event.partitionkey or "-", ctx.function, ctx.attempt, os.getpid(),
           hashlib.sha256(event.data).hexdigest())
def end(event, ctx, how="ok"):
    _write("end", time.monotonic(), _id(event), ctx.function, how)
"""


class Attempt(NamedTuple):
    t: float
    id: str
    key: str
    sha: str


class Ack(NamedTuple):
    t: float
    id: str


class Start(NamedTuple):
    t: float
    id: str
    key: str
    function: str
    attempt: int
    pid: int
    sha: str


class End(NamedTuple):
    t: float
    id: str
    function: str
    how: str


class Fault(NamedTuple):
    """kind: planned, begin or heal. evidence: how it was seen that it happened."""

    kind: str
    t: float
    what: str
    evidence: str = ""


class Stored(NamedTuple):
    """An event found on the bus afterwards. sha: of its data. position: at another broker, of the write that it comes from."""

    id: str
    topic: str
    sha: str
    position: str = ""


class Dead(NamedTuple):
    """A dead letter found afterwards. fields: Faas-* headers by name, lower case."""

    id: str
    function: str
    sha: str
    fields: dict[str, str]


class Ledgers(NamedTuple):
    """All of one run, in the order of time. stored, dead: dumped from the bus when all was over."""

    attempts: list[Attempt]
    acks: list[Ack]
    starts: list[Start]
    ends: list[End]
    faults: list[Fault]
    stored: Sequence[Stored] = ()
    dead: Sequence[Dead] = ()


class Ledger:
    """Writes one file."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, kind: str, *fields: object) -> None:
        line = "\t".join([kind, f"{time.monotonic():.6f}", *map(str, fields)]).replace("\n", " ")
        os.write(self._fd, line.encode("utf-8", "replace")[:4000] + b"\n")  # up to 4 KiB one write is one line

    def close(self) -> None:
        os.close(self._fd)


def read(folder: Path) -> Ledgers:
    """What was written so far. A file that is not there is empty."""
    ledgers = Ledgers([], [], [], [], [])
    for name in ("producers", "functions", "faults"):
        file = folder / name
        for line in file.read_text().splitlines() if file.exists() else []:
            kind, *rest = line.split("\t")
            if name == "functions" and rest[-1:] != ["."]:
                continue  # empty, or torn: SIGKILL ends a write between two pages
            t, *fields = rest[:-1] if name == "functions" else rest
            match kind:
                case "attempt":
                    ledgers.attempts.append(Attempt(float(t), *fields))
                case "ack":
                    ledgers.acks.append(Ack(float(t), fields[0]))
                case "start":
                    id, key, function, attempt, pid, digest = fields
                    ledgers.starts.append(Start(float(t), id, key, function, int(attempt), int(pid), digest))
                case "end":
                    ledgers.ends.append(End(float(t), *fields))
                case _:
                    ledgers.faults.append(Fault(kind, float(t), *fields))
    for records in (ledgers.starts, ledgers.ends, ledgers.acks):
        records.sort(key=lambda record: record.t)
    return ledgers


def lately(folder: Path, seconds: float) -> int:
    """Executions that ended in the last `seconds`, as far as the last mebibyte tells."""
    file = folder / "functions"
    if not file.exists():
        return 0
    with open(file, "rb") as lines:
        lines.seek(max(0, os.fstat(lines.fileno()).st_size - (1 << 20)))
        ended = [line.split(b"\t") for line in lines.read().splitlines() if line.startswith(b"end\t") and line.endswith(b"\t.")]
    now = time.monotonic()
    return sum(now - float(t) <= seconds for _, t, *_ in ended)


def foreign_id(data: bytes) -> str:
    """What the ledger calls it, of something that was written as no CloudEvent."""
    return data.partition(b" ")[0].decode()


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def place(id: str) -> tuple[int, int]:
    """(producer, n) of an id."""
    found = re.fullmatch(r"p(\d+)-(\d+)", id)
    if not found:
        raise ValueError(f"{id!r} is no id of a ledger: p{{producer}}-{{n}}")
    return int(found[1]), int(found[2])
