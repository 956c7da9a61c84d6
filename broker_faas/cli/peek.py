"""`faas peek`: what a function will get next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .connection import collect, find, url_option
from .describe import columns_of_events, event_row
from .render import Column, output_option, show

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus


@click.command()
@click.argument("function")
@click.option("-n", "--number", "n", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many.")
@output_option
@url_option
def peek(function: str, n: int, output: str, url: str | None) -> None:
    """The next events that FUNCTION will get, oldest first. Nothing is taken from it.

    \b
    Example:
      faas peek reserve
      faas peek reserve -n 1 -o json
    """
    place = find(url)
    queue = f"{place.project.project}--{function}"

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.listing import peek

        return [event_row(one.delivery) | {"state": "in progress" if one.delivered else "waiting"} for one in await peek(bus, queue, n)]

    columns = [Column("state", "state"), *columns_of_events()]
    show(collect(place, read), columns, output, f"Nothing waits for {function}; 'faas lag' counts what is scheduled for later.")
