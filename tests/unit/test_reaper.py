"""What the reaper may free: pure tables."""

from __future__ import annotations

from typing import Any

import pytest

from broker_faas.bus import Queue
from broker_faas.buses.consumers import unsettled
from broker_faas.layout import EVENTS, consumers, replay_filter
from broker_faas.reaper import Hold, cuts, floors, holds_of
from broker_faas.topics import covers

STORED = ["ev.a.b.-.-", "ev.a.b.3.0", "ev.a.b.3.f", "ev.a.b.c.1", "ev.c.x.-.-", "ev.c.y.-.-", "ev.rare.-.-", "re.p--o.3.0"]


def info(
    *, pending: int = 0, in_flight: int = 0, floor: int = 0, name: str = "p--f", filters: tuple[str, ...] = ("ev.a.b.*.*",)
) -> dict[str, Any]:
    config = {"durable_name": name, "filter_subjects": list(filters), "metadata": {"faas.queue": name.rsplit("--", 1)[0]}}
    return {"name": name, "config": config, "num_pending": pending, "num_ack_pending": in_flight, "ack_floor": {"stream_seq": floor}}


def held(queue: Queue, floor: int, *, where: str = "") -> list[Hold]:
    """A queue's holds on `events`: at `floor` in consumers whose name ends with `where`, elsewhere with nothing left. An ordered one
    hears replays."""
    made = [(config["durable_name"], tuple(config["filter_subjects"])) for stream, config in consumers(queue) if stream == EVENTS]
    if queue.partitions:
        heard = dict(replay_filter(queue, f"re.{queue.name}.{tail}") for tail in ["-.-", *(f"{n >> 4:x}.{n & 15:x}" for n in range(256))])
        made = [(name, (*filters, heard[name])) for name, filters in made]
    return [Hold(queue.name, filters, floor if name.endswith(where) else 1000) for name, filters in made]


@pytest.mark.parametrize(
    ("consumer", "expected"),
    [
        (info(), 101),  # nothing waits, nothing is in flight: all that was there is settled, however old its floor
        (info(floor=7), 101),
        (info(pending=1, floor=7), 8),
        (info(in_flight=1, floor=7), 8),
        (info(pending=3, in_flight=2), 1),
    ],
)
def test_a_queue_has_settled_what_lies_below_its_floor(consumer: dict[str, Any], expected: int) -> None:
    assert unsettled(consumer, 100) == expected


