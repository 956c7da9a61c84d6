"""What an executor has to tell the worker: outcomes and output since the last flush, in as few frames as there can be."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NoReturn

import msgspec

from ...decide import REJECTED
from ..frames import MAX_FRAME, Answers, Log, Outcome, encode, pack
from ..output import Output

LINGER_NS = 10_000_000  # an outcome never waits longer than this behind a call that takes its time
FULL = 4 << 20  # bytes of outcomes that are sent without waiting for more, and
MANY = 250  # calls that succeeded: the worker makes room for new ones
MAX_SENT = MAX_FRAME // 4  # bytes of one call's outputs


def cut_off() -> NoReturn:
    """The worker is gone, or user code has closed the socket. Ends at once: the page still says whose call it happened in."""
    with suppress(OSError):
        os.write(2, b"the socket to the worker is closed: by the worker's end, or by a function that closes what is not its own\n")
    os._exit(70)


class Outbox:
    """ok: calls that succeeded and send nothing. others: other outcomes, packed, so of known size. Their frame never exceeds MAX_FRAME."""

    __slots__ = ("_output", "_size", "ok", "others")

    def __init__(self, output: Output) -> None:
        self._output = output
        self.ok: list[int] = []
        self.others: list[msgspec.Raw] = []
        self._size = 0

    @property
    def full(self) -> bool:
        return self._size > FULL or len(self.ok) > MANY

    def other(self, outcome: Outcome) -> None:
        size = sum([len(data) for _, _, data in outcome.outputs if data])
        if size <= MAX_SENT:
            packed = pack(outcome)
            size = len(packed)
        if size > MAX_SENT:
            reason = f"its outputs have {size:,} bytes; the limit of one call is {MAX_SENT:,}"
            packed = pack(Outcome(outcome.call, REJECTED, reason, "", None, []))
        self.others.append(msgspec.Raw(packed))
        self._size += len(packed)

    def take(self) -> bytearray:
        """Everything so far, as frames; output goes before the outcome of the call that printed it."""
        raw = bytearray()
        if lines := self._output.take():
            raw += encode(Log(lines))
        if self.ok or self.others:
            raw += encode(Answers(self.ok, self.others), self._size)
            self.ok, self.others, self._size = [], [], 0
        return raw
