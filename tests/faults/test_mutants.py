"""Every check can turn red: for each promise there is a way to break it, and the check that is named for it notices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from .mutants import mutants, noticed
from .runs import needs, selected, together
from .scenarios import scenarios
from .space import ROOT

MUTANTS = {mutant.name: mutant for mutant in mutants()}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, asyncio.Task[str]]]:
    folder = tmp_path_factory.mktemp("mutants")
    async with together(selected(request, "mutant"), lambda name: noticed(MUTANTS[name], folder / name.replace(" ", "-"))) as tasks:
        yield tasks


@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("mutant", MUTANTS)
async def test_the_named_check_notices_that(mutant: str, tried: dict[str, asyncio.Task[str]]) -> None:
    if MUTANTS[mutant].slow:
        needs(scenarios()[MUTANTS[mutant].by.split(": ")[0]])

    assert "" == await tried[mutant]


def test_a_patch_of_each_mutant_fits_the_product() -> None:
    """One that fits no more would end its process, and could look like a check that noticed."""
    for mutant in MUTANTS.values():
        for module, old, new in mutant.patches:
            text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
            assert old in text, f"{mutant.name}: {module} has no {old!r}"
            assert old != new


def test_each_invariant_that_the_reliability_page_claims_has_a_mutant() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    claimed = set(re.findall(r"^\| (I-[A-Z]\d) ", page, re.MULTILINE))

    assert claimed == {mutant.breaks for mutant in MUTANTS.values()}
