"""What a deploy would change on the bus: pure tables."""

from __future__ import annotations

import pytest

from broker_faas.bus import Lag, Queue
from broker_faas.buses.changes import Change, plan
from broker_faas.buses.listing import QueueRow, listeners


def row(name: str = "p--f", *topics: str, partitions: int = 0, waiting: int = 0, scheduled: int = 0, dead: int = 0) -> QueueRow:
    return QueueRow(name, topics or ("a",), partitions, Lag(waiting, 0, scheduled), dead, since=0.0, active=None, held=0)


A = Queue("p--f", ("a",))


@pytest.mark.parametrize(
    ("queues", "rows", "was", "expected"),
    [
        pytest.param([A], [row()], {}, [], id="nothing"),
        pytest.param([], [], {}, [], id="nothing at all"),
        pytest.param([A], [], {}, [Change("new", "p--f", "new: starts at new events")], id="new"),
        pytest.param(
            [Queue("p--f", ("a",), start="first")],
            [],
            {},
            [Change("new", "p--f", "new: starts at the oldest event that is kept")],
            id="new, from the first",
        ),
        pytest.param(
            [],
            [row(waiting=3, dead=2)],
            {},
            [
                Change(
                    "gone", "p--f", "no function serves it any more: 3 events waiting, 2 dead letters; `faas functions prune` discards it"
                )
            ],
            id="gone",
        ),
        pytest.param(
            [Queue("p--g", ("a",))],
            [row(waiting=3)],
            {"p--g": "p--f"},
            [Change("renamed", "p--g", "was p--f: keeps its position, 3 events waiting, 0 dead letters")],
            id="renamed",
        ),
        pytest.param([Queue("p--g", ("a",))], [row("p--g")], {"p--g": "p--f"}, [], id="renamed long ago: `was` may stay in the code"),
        pytest.param(
            [Queue("p--g", ("a",))],
            [row("p--g"), row(scheduled=1)],
            {"p--g": "p--f"},
            [
                Change(
                    "renamed",
                    "p--g",
                    "was p--f, but both exist: 1 events waiting, 0 dead letters under the old name. "
                    "Drain it with the old code, or prune it",
                    refused=True,
                )
            ],
            id="renamed, but both exist",
        ),
        pytest.param(
            [Queue("p--f", ("a", "b"))],
            [row(waiting=3)],
            {},
            [Change("topics", "p--f", "topics a become a, b, with 3 events waiting")],
            id="a topic more",
        ),
        pytest.param(
            [Queue("p--f", ("b",))],
            [row(waiting=3)],
            {},
            [Change("topics", "p--f", "topics a become b, with 3 events waiting: those of a would be lost; drain first", refused=True)],
            id="a topic less while events wait",
        ),
        pytest.param(
            [Queue("p--f", ("b",))], [row()], {}, [Change("topics", "p--f", "topics a become b, with 0 events waiting")], id="a topic less"
        ),
        pytest.param(
            [Queue("p--f", ("*",))],
            [row(waiting=1)],
            {},
            [Change("topics", "p--f", "topics a become *, with 1 events waiting")],
            id="wider",
        ),
        pytest.param(
            [Queue("p--f", ("a",), 16)],
            [row(waiting=1)],
            {},
            [Change("ordered", "p--f", "plain becomes ordered (16 partitions): drain first, 1 events waiting", refused=True)],
            id="ordered while events wait",
        ),
        pytest.param(
            [A],
            [row(partitions=256)],
            {},
            [Change("ordered", "p--f", "ordered (256 partitions) becomes plain")],
            id="no longer ordered, drained",
        ),
    ],
)
def test_a_plan_names_what_changes(queues: list[Queue], rows: list[QueueRow], was: dict[str, str], expected: list[Change]) -> None:
    assert plan(queues, rows, was) == expected


def test_a_topic_is_heard_by_queues_whose_patterns_match_it() -> None:
    def consumer(name: str, topics: str) -> dict[str, object]:
        return {"name": name, "config": {"metadata": {"faas.queue": name.split("/")[0], "faas.topics": topics}}}

    ordered = [consumer("o/0", "a.b"), consumer("o/1", "a.b")]

    assert listeners("a.b", [*ordered, consumer("w", "x a.*"), consumer("other", "b"), {"name": "foreign", "config": {}}]) == ["o", "w"]
