"""Bytes of a stream that were read and not taken yet: what is not whole waits in front of the place where the rest of it will be read."""

from __future__ import annotations

import mmap

ROOM = 1 << 18  # bytes read at once, as long as nothing that is larger is on its way
KEPT = 4 << 20  # bytes of memory that are kept when nothing needs them, at most


class Intake:
    """memory, view: the same bytes, those from start to end are not taken yet.

    Reading is always to the same address, the beginning of a page: it stays in the cache, and the kernel's copy to an address that is no
    multiple of 64 takes twice the time (AMD: 500 µs for 1 MiB of TCP, not 210).
    """

    __slots__ = ("_place", "end", "memory", "start", "view")

    _place: int  # where is read to: after what waits

    def __init__(self) -> None:
        self._make(ROOM)

    def room(self) -> memoryview:
        """Where to read to."""
        return self.view[self._place :]

    def filled(self, size: int) -> None:
        """So many bytes were read."""
        self.end = self._place + size

    def taken(self, start: int) -> None:
        """What lies before `start` is done with. The rest is still there, at another place."""
        view, rest = self.view, self.end - start
        if rest > self._place:
            self._make(2 * self._place)
        elif len(view) > KEPT and rest < ROOM:
            self._make(ROOM)
        self.start, self.end = self._place - rest, self._place
        self.view[self.start : self.end] = view[start : start + rest]

    def _make(self, place: int) -> None:
        """A quarter of it is read at once, if that is more than ROOM: what waits is moved at each read."""
        self.memory = mmap.mmap(-1, place + max(ROOM, place // 4), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.memory)
        self._place = self.start = self.end = place
