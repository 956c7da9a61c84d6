"""What happens to an event after an attempt. Pure, and the only place that knows."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from .layout import MAX_HELD_DELAY
from .retry import RetryPolicy

# How an attempt ended: the status codes of docs/reference/executor-protocol.md, and what the worker sees from outside.
OK, FAILED, RETRY, REJECTED, SKIPPED, INVALID, TIMEOUT, CRASHED = range(8)


class Decision(NamedTuple):
    """fate: "done" | "discarded" | "dead" | "held" (the consumer keeps it) | "scheduled" (stored in `retries`).

    delay: seconds until the next attempt of "held" and "scheduled". reason: for the dead letter or the log.
    """

    fate: str
    delay: float = 0.0
    reason: str = ""


DONE = Decision("done")
DISCARDED = Decision("discarded")


def spread(sequence: str) -> float:
    """-1..1, derived from an event's place, so that another process would choose the same: what failed together comes back apart."""
    return crc32(sequence.encode()) % 2001 / 1000 - 1


def decide(
    status: int,
    reason: str,
    after: float | None,
    attempt: int,
    policy: RetryPolicy,
    *,
    ordered: bool = False,
    on_failure: str = "dead",
    spread: float = 0.0,
) -> Decision:
    """The fate of an event whose `attempt`-th attempt (from 1) ended with `status`.

    after: what Retry(after=…) asked for, seconds. spread: -1..1, derived from the event, shifts the delay by the policy's jitter.
    An ordered function's retries are always held, since a rescheduled event would be overtaken by its key; with
    on_failure="block" an event that ran out of attempts goes on being retried, and its partition waits.
    """
    if status == OK:
        return DONE
    if status == SKIPPED:
        return DISCARDED
    if status in (REJECTED, INVALID):
        return Decision("dead", reason=reason)
    delay = policy.delay(attempt, spread)
    if delay is None:
        if ordered and on_failure == "block":
            return Decision("held", MAX_HELD_DELAY, reason)
        return Decision("dead", reason=reason)
    if after is not None:
        delay = after
    if ordered:
        return Decision("held", min(delay, MAX_HELD_DELAY), reason)
    return Decision("held" if delay <= MAX_HELD_DELAY else "scheduled", delay, reason)
