"""broker_faas.testing: functions, their retries and their outputs, in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from broker_faas import CloudEvent, Context, Reject, Retry, RetryPolicy, function
from broker_faas.testing import Harness, run
from broker_faas.where import prefix

entered: list[str] = []


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """Of this module, as any user's may have one."""
    entered.append("in")
    yield
    entered.append("out")


@dataclass
class Order:
    id: int


@function(on="orders.created", sends="orders.reserved")
async def reserve(order: Order, ctx: Context) -> dict[str, int]:
    ctx.emit("audit.log", f"reserving {order.id}")
    return {"id": order.id}


@function(on="orders.*", where=prefix(source="/test/"))
def audit(event: CloudEvent) -> None: ...


@function(on="orders.created", retry=RetryPolicy(max_attempts=4, min_backoff=10, max_backoff=3600, factor=10))
async def flaky(event: CloudEvent, ctx: Context) -> None:
    if ctx.attempt < 4:
        raise ConnectionError(f"attempt {ctx.attempt}")


@function(on="orders.created", retry=RetryPolicy(max_attempts=3))
async def broken(event: CloudEvent, ctx: Context) -> None:
    ctx.emit("never", 1)
    raise KeyError("x")


async def test_one_event_through_one_function() -> None:
    result = await run(reserve, {"id": 7})

    assert (result.outcome, result.reason) == ("done", "")
    assert [(topic, event.json()) for topic, event in result.outputs] == [("audit.log", "reserving 7"), ("orders.reserved", {"id": 7})]
    assert [event["causationid"] for _, event in result.outputs] == [result.event.id] * 2


async def test_retries_follow_the_policy_and_nobody_waits() -> None:
    started = time.monotonic()
    result = await run(flaky, {"id": 1})

    assert time.monotonic() - started < 5
    assert result.outcome == "done"
    assert [(one.number, one.outcome, one.delay) for one in result.attempts] == [
        (1, "held", 10),
        (2, "scheduled", 100),
        (3, "scheduled", 1000),
        (4, "done", 0),
    ]


async def test_an_event_that_runs_out_of_attempts_is_dead_and_sends_nothing() -> None:
    result = await run(broken)

    assert (result.outcome, result.reason, len(result.attempts)) == ("dead", "KeyError: 'x'", 3)
    assert result.outputs == []
    assert 'raise KeyError("x")' in result.attempts[-1].detail


async def test_reject_and_a_model_mismatch_are_dead_at_once() -> None:
    @function(on="a")
    async def refuses(event: CloudEvent) -> None:
        raise Reject("not for me")

    refused, mismatch = await run(refuses), await run(reserve, {"id": "x"})

    assert (refused.outcome, refused.reason, len(refused.attempts)) == ("dead", "not for me", 1)
    assert (mismatch.outcome, len(mismatch.attempts), mismatch.attempts[0].detail) == ("dead", 1, ""), "no user code was involved"
    assert mismatch.reason == "data is no Order: Expected `int`, got `str` - at `$.id`"


async def test_retry_after_is_the_delay() -> None:
    @function(on="a")
    async def later(event: CloudEvent, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry("busy", after=86400)

    result = await run(later)

    assert [(one.outcome, one.delay, one.reason) for one in result.attempts] == [("scheduled", 86400, "busy"), ("done", 0, "")]


async def test_a_filter_that_says_no_discards() -> None:
    result = await run(audit, source="/elsewhere")

    assert (result.outcome, len(result.attempts)) == ("discarded", 1)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_timeout_ends_the_attempt(blocking: bool) -> None:
    over = asyncio.Event()

    @function(on="a", retry=RetryPolicy(max_attempts=2))
    async def waits(event: CloudEvent) -> None:
        await over.wait()

    @function(on="a", retry=RetryPolicy(max_attempts=2))
    def blocks(event: CloudEvent) -> None:
        time.sleep(0.1)

    result = await run(blocks if blocking else waits, timeout=0.02)

    assert [(one.outcome, one.reason) for one in result.attempts] == [("held", "timeout after 0.02 s"), ("dead", "timeout after 0.02 s")]


async def test_a_timeout_error_of_the_handlers_own_is_a_failure_like_any() -> None:
    @function(on="a", retry=RetryPolicy(max_attempts=1))
    async def times_out_itself(event: CloudEvent) -> None:
        raise TimeoutError("the database")

    assert (await run(times_out_itself)).reason == "TimeoutError: the database"


async def test_a_topic_the_function_does_not_hear_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"reserve does not listen to 'other', only to orders\.created"):
        await run(reserve, topic="other")


