"""`make faults`: every scenario in its long form, and a report.

SCENARIO=F21,F22 SEED=7 replays; JOBS=3 runs at once; SHORT=1 is the short form.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import time
from pathlib import Path

from . import report
from .play import SEEDS, keep_seed, known_seeds, play
from .report import Result
from .scenario import Scenario
from .scenarios import find, scenarios
from .space import cannot_run

REPORT = Path("faults-report")


async def main(options: dict[str, str]) -> int:
    named = dict.fromkeys(options["SCENARIO"].split(",")) if options.get("SCENARIO") else scenarios()
    chosen = [find(name) for name in named]
    short = bool(options.get("SHORT"))
    shutil.rmtree(REPORT, ignore_errors=True)
    skipped = [(scenario, why) for scenario in chosen if (why := cannot_run(scenario))]
    for scenario, why in skipped:
        print(f"{scenario.name:10} NOT RUN HERE: {why}", flush=True)
    todo: list[tuple[Scenario, int]] = []
    first = int(options["SEED"]) if options.get("SEED") else random.SystemRandom().randrange(1_000_000)
    for scenario in chosen:
        if not cannot_run(scenario):
            old = [] if options.get("SEED") else known_seeds(scenario.name)  # what failed once comes first
            runs = 1 if short or options.get("SEED") else scenario.repeat
            todo += [(scenario, seed) for seed in [*old, *range(first, first + runs)]]
    room = asyncio.Semaphore(int(options.get("JOBS") or 3))
    results: list[Result] = []
    began = time.monotonic()

    async def one(scenario: Scenario, seed: int) -> None:
        async with room:
            result = await play(scenario, seed, REPORT / "runs" / f"{scenario.name}-{seed}", short=short)
        results.append(result)
        seen, state = result.verdict, "green" if result.ok else "RED  "
        print(f"{scenario.name:10} seed {seed:<7} {state} {result.seconds:5.0f} s", end="")
        if seen:
            numbers = f"{seen['acknowledged']:7,} acknowledged, {seen['lost']} lost, {seen['duplicates']:4} twice"
            print(f"{numbers}, longest gap {seen['longest_gap']:4.1f} s", end="")
        print(flush=True)
        for check, what in result.problems[:8]:
            print(f"           {check}: {what[:240]}", flush=True)
        if not result.ok:
            keep_seed(scenario.name, seed)

    print(f"{len(todo)} runs, first seed {first}", flush=True)
    async with asyncio.TaskGroup() as tasks:
        for scenario, seed in todo:
            if short or not scenario.alone:
                tasks.create_task(one(scenario, seed))
    for scenario, seed in todo:
        if scenario.alone and not short:
            await one(scenario, seed)
    results.sort(key=lambda result: (chosen.index(result.scenario), result.seed))
    red = [result for result in results if not result.ok]
    minutes, form = (time.monotonic() - began) / 60, "short" if short else "long"
    title = f"{len(results)} runs of {len(chosen)} scenarios in {minutes:.0f} minutes, {form} form, first seed {first}"
    report.write(results, skipped, REPORT, title)
    print(f"{title}: {len(red)} red. {REPORT / 'index.html'}")
    if red:
        print(f"Their ledgers are in {REPORT / 'runs'}; their seeds in {SEEDS.name} come first next time.")
    return 1 if red or (skipped and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument))))
