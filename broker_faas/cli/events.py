"""`faas events`: what lies on the bus, and what comes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from . import values
from .connection import Place, collect, find, url_option
from .describe import columns_of_events, event_row
from .render import GREY, clean, colour, output_option, show

if TYPE_CHECKING:
    from ..bus import Delivery
    from ..buses.nats import JetStreamBus


@click.command()
@click.argument("topic", default=">")
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come; with -o json one line an event.")
@click.option(
    "-n", "--number", "n", type=click.IntRange(0, 100_000), help="The latest so many. [default: 20; all with --since, none with --follow]"
)
@click.option("--since", type=values.since, metavar="TIME", help="Stored since: 10m, 2h, 2030-01-31T08:00:00Z …")
@output_option
@url_option
def events(topic: str, follow: bool, n: int | None, since: float | None, output: str, url: str | None) -> None:
    """Events of TOPIC on the bus, the latest last: those that wait, and those that are done and not freed yet.

    TOPIC may be a pattern: 'orders.*' for one part, 'orders.>' for one or more.

    \b
    Example:
      faas events orders.created -n 5
      faas events 'orders.>' --since 10m -o json
      faas events --follow
    """
    from ..topics import check_pattern

    check_pattern(topic)
    place = find(url)
    if follow:
        return asyncio.run(_follow(place, topic, n or 0, since, output))

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        return [event_row(delivery) for delivery in await _latest(bus, topic, 20 if n is None and since is None else n, since)]

    where = "" if topic == ">" else f" on {topic}"
    empty = f"No events{where} are kept{' that were stored since' if since else ''}."
    if not since:
        empty += f" Publish one: faas publish {'orders.created' if {'*', '>'} & {*topic.split('.')} else topic} '{{\"id\": 1}}'"
    show(collect(place, read), columns_of_events(), output, empty)


async def _latest(bus: JetStreamBus, topic: str, n: int | None, since: float | None) -> list[Delivery]:
    """The latest n (None: all) in order, without reading a large stream from its beginning."""
    from ..buses.reading import read
    from ..buses.store import info
    from ..layout import EVENTS, filters

    if n == 0:
        return []
    state = (await info(bus, EVENTS))["state"]
    first, width = max(1, state["first_seq"]), 4 * (n or 0)
    while True:
        start = max(first, state["last_seq"] + 1 - width) if n and since is None else first
        found: deque[Delivery] = deque(maxlen=n)
        async for delivery in read(bus.connection, EVENTS, [filters(topic)], first=start, since=since):
            found.append(delivery)
        if len(found) == n or start == first:
            return list(found)
        width *= 8


async def _follow(place: Place, topic: str, n: int, since: float | None, output: str) -> None:
    from ..buses.reading import read
    from ..buses.store import info
    from ..layout import EVENTS, filters

    async with place.open(manage=True) as bus:
        last = (await info(bus, EVENTS))["state"]["last_seq"]
        for delivery in await _latest(bus, topic, n or (None if since else 0), since):
            _tell(delivery, output)
            last = max(last, delivery.seq)
        async for delivery in read(bus.connection, EVENTS, [filters(topic)], first=last + 1, follow=True):
            _tell(delivery, output)


def _tell(delivery: Delivery, output: str) -> None:
    row = event_row(delivery)
    if output == "json":
        click.echo(json.dumps(row, ensure_ascii=False))
        return
    at = datetime.fromtimestamp(row["stored"]).strftime("%H:%M:%S.%f")[:-3]
    what = f"{row['id']} {row['data']}" if "event" in row else f"no event: {row['problem']}"
    click.echo(f"{colour(at, GREY)} {row['topic']:<24} {clean(what)}")
