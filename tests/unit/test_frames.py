"""Frames: whatever way the bytes are cut, and whatever they are."""

from __future__ import annotations

import socket
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_faas.errors import ProtocolError
from broker_faas.intake import KEPT, ROOM
from broker_faas.workers.frames import (
    FRAME,
    LARGE,
    MAX_FRAME,
    About,
    Answers,
    Done,
    Drain,
    Failed,
    Inbox,
    Log,
    Outcome,
    Ready,
    Run,
    Splitter,
    ToWorker,
    decode_for_executor,
    decode_for_worker,
    encode,
    pack,
    run_frames,
)

OUTCOME = Outcome(7, 2, "later", "", 1.5, [("a.b", {"id": "1"}, b"x"), ("a.b", {"id": "2"}, None)])


@pytest.mark.parametrize("frame", [Ready(About(7, ["f"])), Done([1, 2], [OUTCOME]), Log([(1, "stdout", "é")]), Failed("why", "where")])
def test_what_an_executor_encodes_the_worker_decodes(frame: ToWorker) -> None:
    assert decode_for_worker(bytes(encode(frame))[4:]) == frame


@pytest.mark.parametrize("frame", [Run([(1, 0, "t", 1, b"h", b"d")]), Drain()])
def test_what_the_worker_encodes_an_executor_decodes(frame: Run | Drain) -> None:
    assert decode_for_executor(bytes(encode(frame))[4:]) == frame


@given(st.lists(st.sampled_from([0, 1, 300, LARGE - 1, LARGE, FRAME, 1 << 20]), max_size=12))
@settings(max_examples=25, deadline=None)
def test_calls_come_in_their_order_in_frames_that_are_no_larger_than_they_need_to_be(sizes: list[int]) -> None:
    calls = [(n, 0, "t" * (n + 1), 1, b"h" * n, bytes([n]) * size) for n, size in enumerate(sizes)]
    pieces = run_frames(calls)
    frames = [decode_for_executor(body) for body in Splitter().feed(b"".join(pieces))]

    assert all(isinstance(frame, Run) for frame in frames)
    assert [call for frame in frames if isinstance(frame, Run) for call in frame.calls] == calls
    assert all(any(piece is call[5] for piece in pieces) for call in calls if len(call[5]) >= LARGE)  # not copied
    assert all(len(piece) < FRAME + 2 * LARGE for piece in pieces if not any(piece is call[5] for call in calls))


def test_the_wire_is_an_array_that_begins_with_the_kind() -> None:
    """Bytes as the reference page has them."""
    assert bytes(encode(Done([1], []))) == b"\x00\x00\x00\x09\x93\xa4done\x91\x01\x90"
    assert bytes(encode(Drain())) == b"\x00\x00\x00\x07\x91\xa5drain"


def test_outcomes_that_are_packed_one_by_one_lie_as_those_of_one_frame() -> None:
    packed = msgspec.Raw(pack(OUTCOME))

    assert encode(Answers([1], [packed, packed])) == encode(Done([1], [OUTCOME, OUTCOME]))


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 11))
def test_frames_come_out_whole_however_the_stream_is_cut(bodies: list[bytes], width: int) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    splitter = Splitter()
    found = [body for i in range(0, len(stream), width) for body in splitter.feed(stream[i : i + width])]

    assert found == bodies


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(ProtocolError, match="announces 33,554,433 bytes; the limit is 33,554,432"):
        Splitter().feed((MAX_FRAME + 1).to_bytes(4, "big"))


@given(st.lists(st.tuples(st.sampled_from([0, 1, 40, ROOM - 4, ROOM, 3 * ROOM, KEPT + 1]), st.integers(0, 255)), max_size=4), st.data())
@settings(max_examples=25, deadline=None)
def test_an_inbox_reads_frames_of_any_size_however_the_stream_is_cut(frames: list[tuple[int, int]], data: st.DataObject) -> None:
    bodies = [bytes([fill]) * size for size, fill in frames]
    stream = memoryview(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        inbox, found = Inbox(), []
        while stream:
            width = data.draw(st.sampled_from([1, 3, 5, 1000, ROOM])) if len(stream) < 100 else ROOM
            with suppress(BlockingIOError):  # what was sent before is read first
                stream = stream[theirs.send(stream[:width]) :]
            found += [bytes(body) for body in inbox.receive(ours) or []]
        theirs.close()
        while (more := inbox.receive(ours)) is not None:
            found += [bytes(body) for body in more]

    assert found == bodies


def test_an_inbox_refuses_a_length_beyond_the_limit_before_its_bytes_come() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send((MAX_FRAME + 1).to_bytes(4, "big"))
        with pytest.raises(ProtocolError, match="announces 33,554,433 bytes"):
            Inbox().receive(ours)


def test_a_frame_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="the limit is 33,554,432"):
        encode(Run([(1, 0, "t", 1, b"", bytes(MAX_FRAME))]))
    with pytest.raises(ProtocolError, match="the limit is 33,554,432"):
        run_frames([(1, 0, "t", 1, b"", bytes(MAX_FRAME))])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\xa5bogus",
        b"\x93\xa4done\x91\xa1x\x90",  # an id that is text
        b"\x93\xa4done\x91\x01\x91\x91\x01",  # an outcome with one field
        b"\x93\xa4done\xdd\xff\xff\xff\xff\x90",  # 2³² ids announced
        b"\x92\xa3log" + b"\x91" * 100_000,
        b"\x92\xa3log\x91\x93\x01\xa1x\xa1\xff",  # no UTF-8
    ],
)
def test_garbage_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a frame of the executor protocol"):
        decode_for_worker(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_a_protocol_error(body: bytes) -> None:
    try:
        decode_for_worker(body)
    except ProtocolError as error:
        assert "not a frame" in str(error)  # noqa: PT017
