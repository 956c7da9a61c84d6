"""Whole lives by chance: of an event under decide(), of a feed and its prefetch, and of calls whose executors crash."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_faas import decide
from broker_faas.bus import Delivery, Queue
from broker_faas.decide import CRASHED, FAILED, INVALID, OK, REJECTED, RETRY, SKIPPED, TIMEOUT
from broker_faas.errors import MAX_DELAY
from broker_faas.layout import MAX_HELD_DELAY
from broker_faas.retry import RetryPolicy
from broker_faas.workers import dispatch, feed
from broker_faas.workers.dispatch import Pool
from broker_faas.workers.executor import Call, Exit, Group, Outcome
from broker_faas.workers.feed import MAX_PREFETCH, Feed
from broker_faas.workers.settle import Settler

from .test_dispatch import FakeExecutor, spec
from .test_feed import EVENT

STEPS = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
ENDS = (OK, FAILED, RETRY, REJECTED, SKIPPED, INVALID, TIMEOUT, CRASHED)


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    low = draw(st.floats(0, MAX_DELAY))
    return RetryPolicy(
        max_attempts=draw(st.integers(1, 6)),
        min_backoff=low,
        max_backoff=draw(st.floats(low, MAX_DELAY)),
        factor=draw(st.floats(1, 1e300)),
        jitter=draw(st.floats(0, 1)),
    )


@given(
    policies(),
    st.lists(
        st.tuples(st.sampled_from(ENDS + (FAILED, RETRY, TIMEOUT, CRASHED) * 4), st.none() | st.floats(0, MAX_DELAY)),
        min_size=20,
        max_size=20,
    ),
    st.booleans(),
    st.sampled_from(["dead", "block"]),
    st.floats(-1, 1),
)
def test_a_life_has_one_end_and_no_more_attempts_than_it_may(
    policy: RetryPolicy, ends: list[tuple[int, float | None]], ordered: bool, on_failure: str, spread: float
) -> None:
    fates = []
    for attempt, (status, after) in enumerate(ends, 1):
        asked = after if status == RETRY else None
        one = decide.decide(status, "why", asked, attempt, policy, ordered=ordered, on_failure=on_failure, spread=spread)
        fates.append(one.fate)
        most = min(MAX_HELD_DELAY, MAX_DELAY) if ordered else max(asked or 0.0, policy.max_backoff * (1 + policy.jitter))

        assert 0 <= one.delay <= most
        assert one.fate != "scheduled" or (one.delay > MAX_HELD_DELAY and not ordered)
        assert one.fate != "held" or one.delay <= MAX_HELD_DELAY
        assert (one.fate == "done") == (status == OK)
        assert (one.fate == "discarded") == (status == SKIPPED)
        assert one.fate == "dead" or status not in (REJECTED, INVALID)
        if one.fate in ("done", "dead", "discarded"):
            break
        assert attempt < policy.max_attempts or (ordered and on_failure == "block")

    assert all(fate in ("held", "scheduled") for fate in fates[:-1])
    assert fates[-1] in ("done", "dead", "discarded") or (ordered and on_failure == "block")


# --- a feed -------------------------------------------------------------------------------------------------


class Told:
    """A subscription: what it was told, and whether it may still be told so."""

    def __init__(self) -> None:
        self.prefetch = 5
        self.open: dict[tuple[str, int], int] = {}  # → the delivery that counts

    def settle(self, done: Iterable[Delivery], again: Iterable[tuple[Delivery, float]] = (), renew: Iterable[Delivery] = ()) -> None:
        for delivery in [*done, *(one for one, _ in again)]:
            assert self.open.pop((delivery.source, delivery.seq)) == delivery.deliveries, "settled once, under its last lease"


class NoBus:
    """Takes everything: what is stored is none of this machine's."""

    async def publish(self, records: Any, *, output: bool = False) -> int:
        return 0


