"""What a run collects: samples of contenders, taken in turn, and ratios between them, round by round."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from operator import truediv
from statistics import median
from time import monotonic

from . import procs, servers


@dataclass(frozen=True)
class Sample:
    """value: in the row's unit. client_us, server_us: CPU an event, microseconds; None where there is no such thing.

    problem: events lost or run twice: the sample is reported, and not averaged.
    """

    value: float
    client_us: float | None = None
    server_us: float | None = None
    durability: str = ""
    problem: str = ""


Take = Callable[[], Awaitable[Sample]]


@dataclass
class Row:
    measure: str
    contender: str
    unit: str
    samples: list[Sample | None] = field(default_factory=list)  # None: that round failed
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample and not sample.problem]

    def middle(self, of: Callable[[Sample], float | None]) -> float | None:
        values = [value for sample in self.good if (value := of(sample)) is not None]
        return median(values) if values else None


@dataclass(frozen=True)
class Ratio:
    """value: median of the rounds' ratios. higher: whether more is better. must, aim: None where nothing was promised."""

    text: str
    value: float
    low: float
    high: float
    must: float | None
    aim: float | None
    higher: bool

    @property
    def verdict(self) -> str:
        if self.must is None or self.aim is None:
            return ""
        for limit, word in ((self.aim, "aim met"), (self.must, "met")):
            if self.value >= limit if self.higher else self.value <= limit:
                return word
        return "MISSED"


@dataclass
class Bench:
    """rounds: how often each contender is measured. peers: which are. rows, ratios: what came of it."""

    rounds: int
    peers: frozenset[str]
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    async def compare(self, measure: str, unit: str, contenders: Mapping[str, Take]) -> None:
        """Each contender in turn, round after round: what disturbs the machine disturbs all of them."""
        rows = {name: Row(measure, name, unit) for name in contenders}
        self.rows += rows.values()
        for number in range(1, self.rounds + 1):
            for name, take in contenders.items():
                started = monotonic()
                sample = None
                try:
                    sample = await take()
                    said = f"{shown(sample.value)} {unit}"
                    if sample.problem:
                        said += f"  {sample.problem}: not counted"
                        rows[name].problems.append(sample.problem)
                except (procs.Failed, servers.Unavailable) as error:
                    said = f"failed: {error}"
                    rows[name].problems.append(str(error).partition("\n")[0])
                rows[name].samples.append(sample)
                print(f"  {measure:<28} {number}/{self.rounds}  {name:<26} {said}  [{monotonic() - started:.0f} s]", flush=True)

    def ratio(
        self,
        text: str,
        measure: str,
        of: str,
        to: str,
        must: float | None,
        aim: float | None,
        *,
        higher: bool = True,
        by: Callable[[float, float], float] = truediv,
    ) -> None:
        """of / to, or what `by` makes of them, paired by round. Left out, loudly, where one of them has no sample."""
        rows = {row.contender: row for row in self.rows if row.measure == measure}
        if of not in rows or to not in rows:
            return
        pairs = zip(rows[of].samples, rows[to].samples, strict=True)
        values = [by(one.value, two.value) for one, two in pairs if one and two and not one.problem and not two.problem]
        if not values:
            print(f"  no ratio: {text}: {of} or {to} has no good round", file=sys.stderr)
            return
        self.ratios.append(Ratio(text, median(values), min(values), max(values), must, aim, higher))

    def bound(self, text: str, measure: str, contender: str, must: float, aim: float) -> None:
        """A value that has a limit by itself: less is better."""
        [row] = [row for row in self.rows if (row.measure, row.contender) == (measure, contender)]
        if values := [sample.value for sample in row.good]:
            self.ratios.append(Ratio(text, median(values), min(values), max(values), must, aim, higher=False))


def shown(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
