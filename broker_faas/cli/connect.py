"""`faas connect`: connectors as a process, and what they would do."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError
from . import logs, process
from .connection import Place, find, project, url_option
from .describe import as_json
from .render import clean, count

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..config import Config, ConnectorConfig
    from ..connectors.batch import Refused
    from ..connectors.pump import Positions, Pump
    from ..event import CloudEvent

log = logging.getLogger(__name__)

PEEKED = 10  # events that --dry-run shows


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dry-run", is_flag=True, help=f"Show the next {PEEKED} events of each connector; acknowledge nothing, publish nothing.")
@url_option
def connect(names: tuple[str, ...], dry_run: bool, url: str | None) -> None:
    """Run the project's connectors, or those named: what their sources have becomes events on the bus.

    Nothing is acknowledged at a source before it is stored. SIGTERM drains: what was read is stored and acknowledged. While the bus is
    full or away, sources wait. `faas dev` runs connectors, too.

    \b
    Example:
      faas connect
      faas connect orders --dry-run
    """
    if dry_run:
        return asyncio.run(_dry_run(project(url), names))
    place = find(url)
    logs.start(human=sys.stdout.isatty())
    process.run(_work(place, names))


async def _work(place: Place, names: Sequence[str]) -> None:
    from .. import service
    from .stats import answering, connectors_of

    config = place.project
    chosen = _chosen(config, names)
    async with AsyncExitStack() as stack:
        bus = await service.patiently(lambda: stack.enter_async_context(place.open(manage=True)))
        pumps = pumps_of(config, chosen, bus)
        await stack.enter_async_context(answering(bus.connection, connectors_of(config.project), told(pumps)))
        ready = asyncio.Event()
        ready.set()
        log.info("connectors run", extra={"connectors": [pump.route.name for pump in pumps]})
        await service.run(*(pump.run for pump in pumps), process.closed(bus), process.supervised(ready), grace=config.worker.grace)


def pumps_of(config: Config, chosen: Sequence[ConnectorConfig], bus: JetStreamBus) -> list[Pump]:
    """Services, one a connector. Raises ConfigError."""
    from ..connectors.batch import Route
    from ..connectors.driver import driver
    from ..connectors.pump import Pump
    from ..layout import project_source

    return [
        Pump(
            driver(one),
            Route(name=one.name, source=project_source(config.project, one.name), to=one.to, where=one.where),
            bus,
            positions_of(bus, one.name),
        )
        for one in chosen
    ]


def check_connectors(config: Config) -> None:
    """Their options; nothing is connected to. Raises ConfigError."""
    if config.connectors:
        from ..connectors.driver import driver

        for one in _chosen(config, ()):
            driver(one)


def positions_of(bus: JetStreamBus, connector: str) -> Positions:
    """How far the bus has what this connector reads."""
    from ..buses.store import stored
    from ..layout import EVENTS, position_subject

    async def position(partition: str) -> str | None:
        found = await stored(bus, EVENTS, last_by_subj=position_subject(connector, partition))
        return found.data.decode() if found else None

    return position


def told(pumps: Sequence[Pump]) -> Callable[[], dict[str, object]]:
    """What a process with these connectors answers."""
    from dataclasses import asdict

    return lambda: {"connectors": {pump.route.name: asdict(pump.status) for pump in pumps}}


def _chosen(config: Config, names: Sequence[str]) -> list[ConnectorConfig]:
    from ..connectors.driver import sources

    if str(config.root) not in sys.path:
        sys.path.insert(0, str(config.root))  # connectors of the project's own: type = "module:Class"
    if not config.connectors:
        raise ConfigError(f"{config.root / 'faas.toml'} has no connectors. One begins with [[connector]], name = … and type = …")
    return sources(config.connectors, names)


async def _dry_run(config: Config, names: Sequence[str]) -> None:
    from ..connectors.driver import driver
    from ..layout import project_source

    for one in _chosen(config, names):
        items = await driver(one).peek(project_source(config.project, one.name), PEEKED)
        click.echo(f"{one.name}: the next {count(len(items), 'event')}" if items else f"{one.name}: nothing waits at its source")
        for name, item in items:
            click.echo(_line(one, name, item))


def _line(connector: ConnectorConfig, name: str, item: CloudEvent | Refused) -> str:
    from ..errors import EventError
    from ..event import CloudEvent
    from ..layout import event_record

    if not isinstance(item, CloudEvent):
        return clean(f"  {item.where}: quarantined: {item.reason}")
    topic = connector.to or name
    if connector.where is not None and not connector.where.matches(item):
        return clean(f"  {item.id}: dropped by where")
    try:
        event_record(topic, item)
    except EventError as error:
        return clean(f"  {item.id}: quarantined: {error}")
    return clean(f"  {topic}: {json.dumps(as_json(item), ensure_ascii=False)}")
