"""Frames between a worker and its executors: 4 bytes of length, then a msgpack array. Pure.

docs/reference/executor-protocol.md is the description; tests/unit/test_executor_protocol_doc.py holds it to this file.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ..errors import ProtocolError
from ..function import Spec
from ..intake import KEPT, ROOM

VERSION = 1
MAX_FRAME = 32 << 20  # bytes of one frame's body
FRAME = 1 << 18  # bytes of calls in one frame, about: an executor is at these while those of the next one are on their way
LARGE = 1 << 15  # bytes of data from which on a call has a frame of its own, into which its data is not copied
SLOT = 16  # bytes of one slot of the shared page: u64 call id, u64 started (CLOCK_MONOTONIC, ns), in the machine's byte order
SLOTS = 1024  # slots of the page: the most calls that one executor overlaps

CALL = 300  # bytes of a call in a frame beside its headers and data, at most; a longer topic makes it grow
RunCall = tuple[int, int, str, int, bytes, bytes]
"""call id, function (its place in hello's `functions`), topic, attempt (from 1), headers of the record, data."""


class Outcome(NamedTuple):
    """How one call ended. status: a code of decide.py; reason: one line; detail: e.g. a traceback.

    after: seconds until the next attempt, if the function named them. outputs: (topic, attributes, data) each.
    """

    call: int
    status: int
    reason: str
    detail: str
    after: float | None
    outputs: list[tuple[str, dict[str, str], bytes | None]]


# --- worker → executor --------------------------------------------------------------------------------------


class Setup(msgspec.Struct, frozen=True):
    """env: variables of this executor alone. slots: how many slots of the page it may use. command: a foreign executor's argv."""

    version: int
    project: str
    functions: list[Spec]
    env: dict[str, str]
    slots: int
    sync: bool
    command: list[str]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    setup: Setup


class Run(msgspec.Struct, array_like=True, tag="run", gc=False):
    calls: list[RunCall]


class Drain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """Answer what you hold, then exit with status 0."""


# --- executor → worker --------------------------------------------------------------------------------------


class About(msgspec.Struct, frozen=True):
    pid: int
    functions: list[str]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    about: About


class Done(msgspec.Struct, array_like=True, tag="done", gc=False):
    """ok: calls that succeeded and send nothing. others: every other outcome."""

    ok: list[int]
    others: list[Outcome]


class Answers(msgspec.Struct, array_like=True, tag="done", gc=False):
    """A Done on its way out, with outcomes that are packed already."""

    ok: list[int]
    others: list[msgspec.Raw]


class Log(msgspec.Struct, array_like=True, tag="log", gc=False):
    """(call, stream, text): stream is stdout, stderr or a level (debug … critical); text has no newline at its end."""

    lines: list[tuple[int, str, str]]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The executor cannot work and is about to exit."""

    reason: str
    detail: str


ToExecutor = Hello | Run | Drain
ToWorker = Ready | Done | Log | Failed

_encoder = msgspec.msgpack.Encoder()
_encode_into = _encoder.encode_into
_to_executor: msgspec.msgpack.Decoder[ToExecutor] = msgspec.msgpack.Decoder(ToExecutor)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


def encode(frame: ToExecutor | ToWorker | Answers, room: int = 60) -> bytearray:
    """Length and body. room: bytes that the body may need: growing means copying. ProtocolError if it is larger than MAX_FRAME."""
    raw = bytearray(4 + room)
    _encode_into(frame, raw, 4)
    size = len(raw) - 4
    if size > MAX_FRAME:
        raise _too_large(size)
    raw[:4] = size.to_bytes(4, "big")
    return raw


def pack(outcome: Outcome) -> bytes:
    """An outcome as it lies in Answers."""
    return _encoder.encode(outcome)


def run_frames(calls: Sequence[RunCall]) -> list[bytes | bytearray]:
    """Run frames of these calls, in pieces that are to be written one after the other."""
    pieces: list[bytes | bytearray] = []
    together: list[RunCall] = []
    room = 0
    for call in calls:
        large = len(call[5]) >= LARGE
        if together and (large or room >= FRAME):
            pieces.append(encode(Run(together), room))
            together, room = [], 0
        if large:
            pieces += _apart(call)
        else:
            together.append(call)
            room += CALL + len(call[4]) + len(call[5])
    if together:
        pieces.append(encode(Run(together), room))
    return pieces


def _apart(call: RunCall) -> tuple[bytearray, bytes]:
    """encode(Run([call])) in two pieces: its data comes last, so that it can be written from where it lies."""
    id, function, topic, attempt, headers, data = call
    head = encode(Run([(id, function, topic, attempt, headers, b"")]), CALL + len(headers))
    head[-2:] = b"\xc6" + len(data).to_bytes(4, "big")  # bin 32, instead of one that is empty
    size = len(head) - 4 + len(data)
    if size > MAX_FRAME:
        raise _too_large(size)
    head[:4] = size.to_bytes(4, "big")
    return head, data


def _too_large(size: int) -> ProtocolError:
    return ProtocolError(f"a frame of {size:,} bytes; the limit is {MAX_FRAME:,}")


def decode_for_executor(body: bytes | memoryview) -> ToExecutor:
    try:
        return _to_executor.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors, and so is UnicodeDecodeError
        raise ProtocolError(f"not a frame of the executor protocol: {error}") from None


def decode_for_worker(body: bytes | memoryview) -> ToWorker:
    """ProtocolError for whatever is no frame: executors run user code, which can write anything to the socket."""
    try:
        return _to_worker.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors, and so is UnicodeDecodeError
        raise ProtocolError(f"not a frame of the executor protocol: {error}") from None


class Splitter:
    """Frame bodies out of a byte stream, however it is cut. Holds at most one incomplete frame."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._parts: list[bytes] = []  # of a frame that is not whole
        self._missing = 0  # bytes of it, at least

    def feed(self, chunk: bytes) -> list[memoryview]:
        """The bodies completed by `chunk`: views of it, not copies. ProtocolError as soon as a length is beyond the limit."""
        if self._parts:
            self._parts.append(chunk)
            self._missing -= len(chunk)
            if self._missing > 0:
                return []
            chunk = b"".join(self._parts)
            self._parts = []
        view = memoryview(chunk)
        bodies = []
        start, end = 0, len(chunk)
        while end - start >= 4:
            size = int.from_bytes(view[start : start + 4], "big")
            if size > self._limit:
                raise ProtocolError(f"a frame announces {size:,} bytes; the limit is {self._limit:,}")
            stop = start + 4 + size
            if stop > end:
                self._missing = stop - end
                break
            bodies.append(view[start + 4 : stop])
            start = stop
        else:
            self._missing = 4 - (end - start)
        if start < end:
            self._parts = [chunk[start:]]
        return bodies


class Inbox:
    """Frame bodies out of a socket, for the executor's side: read where they will be decoded, so that a large event is copied once less."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._view = memoryview(bytearray(ROOM))
        self._start = 0  # of what was not returned yet
        self._end = 0

    def receive(self, sock: socket.socket) -> list[memoryview] | None:
        """Reads once: the bodies that are whole now, valid until the next call. None: the other side has closed.

        Raises BlockingIOError, and ProtocolError as soon as a length is beyond the limit.
        """
        self._make_room()
        size = sock.recv_into(self._view[self._end :])
        if not size:
            return None
        self._end += size
        bodies = []
        while (size := self._announced()) and self._start + size <= self._end:
            bodies.append(self._view[self._start + 4 : self._start + size])
            self._start += size
        return bodies

    def _announced(self) -> int:
        """Bytes of the frame that begins at `_start`, its length included; 0: not known yet."""
        if self._end - self._start < 4:
            return 0
        size = int.from_bytes(self._view[self._start : self._start + 4], "big")
        if size > self._limit:
            raise ProtocolError(f"a frame announces {size:,} bytes; the limit is {self._limit:,}")
        return 4 + size

    def _make_room(self) -> None:
        """For the rest of the frame that is not whole, at the front; a buffer that was made for a very large one does not stay."""
        rest = self._view[self._start : self._end]
        wanted = max(ROOM, self._announced())
        if wanted > len(self._view) or len(self._view) > KEPT >= wanted:
            view = memoryview(bytearray(wanted))
            view[: len(rest)] = rest
            self._view = view
        elif self._start:
            self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
