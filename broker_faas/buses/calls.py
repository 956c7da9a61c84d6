"""What waits to be published: records, and the calls of publish() that they belong to."""

from __future__ import annotations

import asyncio

import msgspec

from ..bus import Record
from ..errors import FaasError


class Call(msgspec.Struct, gc=False, eq=False):
    """One publish() to one stream: its outcome is its own, whatever happens to the others in its group.

    left: records without an answer. deadline: loop time. last: as in bus.Bus.publish(); such a call is stored whole, or not.
    sequences: gets those of its records, by their ids.
    """

    left: int
    deadline: float
    outcome: asyncio.Future[int]
    duplicates: int = 0
    last: dict[str, int] | None = None
    stored_at: dict[str, int] = {}  # sequences of the new positions
    sequences: dict[str, int] | None = None

    def stored(self, msg_id: str, duplicate: bool, sequence: int) -> None:
        self.left -= 1
        if self.sequences is not None:
            self.sequences[msg_id] = sequence
        self.duplicates += duplicate
        if not self.left and not self.outcome.done():
            if self.last:
                self.last |= self.stored_at
            self.outcome.set_result(self.duplicates)

    def failed(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def leave(self) -> None:
        """Nobody waits for the outcome any more: what is not sent yet never will be."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()  # seen


class Item(msgspec.Struct, gc=False, eq=False):
    """A record on its way, the call it belongs to, and other calls that brought the same id again.

    resent: an earlier try got no answer, and a "duplicate" now means that one was stored.
    """

    record: Record
    size: int
    call: Call
    others: list[Call] | None = None
    resent: bool = False
    ended: bool = False

    @property
    def wanted(self) -> bool:
        """Neither stored nor refused yet, and somebody waits for it."""
        if self.ended:
            return False
        return not self.call.outcome.done() or any(not call.outcome.done() for call in self.others or ())

    def joined(self, other: Item) -> None:
        self.others = [*(self.others or ()), other.call]

    @property
    def position(self) -> bool:
        """One that must follow the last of its subject."""
        return self.call.last is not None and self.record.subject in self.call.last

    def stored(self, duplicate: bool, sequence: int) -> None:
        """sequence: of the record, on the bus."""
        if not self.ended:
            self.ended = True
            call = self.call
            if call.last and self.record.subject in call.last:
                call.stored_at[self.record.subject] = sequence
            call.stored(self.record.msg_id, duplicate and not self.resent, sequence)
            for call in self.others or ():
                call.stored(self.record.msg_id, True, sequence)

    def failed(self, error: FaasError) -> None:
        if not self.ended:
            self.ended = True
            for call in (self.call, *(self.others or ())):
                call.failed(error)


def queued(record: Record, call: Call) -> Item:
    return Item(record, len(record.subject) + len(record.headers) + len(record.data) + 128, call)
