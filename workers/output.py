"""What user code prints and logs: lines tagged with the call that is running, or, outside of a call, plain output."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, TextIO

MAX_OUTPUT = 64 << 10  # characters of one call; the rest is dropped with a mark
MAX_PENDING = 256 << 10  # characters kept before they are sent at once


class Slot:
    """A place for one call at a time. call: its id; 0 between calls. What it prints is counted and cut here."""

    __slots__ = ("call", "index", "partial", "printed", "stream")

    def __init__(self, index: int) -> None:
        self.index = index
        self.call = 0
        self.printed = 0
        self.partial = ""  # a line that has no end yet, and its stream
        self.stream = ""


# The slot whose call is running here: tasks made by a handler inherit it, and so does asyncio.to_thread.
current: ContextVar[Slot | None] = ContextVar("broker_faas.workers.slot", default=None)


class Output:
    """lines: (call, stream, text) not sent yet. soon: asks for them to be sent soon. now: sends them; both set by the executor."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, str]] = []
        self.soon: Callable[[], None] = _nothing
        self.now: Callable[[], None] = _nothing
        self._pending = 0
        self._thread = get_ident()

    def install(self) -> None:
        """Replaces sys.stdout and sys.stderr; until a call runs they pass everything through."""
        sys.stdout = _Stream(self, "stdout", sys.stdout)
        sys.stderr = _Stream(self, "stderr", sys.stderr)

    def install_logging(self) -> None:
        """Records of level INFO and above come along, unless the user's modules set up logging themselves."""
        root = logging.getLogger()
        if not root.handlers:
            root.addHandler(_Handler(self))
            root.setLevel(logging.INFO)

    def take(self) -> list[tuple[int, str, str]]:
        lines, self.lines, self._pending = self.lines, [], 0
        return lines

    def write(self, slot: Slot, stream: str, text: str) -> None:
        """Whole lines go out; what has no newline yet waits for it, or for the end of the call."""
        room = MAX_OUTPUT - slot.printed
        if room < 0:
            return
        slot.printed += len(text)
        if len(text) > room:
            text = f"{text[:room]}\n[output cut: more than {MAX_OUTPUT:,} characters]\n"
        if slot.partial and slot.stream != stream:
            self.end(slot)
        whole, newline, rest = text.rpartition("\n")
        if newline:
            self.add(slot.call, stream, slot.partial + whole)
            slot.partial = rest
        else:
            slot.partial += text
        slot.stream = stream

    def end(self, slot: Slot) -> None:
        """The line without an end is one now."""
        self.add(slot.call, slot.stream, slot.partial)
        slot.partial = ""

    def add(self, call: int, stream: str, text: str) -> None:
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # lone surrogates have no encoding
        self.lines.append((call, stream, text))
        self._pending += len(text)
        if self._pending > MAX_PENDING and get_ident() == self._thread:
            self.now()
        else:
            self.soon()


class _Stream(io.TextIOBase):
    """sys.stdout or sys.stderr. `buffer` and `fileno()` are the real ones: what goes there is not tagged."""

    def __init__(self, output: Output, name: str, real: TextIO) -> None:
        self._output = output
        self._name = name
        self._real = real
        if isinstance(real, io.TextIOWrapper):
            real.reconfigure(errors="backslashreplace")

    def write(self, text: str, /) -> int:
        slot = current.get()
        if slot is None or not slot.call:
            self._real.write(text)
            if "\n" in text:
                self._real.flush()
        else:
            self._output.write(slot, self._name, text)
        return len(text)

    def flush(self) -> None:
        self._real.flush()

    def fileno(self) -> int:
        return self._real.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> Any:
        return self._real.buffer


class _Handler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{record.name}: {self.format(record)}"
        except Exception:
            return self.handleError(record)
        slot = current.get()
        if slot is None or not slot.call:
            print(record.levelname, text, file=sys.stderr)
        elif slot.printed <= MAX_OUTPUT:
            self._output.write(slot, record.levelname.lower(), text + "\n")
        return None


def _nothing() -> None:
    pass
