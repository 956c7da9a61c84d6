"""decoder_parts/frames.py: what goes between a connector and its decoder's process."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.connectors.decoder_parts import frames
from broker_faas.connectors.decoder_parts.frames import Decoded, Kind
from broker_faas.errors import ProtocolError

RECORDS = st.lists(st.tuples(st.binary(max_size=20), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)))


def body(frame: bytes) -> bytes:
    assert frames.length(frame[:4]) == len(frame) - 4
    return frame[4:]


@given(RECORDS)
def test_a_batch_comes_out_as_it_went_in(records: list[tuple[bytes, dict[str, str]]]) -> None:
    read = frames.read_batch(body(frames.frame(records)))

    assert [(data, {_told(name): _told(value) for name, value in headers.items()}) for data, headers in records] == read


def _told(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("kind", Kind)
def test_answers_come_out_as_they_went_in(kind: Kind) -> None:
    answers = [Decoded(kind, b"\x00\xff", "why"), Decoded(Kind.JSON, b"{}", "")]

    assert frames.read_answers(body(frames.frame(answers))) == answers


@given(st.binary())
def test_whatever_else_a_child_writes_is_an_error_of_its_own(written: bytes) -> None:
    for read in (frames.read_answers, frames.read_text):
        with suppress(ProtocolError):  # and any other one fails
            read(written)
    if int.from_bytes(written[:4], "big") > frames.MAX_FRAME:
        with pytest.raises(ProtocolError, match="the limit is"):
            frames.length(written[:4])


@given(st.lists(st.integers(0, 3 << 20), max_size=20))
def test_a_frame_has_a_bound_unless_one_record_is_larger(sizes: list[int]) -> None:
    records = [(bytes(size), {"n": str(n)}) for n, size in enumerate(sizes)]
    batches = [list(batch) for batch in frames.batches(records)]

    assert [record for batch in batches for record in batch] == records
    assert all(len(batch) == 1 or sum(len(data) for data, _ in batch) <= frames.BYTES for batch in batches)
    assert all(0 < len(batch) <= frames.BATCH for batch in batches)


def test_a_frame_holds_no_more_than_so_many_records() -> None:
    assert [500, 500, 1] == [len(batch) for batch in frames.batches([(b"", {})] * 1001)]
