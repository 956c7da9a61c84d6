"""`faas sinks`: where functions send to, what waits for it, and what those processes that send say of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from .connection import Place, find, url_option
from .connectors import BETWEEN, together
from .functions import queues_on
from .render import Column, number, output_option, show


@click.command()
@output_option
@url_option
def sinks(output: str, url: str | None) -> None:
    """The project's sinks: state, what waits for them, rate, last error.

    waiting: events on the bus that the sink's system has not confirmed. delivered, retried, dead: of all processes that run a sink now,
    since they started.

    \b
    Example:
      faas sinks
      faas dead list orders-out      # what a sink's system did not take
    """
    place = find(url)
    columns = [
        Column("sink", "name"),
        Column("type", "type"),
        Column("state", "state"),
        Column("waiting", "waiting", number, right=True),
        Column("per second", "rate", number, right=True),
        Column("delivered", "delivered", number, right=True),
        Column("retried", "retried", number, right=True),
        Column("dead letters", "dead_letters", number, right=True),
        Column("last error", "error"),
    ]
    show(asyncio.run(_rows(place)), columns, output, "This project has no sinks. One begins with [[sink]] in faas.toml.")


async def _rows(place: Place) -> list[dict[str, Any]]:
    from .stats import ask, connectors_of

    config = place.project
    if not config.sinks:
        return []
    async with place.open() as bus:
        before = together(await ask(bus.connection, connectors_of(config.project)), "sinks")
        if before:
            await asyncio.sleep(BETWEEN)
        now = together(await ask(bus.connection, connectors_of(config.project)), "sinks")
        queues = {row.name: row for row in await queues_on(bus, config.project)}
    rows = []
    for one in config.sinks:
        seen = now.get(one.name, {})
        row = {"name": one.name, "type": one.type, "state": "not running", "waiting": None, "dead_letters": None, **seen}
        if queue := queues.get(f"{config.project}--{one.name}"):
            row |= {"waiting": queue.lag.total, "dead_letters": queue.dead}
        if one.name in before and seen:
            row["rate"] = max(0.0, (seen["delivered"] - before[one.name]["delivered"]) / BETWEEN)
        rows.append(row)
    return rows
