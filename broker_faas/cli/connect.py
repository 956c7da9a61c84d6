"""`faas connect`: connectors as a process, and what they would do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import click

from ..errors import ConfigError
from . import logs, process
from .connection import Place, find, project, url_option
from .describe import as_json
from .render import clean, count

if TYPE_CHECKING:
    from ..bus import Record
    from ..buses.nats import JetStreamBus
    from ..config import Config, ConnectorConfig
    from ..connectors.batch import Batch, Item, Refused, Route
    from ..connectors.decoder import Decoder
    from ..connectors.pump import Positions, Pump

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
    ours = chosen(config, names)
    async with AsyncExitStack() as stack:
        bus = await service.patiently(lambda: stack.enter_async_context(place.open(manage=True)))
        pumps = pumps_of(config, ours, bus)
        await stack.enter_async_context(answering(bus.connection, connectors_of(config.project), told(pumps)))
        ready = asyncio.Event()
        ready.set()
        log.info("connectors run", extra={"connectors": [pump.route.name for pump in pumps]})
        await service.run(*(pump.run for pump in pumps), process.closed(bus), process.supervised(ready), grace=config.worker.grace)


def pumps_of(config: Config, chosen: Sequence[ConnectorConfig], bus: JetStreamBus) -> list[Pump]:
    """Services, one a connector. Raises ConfigError."""
    from ..connectors.driver import driver
    from ..connectors.pump import Pump

    return [Pump(driver(one), route_of(config, one), bus, positions_of(bus, one.name), decoder_of(config, one)) for one in chosen]


def route_of(config: Config, one: ConnectorConfig) -> Route:
    from ..connectors.batch import Route
    from ..layout import project_source

    return Route(name=one.name, source=project_source(config.project, one.name), to=one.to, where=one.where)


def decoder_of(config: Config, one: ConnectorConfig) -> Decoder | None:
    """It sees of the environment what executors do."""
    from ..connectors.decoder import Decoder
    from ..workers.zygote import scrubbed

    if one.decode is None:
        return None
    return Decoder(
        function=one.decode,
        root=config.root,
        place=f"{one.places['decode']}: connector {one.name!r}: decode",
        connector=one.name,
        environ=scrubbed(os.environ, config.worker.pass_env),
        import_timeout=config.worker.import_timeout,
    )


async def check_connectors(config: Config) -> None:
    """Their options, and that their decoders can be imported; nothing is connected to. Raises ConfigError."""
    if config.connectors:
        from ..connectors.driver import driver

        for one in chosen(config, ()):
            driver(one)
        for one in config.connectors:
            if decoder := decoder_of(config, one):
                async with decoder.open():
                    pass


class Became(NamedTuple):
    """name: at the source. given, item: before and behind the decoder. record: of the item, or why there is none."""

    name: str
    given: Item
    item: Item
    record: Record | Refused


@asynccontextmanager
async def translating(config: Config, one: ConnectorConfig) -> AsyncIterator[Callable[[Batch], Awaitable[list[Became]]]]:
    """What batches of this connector become, one by one. Raises ConfigError."""
    from ..connectors.batch import record_of
    from ..connectors.decoder import decoded

    route = route_of(config, one)
    async with AsyncExitStack() as stack:
        decoder = decoder_of(config, one)
        decoding = await stack.enter_async_context(decoder.open()) if decoder else None

        async def translate(batch: Batch) -> list[Became]:
            given, behind = batch.items, route
            if decoding:
                batch, behind = await decoded(route, batch, decoding), replace(route, where=None)
            return [
                Became(name, one, item, record_of(behind, name, item)) for (name, one), (_, item) in zip(given, batch.items, strict=True)
            ]

        yield translate


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


def chosen(config: Config, names: Sequence[str]) -> list[ConnectorConfig]:
    """Those of these names, all without any. Raises ConfigError."""
    from ..connectors.driver import sources

    if str(config.root) not in sys.path:
        sys.path.insert(0, str(config.root))  # connectors of the project's own: type = "module:Class"
    if not config.connectors:
        raise ConfigError(f"{config.root / 'faas.toml'} has no connectors. One begins with [[connector]], name = … and type = …")
    return sources(config.connectors, names)


async def _dry_run(config: Config, names: Sequence[str]) -> None:
    from ..connectors.driver import driver
    from ..layout import project_source

    for one in chosen(config, names):
        async with translating(config, one) as translate:
            shown = await translate(await driver(one).peek(project_source(config.project, one.name), PEEKED))
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
