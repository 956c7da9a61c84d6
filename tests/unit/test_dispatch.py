"""Who runs what, how many executors there are, and whom a crash is charged to. With executors that are only remembered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from broker_faas.decide import CRASHED, OK, TIMEOUT
from broker_faas.errors import ExecutorCrashed
from broker_faas.function import Spec
from broker_faas.retry import RetryPolicy
from broker_faas.workers import dispatch
from broker_faas.workers.dispatch import Pool
from broker_faas.workers.executor import Call, Exit, Group, Outcome
from tests.helpers import eventually


class FakeExecutor:
    """What Pool uses of an Executor, without a process."""

    def __init__(self) -> None:
        self.inflight: dict[int, Call] = {}
        self.started: dict[int, float] = {}
        self.paused = False
        self.moved = 0.0
        self.events = 0
        self.killed = self.drained = self.children = False
        self.frames: list[list[int]] = []

    def run(self, calls: list[Call]) -> None:
        self.frames.append([call.id for call in calls])
        self.inflight |= {call.id: call for call in calls}

    @property
    def load(self) -> list[int]:
        counts = Counter(call.function for call in self.inflight.values())
        return [counts[function] for function in range(max(counts, default=0) + 2)]

    @property
    def inflight_bytes(self) -> int:
        return sum(len(call.data) for call in self.inflight.values())

    def running(self) -> dict[int, float]:
        return self.started

    def kill(self, why: str) -> None:
        self.killed = True

    def has_children(self) -> bool:
        return self.children

    def drain(self) -> None:
        self.drained = True


def spec(**changes: Any) -> Spec:
    fields: dict[str, Any] = {
        "name": "f", "module": "m", "version": "0" * 12, "topics": ("a",), "sends": None, "timeout": 5.0, "concurrency": 4, "sync": False,
        "ordered": 0, "on_failure": "dead", "start": "new", "was": None, "retry": RetryPolicy(), "doc": "",
    }  # fmt: skip
    return Spec(**fields | changes)


class Bench:
    """A pool, the executors it forked, and what it settled."""

    def __init__(self, tasks: asyncio.TaskGroup, *, size: int = 2, **changes: Any) -> None:
        function = spec(**changes)
        self.executors: list[FakeExecutor] = []
        self.settled: list[tuple[int, int, str]] = []
        self.failures = 0
        group = Group(name="g", functions=[function], env={}, sync=function.sync)
        self.pool = Pool(group, size, self.fork, self.settle, tasks)

    async def fork(self, group: Group, pool: Pool) -> Any:
        if self.failures:
            self.failures -= 1
            raise ExecutorCrashed("its lifespan failed")
        self.executors.append(FakeExecutor())
        return self.executors[-1]

    def settle(self, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        self.settled += [(call.id, OK, "") for calls in done for call in calls]
        self.settled += [(call.id, outcome.status, outcome.reason) for call, outcome in others]

    def submit(self, *ids: int, alone: bool = False, size: int = 0) -> None:
        self.pool.submit([Call(id, 0, "a", 1, b"", b"x" * size) for id in ids], alone=alone)

    def finish(self, executor: FakeExecutor, *ids: int) -> None:
        calls = [executor.inflight.pop(id) for id in ids]
        self.pool.outcomes(executor, [[call for call in calls if call.function == n] for n in (0, 1)][: len(self.pool.group.functions)], [])  # type: ignore[arg-type]

    def die(self, executor: FakeExecutor, *running: int, reason: str = "SIGSEGV", zygote_died: bool = False) -> None:
        self.pool.exited(executor, Exit(reason, set(running), zygote_died, ""))  # type: ignore[arg-type]

    async def forked(self, n: int) -> None:
        await eventually(lambda: len(self.executors) == n)


@pytest.fixture
def bench() -> Any:
    @asynccontextmanager
    async def make(**changes: Any) -> AsyncIterator[Bench]:
        async with asyncio.TaskGroup() as tasks:
            yield Bench(tasks, **changes)

    return make


async def test_a_pool_is_empty_until_its_first_event(bench: Any) -> None:
    async with bench() as b:
        b.pool.tick(monotonic())

        assert [] == b.executors

        b.submit(1)
        await b.forked(1)

        assert [[1]] == b.executors[0].frames


async def test_an_executor_holds_no_more_than_it_overlaps_until_its_rate_is_known(bench: Any) -> None:
    async with bench(size=1, concurrency=4) as b:
        b.submit(*range(1, 11))
        await b.forked(1)

        assert [[1, 2, 3, 4]] == b.executors[0].frames

        b.finish(b.executors[0], 1, 2)

        assert [5, 6] == b.executors[0].frames[1]


async def test_a_fast_executor_gets_many_events_a_frame(bench: Any) -> None:
    async with bench(size=1, concurrency=4) as b:
        b.pool._rates = [10_000.0]
        b.submit(*range(1, 401))
        await b.forked(1)

        assert 400 == len(b.executors[0].frames[0])


async def test_a_pool_grows_when_calls_wait_and_not_beyond_its_size(bench: Any) -> None:
    async with bench(size=2, concurrency=1) as b:
        b.submit(1, 2, 3)
        await b.forked(1)
        b.pool.tick(monotonic() + dispatch.GROW_AFTER * 2)
        await b.forked(2)
        b.pool.tick(monotonic() + dispatch.GROW_AFTER * 4)
        await asyncio.sleep(0)

        assert [[[1]], [[2]]] == [executor.frames for executor in b.executors]


async def test_an_idle_executor_ends(bench: Any) -> None:
    async with bench() as b:
        b.submit(1)
        await b.forked(1)
        b.finish(b.executors[0], 1)
        b.pool.tick(monotonic() + dispatch.IDLE + 1)
        b.die(b.executors[0], reason="drained")

        assert (True, []) == (b.executors[0].drained, b.pool.executors)


async def test_a_worn_executor_finishes_what_it_has_and_gets_nothing_new(bench: Any) -> None:
    async with bench(size=1) as b:
        b.pool._recycle_events = 10
        b.submit(1, 2)
        await b.forked(1)
        b.executors[0].events = 10
        b.pool.tick(monotonic())
        b.submit(3)
        await b.forked(2)
        b.finish(b.executors[0], 1, 2)

        assert (True, [[1, 2]], [[3]]) == (b.executors[0].drained, b.executors[0].frames, b.executors[1].frames)


async def test_an_executor_gets_no_more_calls_than_it_may_run_and_is_followed_by_another(bench: Any) -> None:
    async with bench(size=1) as b:
        b.pool._recycle_events = 2
        b.submit(1, 2, 3)
        await b.forked(1)
        b.executors[0].events = 2
        b.finish(b.executors[0], 1, 2)
        await b.forked(2)

        assert (True, [[1, 2]], [[3]]) == (b.executors[0].drained, b.executors[0].frames, b.executors[1].frames)


async def test_a_crash_is_charged_to_the_one_call_that_ran_and_its_neighbours_run_again(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1, 2, 3)
        await b.forked(1)
        b.die(b.executors[0], 2)
        await b.forked(2)

        assert [(2, CRASHED, "executor ended while running it: SIGSEGV")] == b.settled
        assert [[1, 3]] == b.executors[1].frames


async def test_when_several_ran_none_is_charged_and_each_runs_alone(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1, 2, 3)
        await b.forked(1)
        b.die(b.executors[0], 1, 2)
        await eventually(lambda: sum(len(e.inflight) for e in b.executors[1:]) == 3)

        assert [] == b.settled
        assert [[1], [2], [3]] == sorted(frame for e in b.executors[1:] for frame in e.frames)


async def test_a_suspect_that_crashes_alone_is_charged(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(7, alone=True)
        await b.forked(1)
        b.die(b.executors[0])

        assert [(7, CRASHED, "executor ended while running it: SIGSEGV")] == b.settled


async def test_nothing_is_charged_when_the_zygote_dies(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1, 2)
        await b.forked(1)
        b.die(b.executors[0], 1, zygote_died=True)
        await b.forked(2)

        assert ([], [[1, 2]]) == (b.settled, b.executors[1].frames)


async def test_a_call_past_its_deadline_is_killed_after_two_seconds_and_charged_as_a_timeout(bench: Any) -> None:
    async with bench(size=1, timeout=5.0) as b:
        b.submit(1, 2)
        await b.forked(1)
        executor = b.executors[0]
        now = monotonic()
        executor.started = {1: now - 6.9, 2: now - 1}
        b.pool.tick(now)

        assert not executor.killed

        executor.started = {1: now - 7.1, 2: now - 1}
        b.pool.tick(now)

        assert executor.killed

        b.die(executor, 1, 2, reason="SIGKILL")
        await b.forked(2)

        assert [(1, TIMEOUT)] == [(id, status) for id, status, _ in b.settled]
        assert [[2]] == b.executors[1].frames


async def test_of_calls_in_an_executor_that_hangs_each_runs_alone_before_one_is_charged(bench: Any) -> None:
    """A coroutine that does not yield keeps its neighbours from their ends, and they may have begun before it."""
    async with bench(size=1, timeout=5.0) as b:
        b.submit(1, 2, 3)
        await b.forked(1)
        executor = b.executors[0]
        now = monotonic()
        executor.started = {1: now - 7.2, 2: now - 7.1}
        executor.moved = now - 7.0
        b.pool.tick(now)
        b.die(executor, 1, 2, reason="deadline")
        await b.forked(4)

        assert [] == b.settled
        assert [[[1]], [[2]], [[3]]] == [executor.frames for executor in b.executors[1:]]

        b.finish(b.executors[1], 1)
        b.executors[2].started = {2: now - 7.1}
        b.pool.tick(now)
        b.die(b.executors[2], 2, reason="deadline")

        assert [(1, OK), (2, TIMEOUT)] == [(id, status) for id, status, _ in b.settled]


async def test_a_call_that_ignores_its_deadline_while_others_are_answered_is_charged_at_once(bench: Any) -> None:
    async with bench(size=1, timeout=5.0) as b:
        b.submit(1, 2)
        await b.forked(1)
        executor = b.executors[0]
        now = monotonic()
        executor.started = {1: now - 7.1, 2: now - 3}
        executor.moved = now - 1
        b.pool.tick(now)
        b.die(executor, 1, 2, reason="deadline")

        assert [(1, TIMEOUT)] == [(id, status) for id, status, _ in b.settled]


@pytest.mark.parametrize("children", [False, True])
async def test_an_executor_in_which_a_call_timed_out_ends_if_processes_are_left_in_it(bench: Any, children: bool) -> None:
    async with bench(size=1) as b:
        b.submit(1, 2)
        await b.forked(1)
        executor = b.executors[0]
        executor.children = children
        call = executor.inflight.pop(1)
        b.pool.outcomes(executor, [[]], [(call, Outcome(1, TIMEOUT, "timeout after 5 s", "", None, []))])

        assert executor.drained == children


async def test_an_executor_that_dies_with_nothing_running_is_not_forked_again_at_once(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1)
        await b.forked(1)
        b.die(b.executors[0])
        b.pool.tick(monotonic() + 0.1)
        await asyncio.sleep(0)

        assert (1, []) == (len(b.executors), b.settled)


async def test_executors_that_ended_because_they_were_idle_are_followed_by_another_at_once(bench: Any) -> None:
    async with bench(size=3, concurrency=1) as b:
        b.submit(1, 2, 3)
        await b.forked(1)
        b.pool.tick(monotonic() + dispatch.GROW_AFTER * 2)
        await b.forked(3)
        for executor in b.executors:
            b.finish(executor, *executor.inflight)
        b.pool.tick(monotonic() + dispatch.IDLE + 1)
        for executor in b.executors:
            b.die(executor, reason="drained")
        b.submit(4)
        await eventually(lambda: len(b.executors) == 4, timeout=1)  # no tick: were it to wait, nothing would fork it

        assert [[4]] == b.executors[3].frames


async def test_executors_that_ended_because_they_were_worn_are_followed_by_another_at_once(bench: Any) -> None:
    async with bench(size=1, concurrency=1) as b:
        b.pool._recycle_events = 1
        b.submit(*range(4))
        for n in range(4):
            await eventually(lambda: len(b.executors) == n + 1, timeout=1)  # noqa: B023
            b.executors[n].events = 1
            b.finish(b.executors[n], n)
            b.die(b.executors[n], reason="drained")

        assert [[[0]], [[1]], [[2]], [[3]]] == [executor.frames for executor in b.executors]


async def test_an_executor_that_was_to_end_and_took_calls_along_is_not_forked_again_at_once(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1)
        await b.forked(1)
        b.pool._retire(b.executors[0])
        b.die(b.executors[0])
        b.pool.tick(monotonic() + 0.1)
        await asyncio.sleep(0)

        assert (1, []) == (len(b.executors), b.settled)


async def test_a_call_that_took_an_executor_along_twice_runs_alone_and_is_charged_the_third_time(bench: Any) -> None:
    """It had returned, so nothing was running: which of those that were not answered yet did it?"""
    async with bench(size=1) as b:
        b.submit(1)
        for deaths in (1, 2, 3):
            await b.forked(deaths)

            assert [] == b.settled

            b.die(b.executors[-1])
            b.pool._not_before = 0.0  # the back-off is over
            b.pool.tick(monotonic() + 1)

        assert [(1, CRASHED, "executor ended while running it: SIGSEGV")] == b.settled


async def test_a_call_that_took_the_zygote_along_twice_runs_alone_and_is_charged_the_third_time(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1, 2)
        await b.forked(1)
        b.die(b.executors[0], 1, zygote_died=True)
        await b.forked(2)
        b.die(b.executors[1], 1, zygote_died=True)
        await eventually(lambda: [1] in [frame for executor in b.executors[2:] for frame in executor.frames])
        alone = next(executor for executor in b.executors[2:] if [1] in executor.frames)
        b.die(alone, 1, zygote_died=True)

        assert [(1, CRASHED)] == [(id, status) for id, status, _ in b.settled]
        assert "the process that executors are forked from died while only it ran" in b.settled[0][2]


async def test_an_executor_that_cannot_start_is_tried_again_later(bench: Any) -> None:
    async with bench(size=1) as b:
        b.failures = 1
        b.submit(1)
        await eventually(lambda: b.failures == 0)
        b.pool._not_before = 0.0  # the back-off is over
        b.pool.tick(monotonic() + 1)
        await b.forked(1)

        assert [[1]] == b.executors[0].frames


async def test_what_one_executor_holds_is_bounded_in_bytes(bench: Any) -> None:
    async with bench(size=1, concurrency=100) as b:
        b.submit(*range(1, 21), size=1 << 20)
        await b.forked(1)

        assert 8 == len(b.executors[0].inflight)


async def test_one_call_larger_than_the_byte_window_still_runs(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1, size=dispatch.WINDOW_BYTES + 1)
        await b.forked(1)

        assert [[1]] == b.executors[0].frames


async def test_suspects_on_a_busy_pool_leave_it_no_larger_than_before(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(*range(1, 100))
        await b.forked(1)
        for suspect in range(1001, 1011):
            b.submit(suspect, alone=True)
            await eventually(lambda: any(max(e.inflight, default=0) > 1000 for e in b.executors))
            executor = next(e for e in b.executors if suspect in e.inflight)
            b.finish(executor, suspect)

        assert 1 == sum(not executor.drained for executor in b.executors)


async def test_a_call_that_answers_while_it_is_killed_for_its_deadline_leaves_no_one_to_charge(bench: Any) -> None:
    async with bench(size=1, timeout=5.0) as b:
        b.submit(1, 2)
        await b.forked(1)
        executor = b.executors[0]
        now = monotonic()
        executor.started = {1: now - 7.1, 2: now - 1}
        b.pool.tick(now)
        b.finish(executor, 1)
        b.die(executor, 2, reason="deadline")
        await b.forked(2)

        assert [(1, OK)] == [(id, status) for id, status, _ in b.settled]
        assert [[2]] == b.executors[1].frames


async def test_what_an_executor_says_after_its_pool_was_killed_counts_no_more(bench: Any) -> None:
    async with bench(size=1) as b:
        b.submit(1)
        await b.forked(1)
        b.pool.kill("the worker stops")
        b.finish(b.executors[0], 1)

        assert [] == b.settled


async def test_closing_does_not_wait_for_an_executor_that_is_still_starting(bench: Any) -> None:
    async with bench(size=1) as b:
        starting = asyncio.Event()

        async def hangs(group: Group, pool: Pool) -> Any:
            starting.set()
            await asyncio.Event().wait()

        b.pool._fork = hangs
        b.submit(1)
        await starting.wait()
        async with asyncio.timeout(1):
            await b.pool.close()

        assert [] == b.pool.executors


async def test_of_each_function_an_executor_takes_as_many_as_it_may_overlap(bench: Any) -> None:
    async with bench(size=1, concurrency=2) as b:
        b.pool = Pool(
            Group(name="g", functions=[spec(concurrency=2), spec(name="other", concurrency=1)], env={}, sync=False),
            1,
            b.fork,
            b.settle,
            b.pool._tasks,
        )
        b.pool.submit([Call(id, 0, "a", 1, b"", b"") for id in range(1, 6)])
        await b.forked(1)
        b.pool.submit([Call(id, 1, "a", 1, b"", b"") for id in (6, 7)])

        assert [[1, 2], [6]] == b.executors[0].frames
