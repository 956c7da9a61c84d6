"""What single scenarios check beyond checker.py, on the same ledgers, and as purely. Each yields (check, what)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from .ledger import Ledgers

Problems = Iterable[tuple[str, str]]


def reasons(run: Ledgers, function: str, expected: Mapping[str, tuple[str, int]], kind: Callable[[str], str]) -> Problems:
    """expected: kind of deed → what the reason of its dead letter looks like (a regular expression, from its start), and the attempts."""
    seen: dict[str, int] = defaultdict(int)
    for letter in run.dead:
        if letter.function == function:
            pattern, attempts = expected[kind(letter.id)]
            seen[kind(letter.id)] += 1
            reason, counted = letter.fields.get("reason", ""), letter.fields.get("attempts", "")
            if not re.match(pattern, reason):
                yield "reasons", f"{function}: {letter.id} ({kind(letter.id)}) died of {reason!r}; {pattern!r} was to be"
            if counted != str(attempts):
                yield (
                    "reasons",
                    f"{function}: {letter.id} ({kind(letter.id)}) died after {counted} attempts; {attempts} were to be",
                )
    for missing in expected.keys() - seen.keys():
        yield "vacuous", f"{function}: nothing died of {missing}"


def uncharged(run: Ledgers, dies: Callable[[str], bool]) -> Problems:
    """Nobody is charged for a neighbour: what nothing is wrong with never sees a second attempt."""
    charged = sorted({f"{start.id} of {start.function}" for start in run.starts if start.attempt > 1 and not dies(start.id)})
    if charged:
        yield "charged", f"{len(charged)} events were charged an attempt that was not theirs: {charged[:10]}"


def leaves(run: Ledgers, seconds: float) -> Problems:
    """An event that always fails is a dead letter so soon after its first run (I-P1)."""
    first: dict[tuple[str, str], float] = {}
    last: dict[tuple[str, str], float] = {}
    for start in run.starts:
        first.setdefault((start.id, start.function), start.t)
        last[start.id, start.function] = start.t
    for letter in run.dead:
        took = last.get((letter.id, letter.function), 0.0) - first.get((letter.id, letter.function), 0.0)
        if took > seconds:
            yield "leaves", f"{letter.function}: {letter.id} was run for {took:.1f} s before it was given up; {seconds:g} are allowed"


def prompt(run: Ledgers, function: str, seconds: float, *, among: Callable[[str], bool] = lambda key: True) -> Problems:
    """99 of 100 events of a function, of the keys among those, begin within so many seconds of their acknowledgement."""
    acked = {ack.id: ack.t for ack in run.acks}
    waits: dict[str, float] = {}
    for start in run.starts:
        if start.function == function and among(start.key) and start.id in acked:
            waits.setdefault(start.id, start.t - acked[start.id])
    if not waits:
        yield "vacuous", f"{function}: none of the events that were to be prompt ran"
        return
    wait = sorted(waits.values())[int(len(waits) * 0.99)]
    if wait > seconds:
        yield "prompt", f"{function}: 1 in 100 waited {wait:.1f} s or more; {seconds:g} are allowed"
