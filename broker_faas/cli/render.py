"""What a person reads, and what a program reads: tables, numbers, ages, times, JSON, progress. No I/O but printing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click

from .exit import USAGE, Failed

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="For a person, or for a program."
)


SHORTEST = 12  # characters that a column of texts keeps


class Column(NamedTuple):
    """key: of the row. text: how its value is written; numbers go to the right."""

    title: str
    key: str
    text: Callable[[Any], str] = str
    right: bool = False


def show(rows: Sequence[dict[str, Any]], columns: Sequence[Column], output: str, empty: str) -> None:
    """A table, or one JSON document: the list of rows. empty: what a person is told instead of an empty table."""
    if output == "json":
        click.echo(json.dumps(list(rows), indent=2, ensure_ascii=False, default=str))
    elif rows:
        click.echo("\n".join(table(rows, columns, width())))
    else:
        click.echo(empty, err=True)


def table(rows: Iterable[dict[str, Any]], columns: Sequence[Column], width: int | None = None) -> list[str]:
    """Aligned lines, two spaces between columns. Within `width` the longest texts are cut; if that is not enough, every row is a
    block with a line a column: no number is left out."""
    cells = [[column.title for column in columns]]
    cells += [["-" if row.get(column.key) is None else clean(column.text(row[column.key])) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width if width else 0
    while excess > 0:
        texts = ((w, i) for i, (w, column) in enumerate(zip(widths, columns, strict=True)) if not column.right)
        longest, i = max(texts, default=(0, 0))
        if longest <= SHORTEST:
            return _blocks(cells)
        widths[i] -= 1
        excess -= 1
    lines = []
    for line in cells:
        short = [_cut(cell, w) for cell, w in zip(line, widths, strict=True)]
        padded = [cell.rjust(w) if column.right else cell.ljust(w) for cell, w, column in zip(short, widths, columns, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _blocks(cells: list[list[str]]) -> list[str]:
    titles, *rows = cells
    room = max(map(len, titles))
    lines = []
    for row in rows:
        lines += [f"{title.ljust(room)}  {cell}".rstrip() for title, cell in zip(titles, row, strict=True)]
        lines.append("")
    return lines[:-1]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def width() -> int | None:
    """Columns of the terminal; None in a pipe, where nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def clean(text: str) -> str:
    """Nothing that an event brought may steer the terminal or break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: float) -> str:
    return f"{value:,.0f}"


def count(n: int, what: str) -> str:
    """'1 event', '1,707 events'."""
    return f"{number(n)} {what}{'' if n == 1 else 's'}"


def size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(seconds: float) -> str:
    """'12 ms', '3.2 s', '4 min', '5 h', '2 d'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, name in ((10, 1, "s"), (120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}" if limit == 10 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def age(at: float) -> str:
    """How long ago unix time `at` was."""
    seconds = time.time() - at
    return f"{duration(seconds)} ago" if seconds >= 1 else "just now"


def moment(at: float) -> str:
    """Unix time as local time with its offset."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")


def colour(text: str, code: str, stream: Any = None) -> str:
    """With an ANSI colour if `stream` (stdout) is a terminal and NO_COLOR is not set."""
    stream = stream or sys.stdout
    return f"\x1b[{code}m{text}\x1b[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text


RED, GREEN, YELLOW, BLUE, GREY = "31", "32", "33", "36", "90"


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes`. Raises Failed if the answer is no, or there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed(f"{question} There is nobody to ask: say --yes.", USAGE)
    # asyncio's own handler would only cancel the task that is waiting here, after the answer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        agreed = click.confirm(question)
    finally:
        signal.signal(signal.SIGINT, handler)
    if not agreed:
        raise Failed("nothing was changed.")


class Progress:
    """How far long work is, on stderr: a bar on a terminal, a plain line every 5 s in a pipe. Quiet for work of under a second.

    total: None if unknown.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._tty = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = self._started + (0.5 if self._tty else 5.0)
        self._drawn = False

    def add(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.1 if self._tty else 5.0)
        of = f" of {number(self.total)}" if self.total else ""
        text = f"{number(self.done)}{of} {self.what}, {number(self.done / (now - self._started))}/s"
        if not self._tty:
            return self._print(text + "\n")
        filled = int(24 * self.done / self.total) if self.total else 0
        self._print("\r\x1b[K" + (f"[{'#' * filled}{'.' * (24 - filled)}] " if self.total else "") + text)
        self._drawn = True

    def clear(self) -> None:
        """Take the bar away again: what comes next is printed in its place."""
        if self._drawn:
            self._print("\r\x1b[K")
            self._drawn = False

    def _print(self, text: str) -> None:
        with suppress(BrokenPipeError):  # nobody looks any more, and the work goes on
            sys.stderr.write(text)
            sys.stderr.flush()
