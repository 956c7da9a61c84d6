"""Many runs in a few tests: those that were selected start together, some at a time, and each test waits for its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from .scenario import Scenario
from .space import cannot_run

AT_ONCE = 3  # they mostly wait

Result = TypeVar("Result")


@asynccontextmanager
async def together(names: Iterable[str], start: Callable[[str], Awaitable[Result]]) -> AsyncIterator[dict[str, asyncio.Task[Result]]]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Result:
        async with room:
            return await start(name)

    async with asyncio.TaskGroup() as tasks:
        started = {name: tasks.create_task(one(name)) for name in names}
        yield started
        for task in started.values():
            task.cancel()


def selected(request: pytest.FixtureRequest, parameter: str) -> list[str]:
    """The values of this parameter among the tests that will run."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    return [call.params[parameter] for call in calls if call and parameter in call.params]


def needs(scenario: Scenario) -> None:
    """A skip at home, a failure in CI, if this machine cannot run it."""
    if why := cannot_run(scenario):
        if os.environ.get("CI"):
            pytest.fail(f"{scenario.name} cannot run: {why}", pytrace=False)
        pytest.skip(f"NOT TESTED HERE, {scenario.name}: {why}")
