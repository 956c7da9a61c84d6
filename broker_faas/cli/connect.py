"""`faas connect`: connectors and sinks as a process, and what they would do."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import click

from ..errors import ConfigError, SourceRefused, SourceUnavailable
from . import logs, process
from .connection import Place, find, project, url_option
from .describe import as_json
from .render import clean, count
from .translating import Became, decoder_of, route_of, translating

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..config import Config, ConnectorConfig, DriverConfig, SinkConfig
    from ..connectors.pump import Pump
    from ..connectors.sink import Outlet
    from ..service import Service

log = logging.getLogger(__name__)

PEEKED = 10  # events that --dry-run shows


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dry-run", is_flag=True, help=f"Show the next {PEEKED} events of each connector; acknowledge nothing, publish nothing.")
@url_option
def connect(names: tuple[str, ...], dry_run: bool, url: str | None) -> None:
    """Run the project's connectors and sinks, or those named: what sources have becomes events on the bus, and what functions send to
    a sink leaves it.

    Nothing is acknowledged at a source before it is stored, and nothing leaves the bus before the sink's system has confirmed it. SIGTERM
    drains: what was read is stored and acknowledged, what is held for a sink is sent. While the bus is full or away, sources wait; while
    a sink is away, its events wait on the bus. `faas dev` runs them, too.

    \b
    Example:
      faas connect
      faas connect orders --dry-run
    """
    if dry_run:
        logs.quiet_clients()  # what keeps it from reading is told in our words; the rest passes
        return asyncio.run(_dry_run(project(url), names))
    place = find(url)
    logs.start(human=sys.stdout.isatty())
    process.run(_work(place, names))


async def _work(place: Place, names: Sequence[str]) -> None:
    from .. import service
    from .stats import answering, connectors_of

    config = place.project
    wanted = _chosen(config, names)
    async with AsyncExitStack() as stack:
        bus = await service.patiently(lambda: stack.enter_async_context(place.open(manage=True)))
        running = running_of(config, wanted, bus)
        await stack.enter_async_context(answering(bus.connection, connectors_of(config.project), running.told))
        ready = asyncio.Event()
        ready.set()
        sinks = [outlet.name for outlet in running.outlets]
        log.info("connectors run", extra={"connectors": [pump.route.name for pump in running.pumps], "sinks": sinks})
        await _warn_of_the_unheard(bus, running.pumps)
        await service.run(*running.services, process.closed(bus), process.supervised(ready), grace=config.worker.grace)


async def _warn_of_the_unheard(bus: JetStreamBus, pumps: Sequence[Pump]) -> None:
    """Of topics that no queue hears: a function that gets its queue later begins behind what is stored until then."""
    from ..buses.consumers import listing
    from ..buses.listing import listeners
    from ..errors import BusError
    from ..layout import EVENTS

    topics = dict.fromkeys(pump.route.to for pump in pumps if pump.route.to)
    try:
        infos = await listing(bus, EVENTS) if topics else []
    except BusError:  # this user may not ask; a bus that is away, the pumps notice
        return
    for topic in topics:
        if not listeners(topic, infos):
            log.warning(
                "no function has a queue for this topic: what is stored runs nothing; 'faas functions sync'", extra={"topic": topic}
            )


class Running(NamedTuple):
    """What a process with connectors and sinks runs."""

    pumps: list[Pump]
    outlets: list[Outlet]

    @property
    def services(self) -> list[Service]:
        return [*(pump.run for pump in self.pumps), *(outlet.run for outlet in self.outlets)]

    def told(self) -> dict[str, object]:
        """What it answers."""
        from dataclasses import asdict

        return {
            "connectors": {pump.route.name: asdict(pump.status) for pump in self.pumps},
            "sinks": {outlet.name: asdict(outlet.status) for outlet in self.outlets},
        }


def running_of(config: Config, wanted: Sequence[DriverConfig], bus: JetStreamBus) -> Running:
    """Raises ConfigError."""
    from ..config import ConnectorConfig, SinkConfig

    import_path(config)
    return Running(
        pumps_of(config, [one for one in wanted if isinstance(one, ConnectorConfig)], bus),
        outlets_of(config, [one for one in wanted if isinstance(one, SinkConfig)], bus),
    )


def pumps_of(config: Config, chosen: Sequence[ConnectorConfig], bus: JetStreamBus) -> list[Pump]:
    """Services, one a connector. Raises ConfigError."""
    from ..buses.store import position
    from ..connectors.driver import driver
    from ..connectors.pump import Pump

    return [Pump(driver(one), route_of(config, one), bus, partial(position, bus, one.name), decoder_of(config, one)) for one in chosen]


def outlets_of(config: Config, wanted: Sequence[SinkConfig], bus: JetStreamBus) -> list[Outlet]:
    """Services, one a sink. Raises ConfigError."""
    from ..connectors.driver import sink_driver
    from ..connectors.sink import Outlet
    from ..layout import sink_queue

    return [Outlet(one.name, sink_driver(one), sink_queue(config.project, one.name), bus, one.retry, one.type) for one in wanted]


async def check_connectors(config: Config) -> None:
    """The options of connectors and sinks, and that decoders can be imported; nothing is connected to. Raises ConfigError."""
    if config.connectors or config.sinks:
        from ..connectors.driver import driver, sink_driver

        import_path(config)
        for source in config.connectors:
            driver(source)
        for sink in config.sinks:
            sink_driver(sink)
        for source in config.connectors:
            if decoder := decoder_of(config, source):
                async with decoder.open():
                    pass


def _chosen(config: Config, names: Sequence[str]) -> list[DriverConfig]:
    from ..connectors.driver import chosen

    import_path(config)
    if not config.connectors and not config.sinks:
        raise ConfigError(f"{config.root / 'faas.toml'} has no connectors. One begins with [[connector]], name = … and type = …")
    return chosen([*config.connectors, *config.sinks], names)


def import_path(config: Config) -> None:
    """For drivers of the project's own: type = "module:Class"."""
    if str(config.root) not in sys.path:
        sys.path.insert(0, str(config.root))


async def _dry_run(config: Config, names: Sequence[str]) -> None:
    from ..config import ConnectorConfig
    from ..connectors.driver import driver
    from ..layout import project_source

    for one in _chosen(config, names):
        if not isinstance(one, ConnectorConfig):
            if names:
                raise ConfigError(f"{one.name!r} is a sink: what waits for it is shown by `faas peek {one.name}`")
            continue
        async with translating(config, one) as translate:
            try:
                found = await driver(one).peek(project_source(config.project, one.name), PEEKED)
            except (SourceRefused, SourceUnavailable) as error:
                raise type(error)(f"connector {one.name}: {error}") from None
            shown = await translate(found)
        click.echo(f"{one.name}: the next {count(len(shown), 'event')}" if shown else f"{one.name}: nothing waits at its source")
        for became in shown:
            click.echo(f"  {_line(one, became)}")


def _line(connector: ConnectorConfig, became: Became) -> str:
    from ..connectors.batch import DROPPED, Refused
    from ..event import CloudEvent

    where = became.given.id if isinstance(became.given, CloudEvent) else became.given.where
    if became.record is DROPPED:
        return clean(f"{where}: dropped by where")
    if isinstance(became.record, Refused):
        return clean(f"{where}: quarantined: {became.record.reason}")
    assert isinstance(became.item, CloudEvent)
    return clean(f"{connector.to or became.name}: {json.dumps(as_json(became.item), ensure_ascii=False)}")
