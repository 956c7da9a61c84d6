"""Plays one run of a scenario in a space of its own, and keeps what it left: ledgers and logs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from .report import Result
from .scenario import Scenario
from .space import HOOK, ROOT, inside

SEEDS = Path(__file__).parent / "seeds.txt"  # `scenario seed` lines of runs that were red once
LONGEST = 3600.0  # seconds; a run that takes longer hangs
Patch = tuple[str, str, str]


async def play(
    scenario: Scenario, seed: int, folder: Path, *, short: bool, patches: Sequence[Patch] = (), quiet: float | None = None
) -> Result:
    """patches, quiet: of the product and instead of the scenario's, for a mutant."""
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    all_patches = [*patches, *scenario.patches]
    if (lease := scenario.lease_of(short=short)) != 30.0:
        all_patches.append(("broker_faas.workers.host", "ack_wait: float = 30.0", f"ack_wait: float = {lease}"))
    (folder / "patches.json").write_text(json.dumps(all_patches))
    began = time.monotonic()
    how = "short" if short else "long"
    # The producers are the product's own client: it is patched as well.
    env = {"PYTHON_FAULTS_PATCHES": str(folder / "patches.json"), "PYTHONPATH": f"{ROOT}:{HOOK}"}
    arguments = [scenario.name, str(seed), str(folder), how, *([] if quiet is None else [str(quiet)])]
    await inside(["tests.faults.inner", *arguments], folder, LONGEST, env)
    verdict = folder / "verdict.json"
    for image in folder.glob("*.img"):
        image.unlink()
    return Result(scenario, seed, folder, time.monotonic() - began, json.loads(verdict.read_text()) if verdict.exists() else {})


def known_seeds(name: str) -> list[int]:
    lines = SEEDS.read_text().splitlines() if SEEDS.exists() else []
    return [int(seed) for line in lines for scenario, seed in [line.split()] if scenario == name]


def keep_seed(name: str, seed: int) -> None:
    if seed not in known_seeds(name):
        with open(SEEDS, "a") as file:
            file.write(f"{name} {seed}\n")
