"""`faas dead`: what failed for good, why, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from ..bus import Queue, Record
from .connection import Place, collect, find, url_option
from .describe import event_row
from .exit import Failed
from .render import Column, Progress, age, clean, confirm, count, moment, number, output_option, show, size

if TYPE_CHECKING:
    from ..buses.dead import DeadLetter
    from ..buses.nats import JetStreamBus

PUBLISH = "publish"  # the queue of delayed publishes, which is no function's


@click.group()
def dead() -> None:
    """Dead letters: events whose function failed for good, whole, with the reason.

    \b
    Example:
      faas dead list --group
      faas dead show 12
      faas dead replay --group 3f9a1c2e
    """


# --- look ---------------------------------------------------------------------------------------------------


@dead.command("list")
@click.argument("function", required=False)
@click.option("--group", is_flag=True, help="One line a cause: its fingerprint is for 'replay' and 'purge'.")
@click.option("-n", "--number", "n", type=click.IntRange(1), default=100, show_default=True, help="The latest so many.")
@output_option
@url_option
def list_(function: str | None, group: bool, n: int, output: str, url: str | None) -> None:
    """List dead letters, of FUNCTION or all, the latest last.

    \b
    Example:
      faas dead list
      faas dead list --group
      faas dead list reserve -o json
    """
    place = find(url)
    prefix = f"{place.project.project}--"

    async def letters(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.dead import read_dead

        found: deque[DeadLetter] = deque(maxlen=n)
        if names := await _queues(bus, prefix, function):
            async for letter in read_dead(bus.connection, names):
                found.append(letter)
        return [asdict(letter) | {"function": letter.queue.removeprefix(prefix)} for letter in found]

    async def groups(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.dead import group_dead

        names = await _queues(bus, prefix, function)
        found = await group_dead(bus.connection, names) if names else []
        rows = [asdict(one) | {"function": one.queue.removeprefix(prefix), "reason": one.sample.reason} for one in found]
        return rows[:n]

    if group:
        columns = [
            Column("group", "fingerprint"),
            Column("function", "function"),
            Column("count", "count", number, right=True),
            Column("first", "first", age),
            Column("last", "last", age),
            Column("reason", "reason"),
        ]
    else:
        columns = [
            Column("id", "seq", right=True),
            Column("function", "function"),
            Column("failed", "last", age),
            Column("attempts", "attempts", right=True),
            Column("topic", "topic"),
            Column("reason", "reason"),
        ]
    rows = collect(place, groups if group else letters)
    show(rows, columns, output, "No dead letters" + (f" of {function}." if function else "."))
    if rows and output == "table" and sys.stdout.isatty():
        click.echo("\n'faas dead show ID' shows one, 'faas dead replay' sends them to their function again.", err=True)


@dead.command("show")
@click.argument("id", type=int)
@output_option
@url_option
def show_(id: int, output: str, url: str | None) -> None:
    """One dead letter: why it failed, where, and the event itself.

    \b
    Example:
      faas dead show 12
      faas dead show 12 -o json
    """
    place = find(url)

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.dead import show_dead

        letter, delivery = await show_dead(bus, id)
        return [asdict(letter) | {"event": event_row(delivery).get("event"), "raw": delivery.data}]

    rows = collect(place, read)
    if not rows:
        raise Failed(f"there is no dead letter {id}; this bus has never been used.")
    letter = rows[0]
    raw = letter.pop("raw")
    if output == "json":
        return click.echo(json.dumps(letter, indent=2, ensure_ascii=False))
    said = {
        "dead letter": letter["seq"],
        "queue": letter["queue"],
        "reason": letter["reason"],
        "group": letter["fingerprint"],
        "attempts": letter["attempts"],
        "failed": f"{moment(letter['last'])} ({age(letter['last'])})",
        "stored": f"{moment(letter['first'])} ({age(letter['first'])})",
        "topic": letter["topic"],
        "code": letter["version"] or "-",
    }
    for name, value in said.items():
        click.echo(f"{name:<12} {clean(str(value))}")
    if letter["detail"]:
        click.echo("\n" + "\n".join(clean(line) for line in letter["detail"].rstrip().splitlines()))
    click.echo("\nevent")
    if letter["event"] is None:
        click.echo(f"  no CloudEvent: {size(len(raw))} of data, beginning with {clean(repr(raw[:200]))}")
    else:
        for line in json.dumps(letter["event"], indent=2, ensure_ascii=False).splitlines():
            click.echo(f"  {clean(line)}")


# --- act ----------------------------------------------------------------------------------------------------


@dead.command()
@click.argument("which", nargs=-1, metavar="[ID… | FUNCTION]")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--group", metavar="GROUP", help="Those of one cause, of 'faas dead list --group'.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N a second.")
@click.option("--dry-run", is_flag=True, help="Say what would be replayed, and do nothing.")
@url_option
def replay(which: tuple[str, ...], everything: bool, group: str | None, rate: float | None, dry_run: bool, url: str | None) -> None:
    """Send dead letters to the function that failed.

    To no other, and as a first attempt. Each leaves the list when its replay is stored. What fails again is a new dead letter.

    \b
    Example:
      faas dead replay 12 13
      faas dead replay reserve --rate 10
      faas dead replay --group 3f9a1c2e --dry-run
    """
    asyncio.run(_replay(find(url), Choice.of(which, everything, group), rate, dry_run))


@dead.command()
@click.argument("which", nargs=-1, metavar="[ID… | FUNCTION]")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--group", metavar="GROUP", help="Those of one cause, of 'faas dead list --group'.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def purge(which: tuple[str, ...], everything: bool, group: str | None, yes: bool, url: str | None) -> None:
    """Discard dead letters. The events are gone then.

    \b
    Example:
      faas dead purge 12
      faas dead purge reserve --yes
    """
    asyncio.run(_purge(find(url), Choice.of(which, everything, group), yes))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant: some ids, or all of a function or of all functions, of one group or of any."""

    ids: frozenset[int]
    function: str | None
    group: str | None

    @classmethod
    def of(cls, which: Sequence[str], everything: bool, group: str | None) -> Choice:
        """Raises click.UsageError for a choice that is none."""
        ids = frozenset(int(one) for one in which if one.isdecimal())
        names = [one for one in which if not one.isdecimal()]
        if len(names) > 1 or (names and ids) or (ids and (group or everything)) or (names and everything):
            raise click.UsageError("name ids, or one function, or --all; and --group alone or with a function.")
        if not (ids or names or group or everything):
            raise click.UsageError("which ones? Name ids, a function, --group GROUP or --all.")
        return cls(ids, names[0] if names else None, group)

    async def letters(self, bus: JetStreamBus, prefix: str) -> dict[str, list[DeadLetter]]:
        """By queue. Raises Failed if there are none, or if one of the ids is not there."""
        from ..buses.dead import read_dead, show_dead

        if self.ids:
            chosen = [(await show_dead(bus, seq))[0] for seq in sorted(self.ids)]
        else:
            names = await _queues(bus, prefix, self.function)
            chosen = [one async for one in read_dead(bus.connection, names) if self.group in (None, one.fingerprint)] if names else []
        found: dict[str, list[DeadLetter]] = {}
        for letter in chosen:
            found.setdefault(letter.queue, []).append(letter)
        if not found:
            of = f" of {self.function}" if self.function else ""
            of += f" in group {self.group}" if self.group else ""
            raise Failed(f"there are no dead letters{of}. 'faas dead list --group' shows those there are.")
        return found


