"""`python -m tests.faults.inner SCENARIO SEED FOLDER short|long [QUIET]`: one run of one scenario, in namespaces of its own (space.py).

FOLDER gets the ledgers, the logs and verdict.json; the system under test lives on a mount of its own in it, which ends with this process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
import traceback
from pathlib import Path

from broker_faas.service import first

from . import brokers, checker, network
from .afterwards import drain, look_for_secrets, quiet
from .dump import dump
from .ledger import Dead, Stored, place, read
from .run import PROJECT, Run
from .scenario import Scenario
from .system import load, system


async def play(scenario: Scenario, seed: int, folder: Path, *, short: bool) -> checker.Verdict:
    network.up()
    run = Run(scenario, seed, folder, short=short)
    stored: list[Stored] = []
    dead: list[Dead] = []
    try:
        async with run.until_over, system(run):
            async with load(run):
                await run.pause(1, 2)
                if run.broker:  # what goes wrong before the first event is for another test
                    await brokers.flows(run)
                await scenario.harm(run)
                look_for_secrets(run)
                await run.pause(1, 2)
            await quiet(run)
            stored, dead, quarantined = await dump(run.url.split(","), PROJECT, len(run.damaged))
            if run.broker:
                acked = {ack.id for ack in read(folder).acks}
                brokers.judge(run, stored, quarantined, await run.broker.holds(), acked)
            await drain(run)
    except Exception as error:  # red; and what the ledgers say of it is looked at all the same: a server may not come back at all
        traceback.print_exc()
        run.problems.append(("run", f"it broke off, see run.log: {first(error)!r}"))
    ledgers = read(folder)._replace(stored=stored if scenario.keep >= 86400 else [], dead=dead)
    expected = checker.Expected(
        functions=frozenset(scenario.functions),
        ordered=frozenset(scenario.ordered),
        hears=scenario.hears,
        dies=frozenset(id for id in (attempt.id for attempt in ledgers.attempts) if scenario.dies(place(id)[1]) or scenario.doomed(id)),
        dying=frozenset(scenario.dying),
        frozen=run.frozen,
        recovers=scenario.recovers,
        damaged=frozenset(run.damaged),
        duplicates=run.duplicates,
        acknowledged=scenario.acknowledged,
        redelivery=scenario.redelivery,
        gap=scenario.gap,
    )
    verdict = checker.check(ledgers, expected)
    verdict.problems += [*run.problems, *scenario.after(ledgers)]
    (folder / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict) | {"peak": run.peak, "notes": run.notes}))
    return verdict


def main() -> None:
    """Exit status: 0 green, 1 red; what went wrong with the run itself is a traceback, and red too."""
    name, seed, folder, how, *quiet = sys.argv[1:]
    for client in ("broker_faas", "aiokafka", "aiormq"):
        logging.getLogger(client).setLevel(logging.CRITICAL)  # producers lose their connections all the time
    from .scenarios import find

    scenario = find(name)
    if quiet:
        scenario = dataclasses.replace(scenario, quiet=float(quiet[0]))
    verdict = asyncio.run(play(scenario, int(seed), Path(folder), short=how == "short"))
    for check, what in verdict.problems:
        print(f"{check}: {what}")
    sys.exit(not verdict.ok)


if __name__ == "__main__":
    main()