class FeedLife(RuleBasedStateMachine):
    """Deliveries of every kind, outcomes of every kind, hand-backs and clocks, in any order."""

    @initialize(concurrency=st.integers(1, 100_000), sync=st.booleans(), ordered=st.sampled_from([0, 16]), size=st.integers(1, 64))
    def open(self, concurrency: int, sync: bool, ordered: int, size: int) -> None:
        self.pool = SimpleNamespace(size=size, sick=False, executors=[])
        policy = RetryPolicy(max_attempts=3)
        function = spec(concurrency=concurrency, sync=sync, ordered=ordered, retry=policy)
        self.feed = Feed(function, Queue("p--f", ("a",), partitions=ordered), cast(Pool, self.pool), 0)
        self.told = Told()
        self.feed.subscription = cast(Any, self.told)
        self.settler = Settler(cast(Any, NoBus()))
        self.runner = asyncio.Runner()
        self.ids = count(1)
        self.seqs = count(1)
        self.now = self.feed._measured

    @rule(kinds=st.lists(st.sampled_from(["new", "again", "held", "twice"]), min_size=1, max_size=30), data=st.data())
    def deliver(self, kinds: list[str], data: st.DataObject) -> None:
        batch: list[Delivery] = []
        held = len(self.feed.held)
        fresh = 0
        for kind in kinds:
            if kind == "held" and self.told.open:
                source, seq = data.draw(st.sampled_from(sorted(self.told.open)))
            else:
                source, seq = "events/p--f", next(self.seqs)
                fresh += 1
            first = self.told.open.get((source, seq), 1 if kind == "again" else 0) + 1
            for deliveries in range(first, first + (2 if kind == "twice" else 1)):
                batch.append(Delivery(EVENT.subject, EVENT.headers, b"", seq, deliveries, 1e9, source, f"{seq}.{deliveries}"))
                self.told.open[source, seq] = deliveries
        new, again = self.feed.take(batch, self.ids)

        assert len(new) + len(again) == fresh
        assert len(self.feed.held) == held + fresh

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Some of what is held has outcomes; what has to be stored first, is."""
        held = sorted(self.feed.held, key=lambda one: one.id)
        ended = data.draw(st.lists(st.sampled_from(held), unique_by=id)) if held else []
        ok: list[list[Call]] = [[]]
        others: list[tuple[Call, Outcome]] = []
        for one in ended:
            status = data.draw(st.sampled_from(ENDS))
            after = data.draw(st.sampled_from([None, 0.0, 10.0, 100.0])) if status == RETRY else None
            if status == OK and data.draw(st.booleans()):
                ok[0].append(one)
            else:
                others.append((one, Outcome(one.id, status, "why", "", after, [])))
        self.settler.outcomes(ok, others)
        stored, self.settler._outbox = self.settler._outbox, []
        if stored:
            from broker_faas.workers.settle import _outputs, _unstored

            self.runner.run(self.settler._store([_unstored(*one, _outputs(frozenset())) for one in stored]))

    @rule(store=st.booleans())
    def stop(self, store: bool) -> None:
        self.feed.hand_back([one for one in self.feed.held if store])

        assert not self.feed.held

    @rule(seconds=st.floats(0, 1000), sick=st.booleans(), executors=st.integers(0, 64))
    def pass_time(self, seconds: float, sick: bool, executors: int) -> None:
        self.now += seconds
        self.pool.sick, self.pool.executors = sick, [None] * min(executors, self.pool.size)
        self.feed.resize(self.now)

    @rule(ended=st.integers(0, 10**9))
    def be_fast(self, ended: int) -> None:
        self.feed._ended += ended

    @invariant()
    def nothing_is_counted_twice_or_lost(self) -> None:
        if hasattr(self, "feed"):
            counts = self.feed.counts
            assert counts.accepted == counts.done + counts.dead + counts.discarded + counts.handed_back + len(self.feed.held)
            assert len(self.told.open) == len(self.feed.held)
            assert self.feed.empty.is_set() == (not self.feed.held) or counts.handed_back

    @invariant()
    def prefetch_is_within_its_bounds(self) -> None:
        if hasattr(self, "feed"):
            assert 1 <= self.told.prefetch <= MAX_PREFETCH

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        if hasattr(self, "feed"):
            assert len(self.feed._crashed) <= feed.MAX_CRASHED
            assert len(self.feed._topics) <= feed.MAX_TOPICS

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


TestFeedLife = FeedLife.TestCase
TestFeedLife.settings = STEPS


# --- whom a crash is charged to -----------------------------------------------------------------------------


class Blame(RuleBasedStateMachine):
    """Calls of which some end their executor, beside some that never would."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.now: float = 1000.0
        self.patch.setattr(dispatch, "monotonic", lambda: self.now)
        self.patch.setattr(dispatch.log, "disabled", True)
        self.runner = asyncio.Runner()
        self.executors: list[FakeExecutor] = []  # that live
        self.crashers: set[int] = set()
        self.submitted: set[int] = set()
        self.outcomes: dict[int, int] = {}
        self.charged: set[int] = set()
        self.ids = count(1)

    @initialize(size=st.integers(1, 3), concurrency=st.integers(1, 4), recycle=st.sampled_from([0, 0, 3]))
    def open(self, size: int, concurrency: int, recycle: int) -> None:
        function = spec(concurrency=concurrency)
        group = Group(name="g", functions=[function], env={}, sync=False)
        tasks = SimpleNamespace(create_task=lambda work: self.runner.get_loop().create_task(work))
        self.pool = Pool(group, size, cast(Any, self.fork), self.settle, cast(Any, tasks), recycle_events=recycle)

    async def fork(self, group: Group, pool: Pool) -> FakeExecutor:
        self.executors.append(FakeExecutor())
        return self.executors[-1]

    def settle(self, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        for call, status in [*((call, OK) for calls in done for call in calls), *((call, one.status) for call, one in others)]:
            assert call.id in self.submitted
            assert call.id not in self.outcomes, "an outcome comes once"
            self.outcomes[call.id] = status
            if status != OK:
                self.charged.add(call.id)

    def turn(self) -> None:
        """Forks that were begun are through; executors that were told to end, and have nothing left, end."""
        for _ in range(3):
            self.runner.run(asyncio.sleep(0))
        for executor in [one for one in self.executors if one.drained and not one.inflight]:
            self.die(executor, set(), reason="drained")

    def die(self, executor: FakeExecutor, running: set[int], *, reason: str, zygote_died: bool = False) -> None:
        self.executors.remove(executor)
        self.pool.exited(cast(Any, executor), Exit(reason, running, zygote_died, ""))

    def in_it(self, executor: FakeExecutor) -> list[int]:
        """What it runs: as many of its calls as it overlaps."""
        return [*executor.inflight][: self.pool.group.functions[0].concurrency]

    @rule(crash=st.lists(st.booleans(), min_size=1, max_size=6), alone=st.booleans())
    def submit(self, crash: list[bool], alone: bool) -> None:
        calls = [Call(next(self.ids), 0, "a", 1, b"", b"") for _ in crash]
        self.crashers |= {call.id for call, crashes in zip(calls, crash, strict=True) if crashes}
        self.submitted |= {call.id for call in calls}
        self.pool.submit(calls, alone=alone)
        self.turn()

    @precondition(lambda self: self.executors)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """One of the calls in an executor ends, or ends it."""
        executor = data.draw(st.sampled_from(self.executors))
        if running := self.in_it(executor):
            self.step(executor, data.draw(st.sampled_from(running)), {*running})

    def step(self, executor: FakeExecutor, id: int, running: set[int]) -> None:
        if id in self.crashers:
            self.die(executor, running, reason="SIGSEGV")
        else:
            executor.events += 1
            self.pool.outcomes(cast(Any, executor), [[executor.inflight.pop(id)]], [])
        self.turn()

    @precondition(lambda self: self.executors)
    @rule(data=st.data(), zygote=st.booleans())
    def die_of_something_else(self, data: st.DataObject, zygote: bool) -> None:
        """Out of memory, or with all the others because the zygote is gone; where one call alone ran, that is its own."""
        executor = data.draw(st.sampled_from(self.executors))
        running = {*self.in_it(executor)}
        alone = cast(Any, executor) in self.pool._alone
        if zygote and not alone:
            self.die(executor, running, reason="the zygote died", zygote_died=True)
        elif len(running) > 1:
            self.die(executor, running, reason="SIGKILL")
        elif not alone:
            self.die(executor, set(), reason="SIGKILL")
        self.turn()

    @rule(seconds=st.floats(0, 100))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pool.tick(self.now)
        self.turn()

    @invariant()
    def only_what_crashes_is_charged(self) -> None:
        assert self.charged <= self.crashers

    @invariant()
    def every_call_is_somewhere_once(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.calls == len(self.submitted) - len(self.outcomes)

    def teardown(self) -> None:
        """From here on nothing happens but what the calls do themselves: each has its outcome in the end."""
        try:
            for _ in range(40 * (len(self.submitted) + 1)):
                if len(self.outcomes) == len(self.submitted):
                    break
                self.now += 31
                self.pool.tick(self.now)
                self.turn()
                for executor in [*self.executors]:
                    if executor in self.executors and (running := self.in_it(executor)):
                        self.step(executor, running[0], {*running})

            assert self.outcomes.keys() == self.submitted
            assert {id for id, status in self.outcomes.items() if status == CRASHED} == self.charged == self.crashers
        finally:
            self.patch.undo()
            self.runner.close()


TestBlame = Blame.TestCase
TestBlame.settings = STEPS
