"""What the clock sets off: a report each night, and a look at the disk every five seconds."""

import csv
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from broker_faas import CloudEvent, Context, function


@dataclass
class Due:
    report: str


@function(on="reports.due", ordered=True, timeout=600)
def report(due: Due, ctx: Context) -> None:
    """ordered: all fires of a schedule have one key, so a night never overlaps the one before."""
    day = (ctx.event.time or "")[:10]  # when it was due, however late this runs
    totals: dict[str, float] = defaultdict(float)
    with open(f"{due.report}.csv", newline="") as file:
        for row in csv.DictReader(file):
            totals[row["item"]] += float(row["amount"])
    lines = [f"{item:<8} {total:>8.2f}" for item, total in sorted(totals.items())]
    Path(f"{due.report}-{day}.txt").write_text("\n".join(lines) + "\n")  # run twice, it is the same file
    print(f"{due.report} of {day}: {sum(totals.values()):.2f}")


@function(on="disk.check", timeout=5)
def disk(event: CloudEvent) -> None:
    """A plain function: it may block."""
    usage = shutil.disk_usage(".")
    print(f"{100 * usage.used / usage.total:.0f} % of the disk is used")
