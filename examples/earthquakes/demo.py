"""One week of earthquakes through four functions, on a real NATS server and real workers. `make demo` runs this.

Everything happens in .demo/, a copy of this project that the next run makes anew. Kill what you like meanwhile (a worker, an
executor, the zygote, nats-server): it is started again, and every total still comes out right.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, monotonic_ns

from quakes.model import region_of
from quakes.report import Report
from stage.console import Progress, bad, command, good, say
from stage.processes import Supervisor
from stage.tally import Expected, Tally, disorder, expected, quantile

from broker_faas import CloudEvent, connect
from broker_faas.cli.render import Column, duration, number, table
from broker_faas.client import Client
from broker_faas.embedded import find_running
from broker_faas.errors import FaasError

HERE = Path(__file__).parent
TOPIC, ALERTS = "usgs.earthquake", "/earthquakes/alert"  # the second: the source of what `alert` sends
BACKLOG, LIVE = "/usgs/backlog", "/usgs/live"  # sources: the same ids again, and different events
RATE = 200  # events a second of the second part
QUIET, STUCK = 1.0, 120.0  # seconds without progress: after which the bus is asked, after which it is an error


class Stuck(Exception):
    """Nothing moves although something should."""


class Busy(Stuck):
    """Another demo runs in the folder."""


@dataclass
class Demo:
    """project: the copy that runs. lines: of the file. rows: of the table: what, in the backlog, live. wrong: what differs."""

    project: Path
    lines: list[str]
    expected: Expected
    supervisor: Supervisor
    bus: Client
    tally: Tally
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def run(self) -> None:
        backlog = await self.publish_backlog()
        async with self.supervisor.worker():
            speed = await self.drain()
            dead = await self.dead_letters()
        self.mend()
        async with self.supervisor.worker():
            replayed = await self.replay() if dead else 0
            alerts = self.tally.ran("report", ALERTS)
            live = await self.publish_live()
            dead_later = await self.count_dead()
        self.total("published", (backlog, live), (self.expected.events, self.expected.events))
        for function in ("alert", "classify", "region"):
            ran = self.tally.ran(function, BACKLOG), self.tally.ran(function, LIVE)
            self.total(f"{function} ran", ran, (self.expected.events, self.expected.events))
        reported = alerts, self.tally.ran("report", ALERTS) - alerts
        self.total("report ran", reported, (self.expected.alerts, self.expected.alerts))
        retried = self.tally.retried("classify", BACKLOG), self.tally.retried("classify", LIVE)
        # A worker or server that is killed takes attempts with it: then fewer are seen than were counted.
        self.total("retried", retried, retried if self.supervisor.ended else (2 * self.expected.strange, 0))
        self.total("dead letters", (dead, dead_later), (self.expected.strange, 0))
        self.total("replayed", (replayed, None), (self.expected.strange, None))
        shown = len(Report(self.project / "data").alerts())
        self.total("alerts on the page", (shown, shown), (self.expected.alerts, self.expected.alerts))
        self.rows.append(("calls a second", number(speed), "-"))
        waited = [(note.at - note.published) / 1e9 for note in self.tally.of("alert", LIVE) if note.attempt == 1]
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            self.rows.append((f"publish to entry, {name}", "-", f"{quantile(waited, q) * 1000:.1f} ms" if waited else "-"))
        self.wrong += disorder(note for note in self.tally.notes if note.function == "region")

    # --- acts

    async def publish_backlog(self) -> int:
        progress, started = Progress("publish", len(self.lines)), monotonic()
        events = [self.event(number, BACKLOG) for number in range(len(self.lines))]
        count = await self.bus.publish_many(events, TOPIC)
        progress.end(f"{number(count)} events on disk in {duration(monotonic() - started)}; no worker runs yet")
        return count

    async def drain(self) -> float:
        """Calls a second, from the first to the last that is no retry."""
        progress = Progress("drain", 3 * len(self.lines) + self.expected.alerts)

        def done() -> int:
            return sum(self.tally.ran(name, BACKLOG) for name in ("alert", "classify", "region")) + self.tally.ran("report", ALERTS)

        await self.until(done, progress)
        first_attempts = [note.at for note in self.tally.notes if note.what == "entered" and note.attempt == 1]
        if not first_attempts:
            raise Stuck("no function ran")
        seconds = (max(first_attempts) - min(first_attempts)) / 1e9
        speed = done() / seconds
        progress.end(f"{number(done())} calls of 4 functions in {duration(seconds)}: {number(speed)} a second")
        return speed

    async def dead_letters(self) -> int:
        progress = Progress("failures", self.expected.strange)

        def given_up() -> int:
            return len({note.id for note in self.tally.of("classify", BACKLOG) if note.attempt == 3})

        await self.until(given_up, progress)
        count = await self.count_dead(self.expected.strange)
        progress.end(f"{count} events failed three times and are dead letters now\n")
        command("faas dead list --group", await self.supervisor.faas("dead", "list", "--group"))
        return count

    def mend(self) -> None:
        old, new = self.project / "quakes/classify.py", self.project / "mended/classify.py"
        change = difflib.unified_diff(old.read_text().splitlines(), new.read_text().splitlines(), n=0, lineterm="")
        say("mended   quakes/classify.py; another worker runs it\n")
        command("diff quakes/classify.py mended/classify.py", "\n".join(line for line in change if line[1:].startswith("KNOWN")))
        shutil.copy(new, old)

    async def replay(self) -> int:
        started = monotonic_ns()
        command("faas dead replay classify", await self.supervisor.faas("dead", "replay", "classify"))
        progress = Progress("replay", self.expected.strange)

        def done() -> int:
            return len({note.id for note in self.tally.of("classify", BACKLOG) if note.at > started})

        await self.until(done, progress)
        progress.end(f"{done()} dead letters ran again, in the mended function alone")
        return done()

    async def publish_live(self) -> int:
        """As the feed would: one at a time, RATE a second, whether earlier ones are acknowledged yet or not."""
        progress, started = Progress("live", 3 * len(self.lines) + self.expected.alerts), monotonic()
        reported = self.tally.ran("report", ALERTS)

        def done() -> int:
            return sum(self.tally.ran(name, LIVE) for name in ("alert", "classify", "region")) + self.tally.ran("report", ALERTS) - reported

        async with asyncio.TaskGroup() as publishes:
            for i in range(len(self.lines)):
                await asyncio.sleep(started + i / RATE - monotonic())
                publishes.create_task(self.bus.publish(TOPIC, self.event(i, LIVE)))
                if i % 20 == 0:
                    self.tally.read()
                    progress.show(done())
        rate = len(self.lines) / (monotonic() - started)
        await self.until(done, progress)
        progress.end(f"{number(done())} calls, of {number(len(self.lines))} events at {rate:.0f} a second")
        return len(self.lines)

    # --- parts

    def event(self, number: int, source: str) -> CloudEvent:
        """One line of the file. key: its region. published: CLOCK_MONOTONIC, the same in all processes of a machine."""
        feature = json.loads(self.lines[number])
        quake = feature["properties"]
        return CloudEvent(
            type=TOPIC,
            source=source,
            id=feature["id"],
            time=datetime.fromtimestamp(quake["time"] / 1000, UTC),
            subject=quake["place"],
            partitionkey=region_of(quake["place"]),
            sequence=f"{number + (len(self.lines) if source == LIVE else 0):08}",
            published=str(monotonic_ns()),
            data=self.lines[number].encode(),
            datacontenttype="application/json",
        )

    async def until(self, done: Callable[[], int], progress: Progress) -> None:
        """Until done() reaches the progress's total, or the bus has nothing left that could still run."""
        moved = asked = monotonic()
        while (count := done()) < progress.total:
            progress.show(count)
            if self.tally.read():
                moved = asked = monotonic()
            elif monotonic() - moved > STUCK:
                raise Stuck(f"{progress.title}: {number(count)} of {number(progress.total)}, and nothing moves")
            elif self.tally.notes and monotonic() - asked > QUIET:  # before the first call there may be no queue yet
                asked = monotonic()
                if await self.supervisor.idle() and not self.tally.read():
                    return
            await asyncio.sleep(0.03)

    async def count_dead(self, wanted: int = 0) -> int:
        """Dead letters on the bus; waits until there are `wanted`, or nothing is on its way to them."""
        while True:
            idle = await self.supervisor.idle()
            count = len(json.loads(await self.supervisor.faas("dead", "list", "-o", "json")))
            if idle or (wanted and count >= wanted):
                return count

    def total(self, what: str, counted: tuple[int, int | None], should: tuple[int, int | None]) -> None:
        """A row of the table, and whether it is what the file says. None: there is no such number."""
        backlog, live = ("-" if count is None else number(count) for count in counted)
        self.rows.append((what, backlog, live))
        for part, have, want in zip(("backlog", "live"), counted, should, strict=True):
            if have != want:
                self.wrong.append(f"{what}, {part}: {have}, but the file says {want}")


