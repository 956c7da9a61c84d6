"""The shared page: which calls an executor is in, readable by the worker even after the executor was killed."""

from __future__ import annotations

import mmap
import os

from .frames import SLOT, SLOTS


class Page:
    """The worker's view. The executor writes: `started` first, then the call's id; 0 instead of the id when it ended."""

    def __init__(self, used: int) -> None:
        """used: slots that the executor may mark; the rest is not looked at. Keep `fd` until the executor has it, then close it."""
        self.fd = os.memfd_create("faas-page")
        try:
            os.ftruncate(self.fd, SLOTS * SLOT)
            self._map = mmap.mmap(self.fd, SLOTS * SLOT)
        except OSError:  # e.g. no file descriptor left: a map keeps one of its own
            os.close(self.fd)
            raise
        self._cells = memoryview(self._map).cast("Q")[: 2 * used]

    def close(self) -> None:
        """From now on nothing is running. Not left to the garbage collector: the map keeps a file descriptor of its own."""
        self._cells = memoryview(b"").cast("Q")
        self._map.close()

    def running(self) -> dict[int, float]:
        """call id → when it started, in seconds of time.monotonic()."""
        cells = self._cells.tolist()
        return {cells[i]: cells[i + 1] / 1e9 for i in range(0, len(cells), 2) if cells[i]}


def marks(fd: int) -> memoryview:
    """The executor's view: cell 2·slot is the call's id, cell 2·slot + 1 when it started. Closes fd."""
    view = memoryview(mmap.mmap(fd, SLOTS * SLOT)).cast("Q")
    os.close(fd)
    return view