async def _replay(place: Place, choice: Choice, rate: float | None, dry_run: bool) -> None:
    from ..buses.dead import replay
    from ..buses.listing import list_queues

    prefix = f"{place.project.project}--"
    async with place.open() as bus:
        chosen = await choice.letters(bus, prefix)
        if dry_run:
            for queue, letters in chosen.items():
                click.echo(f"would replay {count(len(letters), 'dead letter')} to {queue.removeprefix(prefix)}")
            return
        queues = {name: Queue(row.name, row.topics, row.partitions) for row in await list_queues(bus) for name in (row.name, *row.former)}
        progress = Progress("dead letters", sum(map(len, chosen.values())))
        for name, letters in chosen.items():
            to = queues.get(name, Queue(name, ()))
            sent = await replay(bus.connection, _Counted(bus, progress), to, seqs=[letter.seq for letter in letters], rate=rate)
            progress.clear()
            click.echo(f"replayed {count(sent, 'dead letter')} to {to.name.removeprefix(prefix)}")


async def _purge(place: Place, choice: Choice, yes: bool) -> None:
    from ..buses.dead import purge_dead

    prefix = f"{place.project.project}--"
    async with place.open() as bus:
        chosen = await choice.letters(bus, prefix)
        for queue, letters in chosen.items():
            latest = age(max(letter.last for letter in letters))
            click.echo(f"{queue.removeprefix(prefix)}: {count(len(letters), 'dead letter')}, the latest failed {latest}")
        confirm(f"Discard {count(sum(map(len, chosen.values())), 'dead letter')} for good?", yes)
        gone = 0
        for queue, letters in chosen.items():
            gone += await purge_dead(bus.connection, [queue], seqs=[letter.seq for letter in letters])
    click.echo(f"discarded {count(gone, 'dead letter')}")


async def _queues(bus: JetStreamBus, prefix: str, function: str | None) -> list[str]:
    """Queues with dead letters: of the project, or of one function, under the names that it had before, too."""
    from ..buses.consumers import find, former_names
    from ..buses.store import subjects
    from ..layout import DEAD, RETRIES

    there = [subject.removeprefix("dead.") for subject in await subjects(bus, DEAD, "dead.>")]
    if function is None:
        return [name for name in there if name.startswith(prefix) or name == PUBLISH]
    own = await find(bus, RETRIES, f"{prefix}{function}")
    names = [f"{prefix}{function}", *(former_names(f"{prefix}{function}", [own]) if own else ())]
    return [name for name in there if name in names]


class _Counted:
    """A bus that tells how far a replay is."""

    def __init__(self, bus: JetStreamBus, progress: Progress) -> None:
        self._bus = bus
        self._progress = progress
        self.subscribe, self.lag = bus.subscribe, bus.lag

    async def publish(self, records: Sequence[Record], *, output: bool = False, last: dict[str, int] | None = None) -> int:
        duplicates = await self._bus.publish(records, output=output, last=last)
        self._progress.add(len(records))
        return duplicates