async def test_outputs_reach_the_functions_that_listen() -> None:
    reported = []

    @function(on=["orders.reserved", "audit.>"])
    async def report(event: CloudEvent, ctx: Context) -> None:
        reported.append((ctx.topic, event.json()))

    async with Harness(reserve, report, audit, project="shop") as h:
        await h.publish("orders.created", {"id": 1}, source="/test/shop")
        await h.settled()

        assert sorted(reported) == [("audit.log", "reserving 1"), ("orders.reserved", {"id": 1})]
        assert [event.source for event in h.outputs("orders.reserved")] == ["/shop/reserve"]
        assert [attempt.outcome for attempt in h.attempts(audit)] == ["done", "discarded"], "its own source, then the function's"
        assert h.dead() == []


async def test_dead_letters_are_listed_by_function() -> None:
    async with Harness(broken, flaky) as h:
        event = await h.publish("orders.created", {"id": 1})
        await h.settled()

        assert [(one.function, one.event, one.number) for one in h.dead()] == [("broken", event, 3)]
        assert h.dead(flaky) == []
        assert len(h.attempts(flaky)) == 4


async def test_the_same_event_twice_runs_once() -> None:
    async with Harness(audit) as h:
        for _ in range(2):
            await h.publish("orders.created", id="same", source="/test/a")
        await h.settled()

        assert len(h.attempts()) == 1


async def test_delayed_publishes_come_in_their_order() -> None:
    seen = []

    @function(on="a.*")
    async def see(event: CloudEvent, ctx: Context) -> None:
        seen.append(ctx.topic)

    async with Harness(see) as h:
        await h.publish("a.later", delay=3600)
        await h.publish("a.date", at=datetime.now(UTC) + timedelta(seconds=60))
        await h.publish("a.now")
        await h.settled()

        assert seen == ["a.now", "a.date", "a.later"]


async def test_handlers_overlap_up_to_their_concurrency_and_plain_ones_do_not() -> None:
    running = most = plain_running = plain_most = 0

    @function(on="a", concurrency=3)
    async def overlaps(event: CloudEvent) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    @function(on="a")
    def alone(event: CloudEvent) -> None:
        nonlocal plain_running, plain_most
        plain_running += 1
        plain_most = max(plain_most, plain_running)
        plain_running -= 1

    async with Harness(overlaps, alone) as h:
        for _ in range(8):
            await h.publish("a")
        await h.settled()

    assert (most, plain_most) == (3, 1)


async def test_an_ordered_function_keeps_the_order_of_each_key_through_retries() -> None:
    seen = []

    @function(on="a", ordered=True)
    async def ordered(event: CloudEvent, ctx: Context) -> None:
        if event.json() == 1 and ctx.attempt < 3:
            raise ConnectionError
        seen.append((event.partitionkey, event.json()))

    async with Harness(ordered) as h:
        for number in (1, 2, 3):
            for key in ("a", "b"):
                await h.publish("a", number, key=key)
        await h.settled()

    assert [number for key, number in seen if key == "a"] == [1, 2, 3]
    assert [number for key, number in seen if key == "b"] == [1, 2, 3]


async def test_a_blocked_key_is_left_and_tried_again_by_the_next_settled() -> None:
    mended = False

    @function(on="a", ordered=True, on_failure="block", retry=RetryPolicy(max_attempts=2))
    async def blocks(event: CloudEvent) -> None:
        if event.json() == 1 and not mended:
            raise ConnectionError

    async with Harness(blocks) as h:
        await h.publish("a", 1, key="a")
        await h.publish("a", 2, key="a")
        await h.settled()
        blocked = [(one.event.json(), one.outcome) for one in h.attempts()]
        mended = True
        await h.settled()

        assert blocked == [(1, "held"), (1, "held")]
        assert [(one.event.json(), one.outcome) for one in h.attempts()][2:] == [(1, "done"), (2, "done")]


async def test_functions_that_feed_each_other_are_named() -> None:
    @function(on="a", sends="b")
    async def ping(event: CloudEvent) -> int:
        return 1

    @function(on="b", sends="a")
    async def pong(event: CloudEvent) -> int:
        return 1

    async with Harness(ping, pong, limit=10) as h:
        await h.publish("a")
        with pytest.raises(AssertionError, match=r"more than 10 runs .* ping \(6\), pong \(5\)"):
            await h.settled()

    async with Harness(ping, pong) as h:
        await h.publish("a")
        await h.settled()

        assert [attempt.outcome for attempt in h.attempts()] == ["done"] * 16 + ["dead"]


async def test_the_modules_lifespan_surrounds_its_functions() -> None:
    entered.clear()
    async with Harness(reserve, audit):
        inside = list(entered)

    assert (inside, entered) == (["in"], ["in", "out"])
