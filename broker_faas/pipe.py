"""What a process with user code writes to fd 1 and 2: C code, subprocesses, an interpreter that dies; what it prints between calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import monotonic

OUTPUT_RATE = 64 << 10  # bytes a second; the rest is read and dropped


class Pipe:
    """Such a process's fd 1 and 2. Always read, so that nobody blocks on it; passed on at OUTPUT_RATE at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Callable[[str], None]) -> None:
        self._loop = loop
        self._emit = emit
        self._fd = -1
        self._second = 0  # of monotonic(), in which `_room` bytes may still pass
        self._room = OUTPUT_RATE
        self._dropped = 0

    def open(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop.add_reader(fd, self._readable)

    def close(self) -> None:
        """Reads what is there, up to a pipe's size."""
        if self._fd >= 0:
            self._readable()
        if self._fd >= 0:
            self._end()
        self._tell_dropped()

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            self._end()
            return
        if (second := int(monotonic())) != self._second:
            self._tell_dropped()
            self._second, self._room = second, OUTPUT_RATE
        passed = chunk[: self._room]
        self._room -= len(passed)
        self._dropped += len(chunk) - len(passed)
        if text := passed.decode("utf-8", "replace").rstrip("\n"):
            self._emit(text)

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._emit(f"[output cut: {self._dropped:,} bytes dropped]")
            self._dropped = 0

    def _end(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
