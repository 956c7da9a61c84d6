"""What happens to an event after an attempt, as a table."""

from __future__ import annotations

import pytest

from broker_faas.decide import CRASHED, FAILED, INVALID, OK, REJECTED, RETRY, SKIPPED, TIMEOUT, decide
from broker_faas.retry import RetryPolicy

POLICY = RetryPolicy(max_attempts=3, min_backoff=1.0, max_backoff=100.0, factor=10.0, jitter=0.0)


@pytest.mark.parametrize(
    ("status", "attempt", "fate", "delay"),
    [
        (OK, 1, "done", 0.0),
        (OK, 99, "done", 0.0),
        (SKIPPED, 1, "discarded", 0.0),
        (REJECTED, 1, "dead", 0.0),
        (INVALID, 1, "dead", 0.0),
        (FAILED, 1, "held", 1.0),
        (FAILED, 2, "held", 10.0),
        (FAILED, 3, "dead", 0.0),
        (TIMEOUT, 1, "held", 1.0),
        (TIMEOUT, 3, "dead", 0.0),
        (CRASHED, 2, "held", 10.0),
        (CRASHED, 3, "dead", 0.0),
        (RETRY, 3, "dead", 0.0),
    ],
)
def test_every_way_an_attempt_can_end_has_one_fate(status: int, attempt: int, fate: str, delay: float) -> None:
    decision = decide(status, "why", None, attempt, POLICY)

    assert (fate, delay) == (decision.fate, decision.delay)


@pytest.mark.parametrize(("after", "fate"), [(0.0, "held"), (30.0, "held"), (30.1, "scheduled"), (86400.0, "scheduled")])
def test_a_delay_beyond_thirty_seconds_is_scheduled_instead_of_held(after: float, fate: str) -> None:
    decision = decide(RETRY, "later", after, 1, POLICY)

    assert (fate, after) == (decision.fate, decision.delay)


def test_an_ordered_function_never_reschedules() -> None:
    decision = decide(RETRY, "later", 3600.0, 1, POLICY, ordered=True)

    assert ("held", 30.0) == (decision.fate, decision.delay)


def test_an_ordered_function_that_blocks_keeps_its_event_for_ever() -> None:
    decision = decide(FAILED, "no", None, 1000, POLICY, ordered=True, on_failure="block")

    assert ("held", 30.0) == (decision.fate, decision.delay)


def test_a_plain_function_cannot_block() -> None:
    decision = decide(FAILED, "no", None, 3, POLICY, ordered=False, on_failure="block")

    assert decision.fate == "dead"


def test_reject_is_a_dead_letter_even_where_failures_block() -> None:
    decision = decide(REJECTED, "never", None, 1, POLICY, ordered=True, on_failure="block")

    assert decision.fate == "dead"


def test_jitter_moves_a_delay_by_its_share_and_no_more() -> None:
    policy = RetryPolicy(max_attempts=2, min_backoff=10.0, jitter=0.2)

    low, high = (decide(FAILED, "", None, 1, policy, spread=spread).delay for spread in (-1.0, 1.0))

    assert [low, high] == pytest.approx([8.0, 12.0])