PLAIN = Queue("p--f", ("a.b",))
WILD = Queue("p--w", ("c.*",))
TWO = Queue("p--two", ("a.b", "rare"))
REST = Queue("p--rest", ("c.>",))
ALL = Queue("p--all", (">",))
ORDERED = Queue("p--o", ("a.b",), 16)
FINE = Queue("p--o", ("a.b",), 256)


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        pytest.param([], {">": 100}, id="nobody hears anything: age alone"),
        pytest.param(held(PLAIN, 100) + held(WILD, 5000), {">": 100}, id="all are past it: one purge"),
        pytest.param(
            held(PLAIN, 40),
            {"ev.a.b.*.*": 40, "ev.c.x.*.*": 100, "ev.c.y.*.*": 100, "ev.rare.*.*": 100, "re.p--o.*.*": 100},
            id="one behind holds its own topic",
        ),
        pytest.param(
            held(PLAIN, 40) + held(Queue("p--g", ("a.b",)), 30) + held(WILD, 50),
            {"ev.a.b.*.*": 30, "ev.c.x.*.*": 50, "ev.c.y.*.*": 50, "ev.rare.*.*": 100, "re.p--o.*.*": 100},
            id="the slowest of a topic counts, and a wildcard for all it matches",
        ),
        pytest.param(
            held(REST, 7),
            {"ev.a.b.*.*": 100, "ev.c.x.*.*": 7, "ev.c.y.*.*": 7, "ev.rare.*.*": 100, "re.p--o.*.*": 100},
            id="'>' behind a prefix",
        ),
        pytest.param(
            held(ALL, 7),
            {"ev.a.b.*.*": 7, "ev.c.x.*.*": 7, "ev.c.y.*.*": 7, "ev.rare.*.*": 7, "re.p--o.*.*": 100},
            id="'>' alone hears every event and no replay",
        ),
        pytest.param(
            held(TWO, 9),
            {"ev.a.b.*.*": 9, "ev.c.x.*.*": 100, "ev.c.y.*.*": 100, "ev.rare.*.*": 9, "re.p--o.*.*": 100},
            id="several topics of one queue",
        ),
        pytest.param(
            held(ORDERED, 12, where="--3"),
            {
                "ev.a.b.-.*": 100,
                "ev.a.b.3.*": 12,
                "ev.a.b.c.*": 100,
                "ev.c.x.*.*": 100,
                "ev.c.y.*.*": 100,
                "ev.rare.*.*": 100,
                "re.p--o.3.*": 12,
            },
            id="a stuck partition holds its own digit, of events and of replays",
        ),
        pytest.param(
            held(FINE, 12, where="--30"),
            {
                "ev.a.b.-.*": 100,
                "ev.a.b.3.0": 12,
                "ev.a.b.3.f": 100,
                "ev.a.b.c.*": 100,
                "ev.c.x.*.*": 100,
                "ev.c.y.*.*": 100,
                "ev.rare.*.*": 100,
                "re.p--o.3.0": 12,
            },
            id="of 256 partitions: two digits",
        ),
        pytest.param(
            held(ORDERED, 12, where="--unkeyed") + held(PLAIN, 50),
            {
                "ev.a.b.-.-": 12,
                "ev.a.b.3.*": 50,
                "ev.a.b.c.*": 50,
                "ev.c.x.*.*": 100,
                "ev.c.y.*.*": 100,
                "ev.rare.*.*": 100,
                "re.p--o.3.*": 100,
            },
            id="events without a key are a partition of their own, and a plain queue hears all",
        ),
    ],
)
def test_each_topic_is_freed_below_the_slowest_of_its_queues(holds: list[Hold], expected: dict[str, int]) -> None:
    assert floors(holds, STORED, 100) == expected


def test_no_purge_reaches_what_a_queue_has_not_settled() -> None:
    """Whatever the filters are: a stored subject is purged below the floor of every queue that hears it, and no further."""
    holds = [*held(PLAIN, 60), *held(WILD, 50), *held(TWO, 40), *held(ORDERED, 12, where="3"), *held(FINE, 9, where="--3f"), *held(ALL, 70)]
    freed = floors(holds, STORED, 100)

    for subject in STORED:
        reached = [below for pattern, below in freed.items() if covers(pattern, subject)]
        allowed = min([100, *(hold.floor for hold in holds if any(covers(one, subject) for one in hold.filters))])

        assert reached == [allowed], subject


def test_subjects_that_another_client_made_up_widen_no_purge() -> None:
    """Stored under a literal `*`, or with too few parts: as a filter each would reach other topics."""
    odd = ["ev.*.-.-", "ev.a.b.*.*", "ev.>.x.y", "ev.x", "ev.a.>", "re.*.*.*"]

    assert floors(held(ORDERED, 12, where="--3"), [*odd, "ev.a.b.3.0"], 100) == {"ev.a.b.3.*": 12}


def test_a_foreign_consumer_counts_as_a_queue_of_its_own_name() -> None:
    foreign = info(name="audit", pending=1, floor=3, filters=(">",))
    foreign["config"]["metadata"] = {}

    assert holds_of([foreign], 10) == [Hold("audit", (">",), 4)]


@pytest.mark.parametrize(
    ("old", "recent", "expected"),
    [(50, 50, [50]), (50, 20, [50]), (0, 400, [0, 100, 200, 300, 400]), (98, 101, [98, 98, 99, 100, 101])],
)
def test_history_is_cut_in_steps_oldest_first(old: int, recent: int, expected: list[int]) -> None:
    assert list(cuts(old, recent)) == expected
