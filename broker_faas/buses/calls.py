"""What waits to be published: records, and the calls of publish() that they belong to."""

from __future__ import annotations

import asyncio

import msgspec

from ..bus import Record
from ..errors import FaasError


class Call:
    """One publish() to one stream: its outcome is its own, whatever happens to the others in its group. deadline: loop time."""

    __slots__ = ("deadline", "duplicates", "left", "outcome")

    def __init__(self, count: int, deadline: float) -> None:
        self.deadline = deadline
        self.left = count
        self.duplicates = 0
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def stored(self, duplicate: bool) -> None:
        self.left -= 1
        self.duplicates += duplicate
        if not self.left and not self.outcome.done():
            self.outcome.set_result(self.duplicates)

    def failed(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def leave(self) -> None:
        """Nobody waits for the outcome any more: what is not sent yet never will be."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()  # seen


class Item(msgspec.Struct, gc=False, eq=False):
    """A record on its way, and the calls it belongs to: the first, and those that brought the same id again.

    resent: an earlier try got no answer, and a "duplicate" now means that one was stored.
    """

    record: Record
    size: int
    calls: list[Call]
    resent: bool = False

    @property
    def wanted(self) -> bool:
        """Neither stored nor refused yet, and somebody waits for it."""
        for call in self.calls:  # noqa: SIM110 - any() takes three times as long
            if not call.outcome.done():
                return True
        return False

    def stored(self, duplicate: bool) -> None:
        calls, self.calls = self.calls, []
        calls[0].stored(duplicate and not self.resent)
        for call in calls[1:]:
            call.stored(True)

    def failed(self, error: FaasError) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call.failed(error)


def queued(record: Record, call: Call) -> Item:
    return Item(record, len(record.subject) + len(record.headers) + len(record.data) + 128, [call])
