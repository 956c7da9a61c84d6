"""Mutants: the product with one promise broken, each with the check that must notice. A check that no mutant can turn red is none.

A mutant is a patch that is applied while the modules are imported (hook/sitecustomize.py); nothing on disk changes. What notices is
a test of this suite, or a check of the checker in a scenario.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .play import Patch, play
from .scenarios import find
from .space import HOOK, ROOT

LIMIT = 120.0  # seconds for a test


@dataclass(frozen=True, slots=True)
class Mutant:
    """breaks: the invariant (docs/reliability.md).

    by: pytest node id that must fail, or `SCENARIO: check or check`, of which one must turn red.
    quiet: as a scenario's, for a product that never gets everything done; not for a check that turns red as well when a run ends too
    early, like `lost`.
    """

    name: str
    breaks: str
    by: str
    patches: tuple[Patch, ...]
    quiet: float | None = None

    @property
    def slow(self) -> bool:
        """Takes a run of the whole system."""
        return not self.by.startswith("tests/")


def mutants() -> list[Mutant]:
    table = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())
    return [
        Mutant(one["name"], one["breaks"], one["by"], tuple((module, old, new) for module, old, new in one["patches"]), one.get("quiet"))
        for one in table["mutant"]
    ]


async def noticed(mutant: Mutant, folder: Path, *, seed: int = 1) -> str:
    """ "" if the named check turned red; else what happened instead."""
    folder.mkdir(parents=True, exist_ok=True)
    return await (_by_scenario if mutant.slow else _by_test)(mutant, folder, seed)


async def _by_scenario(mutant: Mutant, folder: Path, seed: int) -> str:
    name, check = mutant.by.split(": ")
    result = await play(find(name), seed, folder / "run", short=True, patches=mutant.patches, quiet=mutant.quiet)
    if result.red & {*check.split(" or ")}:
        return ""
    return f"{name} is {'green' if result.ok else f'red by {sorted(result.red)}'}, and {check!r} is not red"


async def _by_test(mutant: Mutant, folder: Path, seed: int) -> str:
    patches = folder / "patches.json"
    patches.write_text(json.dumps(mutant.patches))
    env = os.environ | {"PYTHON_FAULTS_PATCHES": str(patches.absolute()), "PYTHONPATH": f"{ROOT}:{HOOK}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", mutant.by]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True
    )
    try:
        async with asyncio.timeout(LIMIT):
            said = (await process.communicate())[0].decode("utf-8", "replace")
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    (folder / "pytest.log").write_text(said)
    if process.returncode == 1 and f"FAILED {mutant.by}" in said:
        return ""
    return f"pytest ended with {process.returncode}, and {mutant.by} did not fail: {said[-600:]}"
