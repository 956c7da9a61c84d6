"""What was read and is not taken is there whole, wherever it lies."""

from __future__ import annotations

from random import Random

import pytest

from broker_faas.intake import KEPT, ROOM, Intake


@pytest.mark.parametrize("read", [1 << 30, ROOM, ROOM // 2 + 1, 1000])
@pytest.mark.parametrize("pieces", [[10, 3 * ROOM, 1], [ROOM, ROOM, 2 * ROOM, ROOM - 1], [KEPT + 1, 5], [1] * 3000])
def test_pieces_of_any_size_come_out_as_they_went_in(pieces: list[int], read: int) -> None:
    stream = memoryview(Random(1).randbytes(sum(pieces)))
    intake, left, found = Intake(), stream, b""
    for piece in pieces:
        while intake.end - intake.start < piece:
            intake.taken(intake.start)
            size = min(len(intake.room()), read, len(left))
            intake.room()[:size] = left[:size]
            left = left[size:]
            intake.filled(size)
        found += intake.view[intake.start : intake.start + piece]
        intake.taken(intake.start + piece)

    assert found == stream
    assert len(intake.view) <= 2 * KEPT


def test_memory_that_grew_for_one_piece_does_not_stay() -> None:
    intake = Intake()
    while intake.end - intake.start < 4 * KEPT:
        intake.taken(intake.start)
        intake.filled(len(intake.room()))
    intake.taken(intake.end)

    assert len(intake.view) == 2 * ROOM
