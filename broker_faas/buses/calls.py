"""What waits to be published: records, and the calls of publish() that they belong to."""

from __future__ import annotations

import asyncio

from ..bus import Record
from ..errors import FaasError


class Call:
    """One publish(): its outcome is its own, whatever happens to the others in its group."""

    __slots__ = ("duplicates", "left", "outcome")

    def __init__(self, count: int) -> None:
        self.left = count
        self.duplicates = 0
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def stored(self, duplicate: bool) -> None:
        self.left -= 1
        self.duplicates += duplicate
        if not self.left and not self.outcome.done():
            self.outcome.set_result(self.duplicates)

    def failed(self, error: FaasError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def leave(self) -> None:
        """Nobody waits for the outcome any more: what is not sent yet never will be."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()  # seen


class Item:
    """A record on its way, and the calls it belongs to: the first, and those that brought the same id again."""

    __slots__ = ("calls", "record", "resent", "size")

    def __init__(self, record: Record, call: Call) -> None:
        self.record = record
        self.size = len(record.subject) + len(record.headers) + len(record.data) + 128
        self.calls = [call]
        self.resent = False  # an earlier try got no answer: a "duplicate" now means that one was stored

    @property
    def wanted(self) -> bool:
        """Neither stored nor refused yet, and somebody waits for it."""
        for call in self.calls:  # noqa: SIM110 - any() takes three times as long
            if not call.outcome.done():
                return True
        return False

    def stored(self, duplicate: bool) -> None:
        (first, *others), self.calls = self.calls, []
        first.stored(duplicate and not self.resent)
        for call in others:
            call.stored(True)

    def failed(self, error: FaasError) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call.failed(error)
