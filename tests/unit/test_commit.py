"""Which records may be on their way to the server at once."""

from __future__ import annotations

import asyncio

import pytest

from broker_faas.bus import Record
from broker_faas.buses.calls import Call, queued
from broker_faas.buses.commit import MAX_WAVE, _waves


def waves(*subjects: str) -> list[list[str]]:
    items = [
        queued(Record(subject, f"{n}", b"", b""), Call(1, 0.0, asyncio.get_running_loop().create_future()))
        for n, subject in enumerate(subjects)
    ]
    return [[item.record.subject for item in wave] for wave in _waves(items)]


@pytest.mark.parametrize("second", ["ev.a.3.7", "ev.b.3.7", "ev.b.c.3.7", "re.shop--f.3.7"])
async def test_two_records_of_one_partition_are_never_on_their_way_together_whatever_their_topics(second: str) -> None:
    assert waves("ev.a.3.7", second) == [["ev.a.3.7"], [second]]


async def test_records_of_several_partitions_and_those_without_a_key_leave_together() -> None:
    subjects = ["ev.a.3.7", "ev.a.3.8", "ev.a.-.-", "ev.b.-.-", "ev.a.-.-", "ev.b.4.7"]

    assert waves(*subjects) == [subjects]


async def test_a_position_leaves_when_all_that_it_speaks_for_is_stored() -> None:
    assert waves("ev.a.-.-", "ev.b.-.-", "pos.c.1", "pos.c.2", "ev.a.-.-") == [["ev.a.-.-", "ev.b.-.-"], ["pos.c.1", "pos.c.2", "ev.a.-.-"]]


async def test_a_wave_is_bounded() -> None:
    assert [len(wave) for wave in waves(*["ev.a.-.-"] * (MAX_WAVE + 1))] == [MAX_WAVE, 1]
