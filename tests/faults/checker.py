"""The checker: ledgers -> what was promised and not kept. Pure; it asks nobody, and no process can talk it out of a finding.

Words as in docs/reliability.md. Acknowledged: publish() returned. Done: the function's own record of a success. Dead: in the dead stream.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .ledger import Ledgers, Start, place
from .order import Frozen, order

STEADY = 3.0  # seconds over which a rate is taken
RECOVERED = 0.9  # of the rate before a fault


BUS = re.compile(r"server|nodes|\bn\d\b|power|network|cut|disk|flip|damaged")  # faults of the bus, or of the way to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a scenario promises beyond "nothing is lost".

    functions: under test. hears: whether the n-th event of a producer goes to this function; all by default.
    ordered: functions that promise order per key. dies: ids that must become dead letters, of the functions in dying (none named: of all).
    frozen: where order has its exception. recovers: seconds after a fault in which the rate is what it was; 0: not looked at.
    damaged: ids that may be lost, for their bytes on disk were changed; never altered.
    duplicates: executions beyond the first that its faults may cost. acknowledged: at least so many, or the run says nothing.
    redelivery: at least one event must have come twice. gap: seconds that no function may be without a success after a fault is healed.
    """

    functions: frozenset[str]
    ordered: frozenset[str] = frozenset()
    hears: Callable[[str, int], bool] = field(default=lambda function, n: True)
    dies: frozenset[str] = frozenset()
    dying: frozenset[str] = frozenset()
    frozen: Sequence[Frozen] = ()
    recovers: float = 0.0
    damaged: frozenset[str] = frozenset()
    duplicates: int = 0
    acknowledged: int = 100
    redelivery: bool = False
    gap: float = 15.0


@dataclass(slots=True)
class Verdict:
    """problems: (check, what), all of them. The rest is what the report shows."""

    acknowledged: int = 0
    done: int = 0
    dead: int = 0
    lost: int = 0
    duplicates: int = 0
    recovered: int = 0
    redelivered: int = 0
    longest_gap: float = 0.0
    faults_planned: int = 0
    faults_observed: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def red(self) -> set[str]:
        """The names of the checks that found something."""
        return {check for check, _ in self.problems}


def check(run: Ledgers, expected: Expected) -> Verdict:
    verdict = Verdict()
    sent = {attempt.id: attempt for attempt in run.attempts}
    acked = {ack.id for ack in run.acks}
    done: dict[str, Counter[str]] = {function: Counter() for function in expected.functions}
    for end in run.ends:
        if end.how == "ok":
            done.setdefault(end.function, Counter())[end.id] += 1
    dead: dict[str, set[str]] = defaultdict(set)
    for letter in run.dead:
        dead[letter.function].add(letter.id)
    verdict.acknowledged = len(acked)
    verdict.done = sum(map(len, done.values()))
    verdict.dead = sum(map(len, dead.values()))
    verdict.duplicates = sum(n - 1 for ids in done.values() for n in ids.values())
    verdict.recovered = len({id for ids in done.values() for id in ids} - acked)
    verdict.redelivered = _redelivered(run.starts)
    found = verdict.problems
    for function in sorted(expected.functions):
        heard = {id for id in acked if expected.hears(function, place(id)[1])}
        lost = heard - done[function].keys() - dead[function] - expected.damaged
        verdict.lost += len(lost)
        found += [("lost", f"{function}: {line}") for line in _where(lost, set(done[function]) | dead[function])]
    found += _unexpected(run, sent)
    found += _stored(run, acked, expected)
    if verdict.duplicates > expected.duplicates:
        found.append(("duplicates", f"{verdict.duplicates} executions beyond the first; the faults explain {expected.duplicates}"))
    for function in sorted(expected.ordered):
        unheard = any(BUS.search(fault.what) for fault in run.faults)
        found += order(function, run, dead[function], expected.frozen, expected.damaged, unheard=unheard)
    found += _dead(run, sent, done, expected)
    verdict.longest_gap, gaps = _gaps(run, expected)
    found += gaps
    if expected.recovers:
        found += _recovery(run, expected.recovers)
    planned = [fault.what for fault in run.faults if fault.kind == "planned"]
    observed = [fault.what for fault in run.faults if fault.kind == "begin"]
    verdict.faults_planned, verdict.faults_observed = len(planned), len(observed)
    found += _vacuous(verdict, Counter(planned) - Counter(observed), expected)
    return verdict


def _where(lost: Iterable[str], known: set[str]) -> list[str]:
    """Lost events by producer: the middle is certain loss, for events before and after them are there (Jepsen's nats test)."""
    there: dict[int, list[int]] = defaultdict(list)
    for id in known:
        producer, n = place(id)
        there[producer].append(n)
    parts: dict[tuple[int, str], list[int]] = defaultdict(list)
    for id in lost:
        producer, n = place(id)
        seen = there[producer]
        part = "all" if not seen else "prefix" if n < min(seen) else "postfix" if n > max(seen) else "middle"
        parts[producer, part].append(n)
    return [f"{len(ns)} acknowledged of producer {p} ({part}): {sorted(ns)[:10]}" for (p, part), ns in sorted(parts.items())]


def _redelivered(starts: list[Start]) -> int:
    return sum(n - 1 for n in Counter((start.id, start.function) for start in starts).values())


