"""The short form of every scenario that has one. The long form, and a report to look at: make faults."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from .play import keep_seed, known_seeds, play
from .report import Result
from .runs import needs, selected, together
from .scenarios import scenarios
from .space import cannot_run

SCENARIOS = scenarios()
KEPT = Path("faults-report/red")  # ledgers and logs of what was red


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[Result]]]:
    folder = tmp_path_factory.mktemp("faults")

    async def one(name: str) -> Result:
        seed = next(iter(known_seeds(name)), random.randrange(1_000_000))  # what failed once comes first
        result = await play(SCENARIOS[name], seed, folder / name, short=True)
        if not result.ok:
            KEPT.mkdir(parents=True, exist_ok=True)
            shutil.copytree(result.folder, KEPT / f"{name}-{seed}", dirs_exist_ok=True)
        return result

    async with together([name for name in selected(request, "scenario") if not cannot_run(SCENARIOS[name])], one) as runs:
        yield runs


@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("scenario", [name for name, one in SCENARIOS.items() if one.short])
async def test_what_is_promised_holds_when(scenario: str, played: dict[str, asyncio.Task[Result]]) -> None:
    needs(SCENARIOS[scenario])
    result = await played[scenario]
    if not result.ok:
        keep_seed(scenario, result.seed)

    assert not result.problems, f"seed {result.seed}; ledgers and logs: {KEPT}"
