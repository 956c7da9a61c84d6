"""Several functions in one worker: what each may use, and that none holds up another."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from tests.helpers import eventually
from tests.project import Project

ONE_EXECUTOR = "[worker]\nexecutors = 1\n"


async def test_a_sync_functions_concurrency_is_its_bound_beside_one_that_may_do_more(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", concurrency=1)
        def one(event):
            note("one", 1)
            time.sleep(0.05)
            note("one", -1)
        @function(on="b", concurrency=4)
        def many(event):
            note("many", event.id)
            while not (HERE / "go").exists(): time.sleep(0.01)
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("b", *range(4))
        await eventually(lambda: len(project.lines("many")) == 4)
        await running.publish("a", *range(10), first=10)
        (tmp_path / "go").touch()
        await eventually(lambda: running.counts("one").done == 10)

    assert 1 == max(accumulate(map(int, project.lines("one"))))


SLOW_AND_FAST = """
    @function(on="a", concurrency=2)
    async def slow(event):
        note("start", event.id)
        while not (HERE / "go").exists(): await asyncio.sleep(0.01)
        note("end", event.id)
    @function(on="b", concurrency=1)
    async def fast(event): note("fast", event.id)
"""


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_idle_functions_event_does_not_wait_behind_anothers_slow_calls(bus_url: str, tmp_path: Path, kind: str) -> None:
    """One executor for all async functions, and slow calls in every slot of theirs, with more behind them."""
    code = SLOW_AND_FAST if kind == "async" else SLOW_AND_FAST.replace("async def", "def").replace("await asyncio", "time")
    project = Project(tmp_path, code, ONE_EXECUTOR)
    async with project.running(bus_url) as running:
        await running.publish("b", 0)
        await eventually(lambda: running.counts("fast").done == 1)
        await running.publish("a", *range(10), first=10)
        await eventually(lambda: len(project.lines("start")) == 2)
        await running.publish("b", 1, first=1)
        await eventually(lambda: running.counts("fast").done == 2, timeout=3)

        assert (2, 0) == (len(project.lines("start")), len(project.lines("end")))

        (tmp_path / "go").touch()


@pytest.mark.parametrize("before", [0, 200])
async def test_a_slow_async_function_gets_all_the_executors_there_may_be(bus_url: str, tmp_path: Path, before: int) -> None:
    """before: events of a fast function of the module that its only executor had run."""
    project = Project(tmp_path, SLOW_AND_FAST)
    async with project.running(bus_url) as running:
        await running.publish("b", *range(before))
        await eventually(lambda: running.counts("fast").done == before)
        await running.publish("a", *range(10), first=1000)
        await eventually(lambda: len(project.lines("start")) == 2 * project.config.worker.executors, timeout=3)

        assert [] == project.lines("end")

        (tmp_path / "go").touch()
