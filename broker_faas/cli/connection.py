"""Which bus a command talks to, and for which project. The only place that reads NATS_URL for the command line."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BusRefused, ConfigError

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..config import Config

RUNNING = "faas dev"  # Place.where of the `faas dev` that runs in this project
NO_STREAM = 10059  # JetStream's err_code

url_option = click.option("--url", metavar="URL", help="The bus. [default: NATS_URL, bus.url of faas.toml, the running 'faas dev']")


@dataclass(frozen=True, slots=True)
class Place:
    """A bus that was found. where: for people, no password. config: of the project around the working folder, None outside of any.

    monitor_url: of the server, where it tells whether it syncs; None if unknown.
    """

    url: str
    where: str
    config: Config | None
    monitor_url: str | None = None

    @property
    def project(self) -> Config:
        """Raises ConfigError outside of a project."""
        if self.config is None:
            from ..config import load

            return load()  # which says what is missing
        return self.config

    @asynccontextmanager
    async def open(self, *, manage: bool = False, timeout: float = 3.0) -> AsyncIterator[JetStreamBus]:
        """manage: make streams that are missing, and let them grow to what faas.toml says; those of `faas dev` are its own to manage.

        timeout: seconds to connect.
        """
        from ..buses.nats import NatsBus
        from ..config import BusConfig

        manage = manage and self.where != RUNNING
        said = self.config.bus if self.config and manage else BusConfig(max_bytes=0, dead_bytes=0)
        options = NatsBus(
            self.url,
            max_bytes=said.max_bytes or None,
            dead_bytes=said.dead_bytes or None,
            replicas=said.replicas if manage else None,
            manage=manage,
            monitor_url=self.monitor_url,
            connect_timeout=timeout,
        )
        async with options.open() as bus:
            yield bus


def undurable(bus: JetStreamBus) -> str:
    """What every status says of a bus that may lose what it acknowledged; "" of one that is known to sync."""
    if bus.durability == "always":
        return ""
    if bus.durability == "unknown":
        return "this bus is not known to be durable: name its monitoring port, monitor_url, in faas.toml"
    return f"this bus is not durable ({bus.durability}): a power cut loses acknowledged events. Set sync_interval: always in its server"


def collect(place: Place, read: Callable[[JetStreamBus], Awaitable[list[dict[str, Any]]]], *, status: bool = False) -> list[dict[str, Any]]:
    """What `read` finds on the bus; [] if nobody has ever used this bus. status: say so, on stderr, if it is not durable."""

    async def rows() -> list[dict[str, Any]]:
        async with place.open() as bus:
            if status and (said := undurable(bus)):
                click.echo(f"note: {said}", err=True)
            return await read(bus)

    try:
        return asyncio.run(rows())
    except BusRefused as error:
        if error.code == NO_STREAM:
            return []
        raise


def project(url: str | None = None) -> Config:
    """The project around the working folder, with --url or NATS_URL applied. Raises ConfigError."""
    from ..config import load

    config = load()
    if url:
        return config.with_url(url, "--url")
    if from_environment := os.environ.get("NATS_URL"):
        return config.with_url(from_environment, "NATS_URL")
    return config


def find(url: str | None) -> Place:
    """--url, else NATS_URL, else faas.toml's bus.url, else the `faas dev` that runs in this project.

    Raises ConfigError if there is none, or for a project that cannot be read.
    """
    from ..config import FILE, BusConfig, Config
    from ..config import find as find_file
    from ..options import masked

    if find_file(Path.cwd()) is None:
        said = url or os.environ.get("NATS_URL")
        if not said:
            raise ConfigError(
                f"no bus: --url and NATS_URL are not given, and there is no {FILE} here or above. "
                "Start `faas dev` in a project's folder and come back, or name a bus: --url nats://127.0.0.1:4222."
            )
        outside = Config(root=Path.cwd(), project="-", modules=(), bus=BusConfig())
        checked = outside.with_url(said, "--url" if url else "NATS_URL").bus.url
        assert checked
        return Place(checked, f"{masked(checked)} ({'--url' if url else 'NATS_URL'})", None)
    from ..embedded import find_running

    config = project(url)
    running = find_running(config.state)
    if config.bus.url:
        monitor_url = config.bus.monitor_url or (_monitor_url(config.state) if running == config.bus.url else None)
        return Place(config.bus.url, f"{masked(config.bus.url)} ({config.origins['bus.url']})", config, monitor_url)
    if running:
        return Place(running, RUNNING, config, _monitor_url(config.state))
    raise ConfigError(
        f"no bus: no `faas dev` runs in {config.root}, and there is no --url, NATS_URL or bus.url in {FILE}. "
        "Start `faas dev` in another terminal, or name a bus: --url nats://127.0.0.1:4222."
    )


def _monitor_url(state: Path) -> str | None:
    try:
        return str(json.loads((state / "server.json").read_text())["monitor_url"])
    except (OSError, ValueError, KeyError):  # it has just stopped
        return None