def _unexpected(run: Ledgers, sent: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    shas = {attempt.id: attempt.sha for attempt in run.attempts}
    seen = [(start.id, start.sha, start.function) for start in run.starts] + [(stored.id, stored.sha, "the bus") for stored in run.stored]
    for where in sorted({where for _, _, where in seen}):
        if strange := sorted({id for id, _, at in seen if at == where and id not in sent}):
            yield "unexpected", f"{where} has what nobody published: {strange[:10]}"
        if other := sorted({id for id, sha, at in seen if at == where and sha != shas.get(id, sha)}):
            yield "altered", f"{where} has other data than was published: {other[:10]}"


def _stored(run: Ledgers, acked: set[str], expected: Expected) -> Iterable[tuple[str, str]]:
    """What the bus itself holds; a run that did not dump it, or freed it meanwhile, has nothing here."""
    if not run.stored:
        return
    copies = Counter((stored.id, stored.topic, stored.position) for stored in run.stored)
    if twice := [f"{id} {position}".strip() for (id, _, position), n in copies.items() if n > 1]:
        yield "stored twice", f"{len(twice)} events are on the bus more than once: {sorted(twice)[:10]}"
    there = {stored.id for stored in run.stored}
    if missing := acked - there - expected.damaged:
        for line in _where(missing, there):
            yield "lost", f"bus: {line}"


def _dead(run: Ledgers, sent: Mapping[str, object], done: Mapping[str, Mapping[str, int]], expected: Expected) -> Iterable[tuple[str, str]]:
    shas = {attempt.id: attempt.sha for attempt in run.attempts}
    letters = Counter((letter.id, letter.function) for letter in run.dead)
    dying = expected.dying or expected.functions
    wrong: dict[str, list[str]] = defaultdict(list)
    for (id, function), n in letters.items():
        if n > 1:
            wrong[f"{function}: more than one dead letter of"].append(id)
        if id not in expected.dies or function not in dying:
            wrong[f"{function}: dead, and nothing was wrong with them:"].append(id)
        if id in done.get(function, {}):
            wrong[f"{function}: done and dead:"].append(id)
    for letter in run.dead:
        if letter.sha != shas.get(letter.id):
            wrong[f"{letter.function}: dead letters that do not hold what was published:"].append(letter.id)
        for name in ("topic", "attempts", "first", "last", "reason", "version", "fingerprint"):
            if not letter.fields.get(name):
                wrong[f"{letter.function}: dead letters without {name}:"].append(letter.id)
    acked = {ack.id for ack in run.acks}
    for function in sorted(dying):
        alive = expected.dies & acked - {letter.id for letter in run.dead if letter.function == function}
        wrong[f"{function}: must fail, and have no dead letter:"] += sorted(alive)
    for what, ids in wrong.items():
        if ids:
            yield "dead letters", f"{what} {len(ids)} events: {ids[:10]}"


def _gaps(run: Ledgers, expected: Expected) -> tuple[float, list[tuple[str, str]]]:
    """The longest time without a success while producers published; and whether work went on soon after every fault was healed."""
    oks = [end.t for end in run.ends if end.how == "ok"]
    if not oks or not run.attempts:
        return 0.0, [("liveness", "no function ever succeeded")]
    last = max(ack.t for ack in run.acks) if run.acks else 0.0
    longest = max((b - a for a, b in pairwise(oks) if b <= last), default=0.0)
    problems = []
    for fault in run.faults:
        if fault.kind == "heal":
            after = [t for t in oks if t > fault.t]
            published = any(attempt.t > fault.t for attempt in run.attempts)
            wait = after[0] - fault.t if after else float("inf")
            if published and wait > expected.gap:
                problems.append(("liveness", f"{wait:.1f} s without a success after {fault.what!r} was healed"))
    return longest, problems


def _recovery(run: Ledgers, within: float) -> Iterable[tuple[str, str]]:
    """Whether, within so many seconds after each fault, as much succeeds as before it. Looks at faults with steady time before and after.

    Before it: no more than on the average, for producers hurry when they are behind. Afterwards: in some STEADY seconds; that it goes on
    from there is for the gaps to say.
    """
    oks = [end.t for end in run.ends if end.how == "ok"]
    last = max((attempt.t for attempt in run.attempts), default=0.0)
    first = min((attempt.t for attempt in run.attempts), default=0.0)
    planned: dict[str, float] = {}
    judged = 0
    average = sum(first <= ok < last for ok in oks) / max(0.001, last - first)
    for fault in run.faults:
        if fault.kind == "planned":
            planned[fault.what] = fault.t
        elif fault.kind == "heal":
            began, back = planned.get(fault.what, fault.t), fault.t + within
            others = [other.t for other in run.faults if other.what != fault.what or not began <= other.t <= fault.t]
            if began - STEADY < first or back + STEADY > last or any(began - STEADY < t < back + STEADY for t in others):
                continue
            judged += 1
            before = min(average, sum(began - STEADY <= ok < began for ok in oks) / STEADY)
            windows = [fault.t + n / 2 for n in range(int(2 * within) + 1)]
            after = max(sum(t <= ok < t + STEADY for ok in oks) / STEADY for t in windows)
            if after < RECOVERED * before:
                yield (
                    "recovery",
                    f"{within:g} s after {fault.what!r} was healed {after:.0f} a second at most succeeded; before it {before:.0f}",
                )
    if not judged:
        yield "vacuous", "recovery was to be looked at, and no fault had a steady rate before and time after it"


def _vacuous(verdict: Verdict, missed: Counter[str], expected: Expected) -> Iterable[tuple[str, str]]:
    """A run in which nothing happened proves nothing."""
    if verdict.acknowledged < expected.acknowledged:
        yield "vacuous", f"{verdict.acknowledged} events were acknowledged; it takes {expected.acknowledged} to say something"
    for what in missed:
        yield "vacuous", f"planned and never seen to happen: {what}"
    if expected.redelivery and not verdict.redelivered:
        yield "vacuous", "no event was delivered a second time: the faults hit nothing"
