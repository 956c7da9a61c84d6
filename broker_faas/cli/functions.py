"""`faas functions`: what the code has, and what the bus has for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .connection import NO_STREAM, Place, find, undurable, url_option
from .render import Column, confirm, count, number, output_option, show

if TYPE_CHECKING:
    from ..buses.changes import Change
    from ..buses.listing import QueueRow
    from ..buses.nats import JetStreamBus
    from ..config import Config
    from ..function import Spec

COUNTERS = ("accepted", "done", "dead", "discarded", "handed_back", "held")


@click.group(invoke_without_command=True)
@output_option
@url_option
@click.pass_context
def functions(ctx: click.Context, output: str, url: str | None) -> None:
    """List the project's functions and their queues.

    waiting, in progress, scheduled: events that are not settled. The counters come from the workers that run now, since they started:
    accepted = done + dead + discarded + handed back + held.

    \b
    Example:
      faas functions
      faas functions -o json
      faas functions sync
    """
    if ctx.invoked_subcommand:
        return
    place = find(url)
    rows = asyncio.run(_list(place))
    columns = [
        Column("function", "function"),
        Column("topics", "topics", ", ".join),
        Column("version", "version"),
        Column("waiting", "waiting", number, right=True),
        Column("in progress", "in_progress", number, right=True),
        Column("scheduled", "scheduled", number, right=True),
        Column("dead letters", "dead_letters", number, right=True),
    ]
    if any("accepted" in row for row in rows):
        columns += [Column(name.replace("_", " "), name, number, right=True) for name in COUNTERS]
    if any(row["note"] for row in rows):
        columns.append(Column("note", "note"))
    modules = ", ".join(place.project.modules)
    show(rows, columns, output, f"No functions in {modules}, and no queues on the bus. Mark a function with @function(on=…).")


@functions.command()
@url_option
def sync(url: str | None) -> None:
    """Make the queues of new functions, and bring changed ones in line, before workers start.

    What would lose events is refused, and nothing is deleted: that is 'faas functions prune'.

    \b
    Example:
      faas functions sync
    """
    place = find(url)
    changes = asyncio.run(_sync(place))
    for queue, says in changes:
        click.echo(f"{queue}: {says}")
    if not changes:
        click.echo("Every function has its queue; nothing to do.")


@functions.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def prune(yes: bool, url: str | None) -> None:
    """Delete the queues whose function is gone, and with them the events that wait there.

    Dead letters stay: 'faas dead purge' is for those. Do not prune while workers with the old code run.

    \b
    Example:
      faas functions prune
      faas functions prune --yes
    """
    place = find(url)
    gone = asyncio.run(_gone(place))
    if not gone:
        click.echo("Every queue has its function; nothing to prune.")
        return
    for row in gone:
        click.echo(f"{row.name}: {count(row.lag.total, 'event')} would be discarded")
    confirm(f"Delete {count(len(gone), 'queue')}?", yes)
    discarded = asyncio.run(_delete(place, [row.name for row in gone]))
    click.echo(f"deleted {count(len(gone), 'queue')}, discarded {count(discarded, 'event')}")


# --- what the code has --------------------------------------------------------------------------------------


async def specs_of(config: Config) -> list[Spec]:
    """The project's functions with faas.toml's overrides; user code is imported in a process of its own. Raises ConfigError."""
    from ..workers.host import overridden
    from ..workers.zygote_handle import describe

    specs = await describe(config.modules, config.root, os.environ, config.worker.import_timeout)
    config.check_functions(specs)
    return [overridden(spec, config.functions.get(spec.name)) for spec in specs]


async def queues_on(bus: JetStreamBus, project: str) -> list[QueueRow]:
    """Of this project, without the relay of delayed publishes; [] if nobody has ever used this bus."""
    from ..buses.listing import list_queues
    from ..errors import BusRefused

    try:
        return await list_queues(bus, project)
    except BusRefused as error:
        if error.code == NO_STREAM:
            return []
        raise


# --- list ---------------------------------------------------------------------------------------------------


async def _list(place: Place) -> list[dict[str, Any]]:
    from .stats import ask, stats_of, totals

    config = place.project
    try:
        specs, problem = await specs_of(config), ""
    except ConfigError as error:  # the queues can still be shown
        specs, problem = [], str(error)
    async with place.open() as bus:
        if said := undurable(bus):
            click.echo(f"note: {said}", err=True)
        queues = {row.name: row for row in await queues_on(bus, config.project)}
        counters = totals(await ask(bus.connection, stats_of(config.project)))
    if problem:
        click.echo(f"faas: the project's code cannot be read, so only queues are shown: {problem}", err=True)
    rows = []
    for spec in specs:
        queue = queues.pop(f"{config.project}--{spec.name}", None)
        counts = counters.get(spec.name)
        note = "" if queue else "no queue yet: start a worker, or 'faas functions sync'"
        if unkeyed := (counts or {}).get("unkeyed"):
            note = f"{count(unkeyed, 'event')} without a key, so without an order"
        rows.append(_row(spec.name, spec.topics, spec.version, queue, counts, note) | {"doc": spec.doc})
    for sink in config.sinks:  # `faas sinks` shows them
        queues.pop(f"{config.project}--{sink.name}", None)
    for name, queue in queues.items():
        function = name.removeprefix(f"{config.project}--")
        note = "" if problem else "its function is gone: 'faas functions prune' deletes it"
        rows.append(_row(function, queue.topics, None, queue, counters.get(function), note))
    return rows


def _row(
    name: str, topics: tuple[str, ...], version: str | None, queue: QueueRow | None, counts: dict[str, int] | None, note: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"function": name, "topics": list(topics), "version": version}
    row |= {"waiting": None, "in_progress": None, "scheduled": None, "dead_letters": None}
    if queue:
        lag = queue.lag
        row |= {"waiting": lag.waiting, "in_progress": lag.in_progress, "scheduled": lag.scheduled, "dead_letters": queue.dead}
    return row | (counts or {}) | {"note": note}


# --- sync and prune -----------------------------------------------------------------------------------------


async def _sync(place: Place) -> list[tuple[str, str]]:
    """(queue, what was done) of each that was not in line. Raises ConfigError before anything is changed if one would lose events."""
    from ..buses.admin import ensure_queue
    from ..layout import sink_queue
    from ..workers.worker import queue_of

    config = place.project
    specs = await specs_of(config)
    async with place.open(manage=True) as bus:
        rows = await queues_on(bus, config.project)
        changes = planned(config, specs, rows)
        if refused := [change for change in changes if change.refused]:
            raise ConfigError("nothing was changed: " + "; ".join(f"{change.queue}: {change.says}" for change in refused))
        await rename_queues(bus, config.project, specs)
        for spec in specs:
            await ensure_queue(bus, queue_of(config.project, spec))
        for sink in config.sinks:
            await ensure_queue(bus, sink_queue(config.project, sink.name))
    return [(change.queue, change.says) for change in changes if change.kind != "gone"]


def planned(config: Config, specs: Iterable[Spec], rows: Iterable[QueueRow]) -> list[Change]:
    """What the code would change on the bus."""
    from ..buses.changes import plan
    from ..layout import sink_queue
    from ..workers.worker import queue_of

    queues = [queue_of(config.project, spec) for spec in specs] + [sink_queue(config.project, sink.name) for sink in config.sinks]
    was = {f"{config.project}--{spec.name}": f"{config.project}--{spec.was}" for spec in specs if spec.was}
    return plan(queues, rows, was)


async def old_names(bus: JetStreamBus, project: str, specs: Iterable[Spec]) -> list[str]:
    """Queues that are still there under a name that a function says it had before (`was=`)."""
    from ..buses.consumers import find as find_consumer
    from ..layout import RETRIES

    names = [f"{project}--{spec.was}" for spec in specs if spec.was]
    return [name for name in names if await find_consumer(bus, RETRIES, name)]


async def rename_queues(bus: JetStreamBus, project: str, specs: Iterable[Spec]) -> None:
    """Let the queues of renamed functions go on under their new names. No worker may serve the old ones. Raises ConfigError."""
    from ..buses.admin import rename
    from ..workers.worker import queue_of

    for spec in specs:
        if spec.was:
            await rename(bus, f"{project}--{spec.was}", queue_of(project, spec))


async def _gone(place: Place) -> list[QueueRow]:
    config = place.project
    specs = await specs_of(config)
    async with place.open() as bus:
        rows = await queues_on(bus, config.project)
    gone = {change.queue for change in planned(config, specs, rows) if change.kind == "gone"}
    return [row for row in rows if row.name in gone]


async def _delete(place: Place, names: list[str]) -> int:
    from ..buses.admin import delete_queue

    async with place.open() as bus:
        return sum([(await delete_queue(bus, name)).total for name in names])
