"""`faas lag`: how far behind each function is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .connection import collect, find, url_option
from .render import Column, age, number, output_option, show, size

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus


@click.command()
@output_option
@url_option
def lag(output: str, url: str | None) -> None:
    """How many events each function still has to do.

    waiting: stored and not handed to a worker yet. in progress: a worker has it, or it waits there for its next attempt. scheduled: its
    next attempt is more than 30 s away. space: bytes on the bus that cannot be freed before they are done.

    \b
    Example:
      faas lag
      faas lag -o json
    """
    place = find(url)
    project = place.config.project if place.config else None

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.listing import list_queues

        return [
            {
                "queue": row.name,
                "function": row.name.removeprefix(f"{project}--") if project else row.name,
                "waiting": row.lag.waiting,
                "in_progress": row.lag.in_progress,
                "scheduled": row.lag.scheduled,
                "total": row.lag.total,
                "held_bytes": row.held,
                "active": row.active,
            }
            for row in await list_queues(bus, project)
        ]

    columns = [
        Column("function", "function"),
        Column("waiting", "waiting", number, right=True),
        Column("in progress", "in_progress", number, right=True),
        Column("scheduled", "scheduled", number, right=True),
        Column("total", "total", number, right=True),
        Column("space", "held_bytes", size, right=True),
        Column("last active", "active", age),
    ]
    empty = "There are no queues on this bus yet. Start a worker ('faas dev' or 'faas worker'), or 'faas functions sync'."
    show(collect(place, read, status=True), columns, output, empty)
