"""`faas sinks`: where functions send to, what waits for it, and what those processes that send say of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from .connection import Place, find, url_option
from .connectors import told
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
    config = place.project
    if not config.sinks:
        return []
    async with place.open() as bus:
        seen = await told(bus, config.project, "sinks", "delivered")
        queues = {row.name: row for row in await queues_on(bus, config.project)}
    rows = []
    for one in config.sinks:
        queue = queues.get(f"{config.project}--{one.name}")
        left = {"waiting": queue and queue.lag.total, "dead_letters": queue and queue.dead}
        rows.append({"name": one.name, "type": one.type, "state": "not running", **seen.get(one.name, {}), **left})
    return rows
