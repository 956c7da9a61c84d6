"""Frames between a connector and its decoder's process: 4 bytes of length, then msgpack. Pure.

host → child   [[data, headers], …]        a batch; there is one at a time
child → host   text                        once, when it has imported the function: "", or why it cannot be used
               [[kind, data, text], …]     answers, in the batch's order, in one frame or several
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from ...errors import ProtocolError

MAX_FRAME = 64 << 20  # bytes
BATCH = 500  # records of one frame, at most
BYTES = 4 << 20  # of their data, above which another frame begins; one record may be larger
LARGEST = 32 << 20  # bytes of one record: what is larger is refused before it is sent

Given = tuple[bytes, Mapping[str, str]]
"""A record as a decoder gets it: data, and the headers at its source."""


class Kind(IntEnum):
    JSON = 0
    BYTES = 1
    NOTHING = 2  # it returned None: an event without data
    REFUSED = 3  # text: why
    AGAIN = 4  # it raised Retry; text: why


class Decoded(NamedTuple):
    """What became of one record."""

    kind: Kind
    data: bytes
    text: str


_given: msgspec.msgpack.Decoder[list[tuple[bytes, dict[str, str]]]] = msgspec.msgpack.Decoder(list[tuple[bytes, dict[str, str]]])
_decoded: msgspec.msgpack.Decoder[list[Decoded]] = msgspec.msgpack.Decoder(list[Decoded])
_text: msgspec.msgpack.Decoder[str] = msgspec.msgpack.Decoder(str)


def frame(what: Any) -> bytes:
    """Text that has no encoding, which a connector of one's own may bring, is told with backslashes."""
    try:
        body = msgspec.msgpack.encode(what)
    except UnicodeEncodeError:
        body = msgspec.msgpack.encode(_encodable(what))
    return len(body).to_bytes(4, "big") + body


def length(head: bytes) -> int:
    """Of the body behind these 4 bytes. Raises ProtocolError."""
    size = int.from_bytes(head, "big")
    if size > MAX_FRAME:
        raise ProtocolError(f"a frame announces {size:,} bytes; the limit is {MAX_FRAME:,}")
    return size


def read_batch(body: bytes) -> list[tuple[bytes, dict[str, str]]]:
    return _given.decode(body)


def read_text(body: bytes) -> str:
    """Raises ProtocolError, as read_answers(): the child runs user code, which can write anything to the socket."""
    try:
        return _text.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a frame of a decoder: {error}") from None


def read_answers(body: bytes) -> list[Decoded]:
    try:
        return _decoded.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a frame of a decoder: {error}") from None


def batches(records: Sequence[Given]) -> Iterator[Sequence[Given]]:
    """Neighbours that fit into one frame."""
    begin = size = 0
    for n, (data, headers) in enumerate(records):
        own = len(data) + sum([len(name) + len(value) for name, value in headers.items()])
        if n > begin and (n - begin == BATCH or size + own > BYTES):
            yield records[begin:n]
            begin, size = n, 0
        size += own
    if begin < len(records):
        yield records[begin:]


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {_encodable(name): _encodable(one) for name, one in value.items()}
        case list() | tuple():
            return [_encodable(one) for one in value]
    return value