async def main() -> int:
    """The exit code: 0 if all totals are what a plain count over the file says, 1 if not."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    lines = (HERE / "earthquakes.jsonl").read_text().splitlines()
    project = prepared(HERE / ".demo")
    supervisor = Supervisor(project)
    async with supervisor.server() as url, connect(url, patience=60.0) as bus:
        demo = Demo(project, lines, expected(lines), supervisor, bus, Tally(project / "data/journal.tsv"))
        print(f"\n{number(len(lines))} events of the US Geological Survey, one real week, through 4 functions\n")
        await demo.run()
    return summary(demo)


def prepared(project: Path) -> Path:
    """A fresh copy of this project."""
    if find_running(project / ".faas"):
        raise Busy(f"another demo is running in {project}")
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    shutil.copy(HERE / "faas.toml", project)
    for package in ("quakes", "mended"):
        shutil.copytree(HERE / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    return project


def summary(demo: Demo) -> int:
    columns = [Column("", "what"), Column("backlog", "backlog", right=True), Column(f"live, {RATE}/s", "live", right=True)]
    rows = [dict(zip(("what", "backlog", "live"), row, strict=True)) for row in demo.rows]
    print("", *(f"  {line}" for line in table(rows, columns)), "", sep="\n")
    if demo.supervisor.ended:
        say(f"ended and started again meanwhile: {', '.join(demo.supervisor.ended)}")
    if demo.wrong:
        say(bad("these differ from a plain count over the file:"))
        print(*(f"    {line}" for line in demo.wrong[:20]), sep="\n")
    else:
        regions = len({note.key for note in demo.tally.notes if note.function == "region"})
        say(good(f"all totals agree with a plain count over the file; {regions} regions, each in order, none overlapped"))
    say(f"the report: {os.path.relpath(demo.project / 'data/report.html')}\n")
    return 1 if demo.wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\n\n  Stopped; nothing of it runs any more. What was published is on disk in .demo/; the next run starts anew.\n")
        sys.exit(130)
    except (FaasError, RuntimeError, Stuck) as error:
        print(f"\n  {bad('The demo failed:')} {error}")
        if not isinstance(error, Busy):
            print(f"  What the worker said is in {os.path.relpath(HERE / '.demo/worker.log')}.")
        print()
        sys.exit(1)
