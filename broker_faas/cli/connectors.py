"""`faas connectors`: the project's connectors, and what those that run say of themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from .connection import Place, find, url_option
from .render import Column, number, output_option, show

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus

BETWEEN = 1.0  # seconds between the two looks that a rate needs


@click.command()
@output_option
@url_option
def connectors(output: str, url: str | None) -> None:
    """The project's connectors: state, lag at the source, rate, last error.

    read = stored + filtered + quarantined, of all processes that run a connector now, since they started. repeated: of stored, those that
    the bus had already. lag: what the source has and the connector has not stored, every 10 s; - before that, and where a source cannot
    tell.

    \b
    Example:
      faas connectors
      faas connectors -o json
    """
    place = find(url)
    columns = [
        Column("connector", "name"),
        Column("type", "type"),
        Column("to", "to"),
        Column("state", "state"),
        Column("lag", "lag", number, right=True),
        Column("per second", "rate", number, right=True),
        Column("read", "read", number, right=True),
        Column("stored", "stored", number, right=True),
        Column("repeated", "repeated", number, right=True),
        Column("filtered", "filtered", number, right=True),
        Column("quarantined", "quarantined", number, right=True),
        Column("last error", "error"),
    ]
    show(asyncio.run(_rows(place)), columns, output, "This project has no connectors. One begins with [[connector]] in faas.toml.")


async def _rows(place: Place) -> list[dict[str, Any]]:
    config = place.project
    if not config.connectors:
        return []
    async with place.open() as bus:
        seen = await told(bus, config.project, "connectors", "read")
    return [
        {"name": one.name, "type": one.type, "to": one.to, "state": "not running", **seen.get(one.name, {})} for one in config.connectors
    ]


async def told(bus: JetStreamBus, project: str, kind: str, counted: str) -> dict[str, dict[str, Any]]:
    """What those that run say of themselves, by name. kind: connectors or sinks. rate: of the count of this name, from two looks."""
    from .stats import ask, connectors_of

    before = _together(await ask(bus.connection, connectors_of(project)), kind)
    if before:
        await asyncio.sleep(BETWEEN)
    now = _together(await ask(bus.connection, connectors_of(project)), kind)
    for name, one in now.items():
        if name in before:
            one["rate"] = max(0.0, (one[counted] - before[name][counted]) / BETWEEN)
    return now


def _together(answers: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """kind: connectors or sinks. By name: counts of all processes added up; states and errors side by side. Pure."""
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for name, said in answer[kind].items():
            one = found.setdefault(name, {"state": "", "error": "", "lag": None})
            for key, value in said.items():
                if isinstance(value, str):
                    one[key] = ", ".join(dict.fromkeys(filter(None, [*one[key].split(", "), value])))
                elif value is not None:
                    one[key] = (one.get(key) or 0) + value
    return found
