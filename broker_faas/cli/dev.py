"""`faas dev`: a bus, a worker and reload on save, in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, FaasError
from . import logs, process
from .connection import Place, project, undurable, url_option
from .functions import old_names, rename_queues
from .reload import changes, look
from .render import BLUE, GREEN, RED, YELLOW, colour, count, duration, number

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..config import Config
    from ..connectors.pump import Pump
    from ..embedded import EmbeddedNats, Server
    from ..service import Service
    from ..workers.feed import Feed


LOOK_EVERY = 2.0  # seconds between looks at the server
LEAST = 1 << 20  # bytes free that a server needs to start
ENOUGH = 32 << 20  # bytes free, after which a server that found the disk full is started anew


@click.command()
@url_option
def dev(url: str | None) -> None:
    """Run the project here: a bus of its own, a worker, reload on save.

    Without --url, NATS_URL or bus.url in faas.toml, a NATS server is started on loopback, with its data in .faas/: events wait there
    while `faas dev` is not running. When a file is saved, new executors with the new code take over, and the old ones finish what
    they have begun. Code that cannot be imported changes nothing but the log.

    \b
    Example:
      faas dev
      faas publish orders.created '{"id": 1}'      # in another terminal, in the same folder
    """
    logs.start(human=True, level=logging.WARNING)  # milestones are told below, in words for a person
    process.run(_dev(lambda: project(url)))


async def _dev(read: Callable[[], Config]) -> None:
    from .. import reaper, service
    from ..embedded import EmbeddedNats, find_running
    from ..options import masked
    from .connect import running_of
    from .stats import answering, connectors_of, counters, stats_of

    config = read()
    if not config.bus.url and find_running(config.state):
        raise ConfigError(f"`faas dev` is already running in {config.root}. Stop it first; or add a worker to it: faas worker.")
    async with AsyncExitStack() as stack:
        click.echo(f"faas dev: project {config.project} in {config.root}")
        services: list[Service] = []
        if config.bus.url:
            place = Place(config.bus.url, f"{masked(config.bus.url)} ({config.origins['bus.url']})", config, config.bus.monitor_url)
        else:
            binary = os.environ.get("FAAS_NATS_SERVER")
            options = EmbeddedNats(config.state, binary=Path(binary) if binary else None)
            own = await stack.enter_async_context(OwnServer(options).open())
            place = Place(own.server.url, "a server of its own, events are kept in .faas/", own.fitted(config), own.server.monitor_url)
            services.append(own.keep)
        click.echo(f"bus: {place.where}")
        bus = await stack.enter_async_context(place.open(manage=True))
        if (said := undurable(bus)) and bus.durability == "unknown":  # of one that is known not to be, the driver has warned
            click.echo(logs.line("", said, YELLOW))
        running = running_of(config, [*config.connectors, *config.sinks], bus)
        code = Code(config, read, bus, running.pumps)
        await stack.enter_async_context(answering(bus.connection, stats_of(config.project), lambda: counters(code.feeds)))
        if running.services:
            for kind, configured in (("connectors", config.connectors), ("sinks", config.sinks)):
                if configured:
                    click.echo(f"{kind}: {', '.join(one.name for one in configured)}")
            await stack.enter_async_context(answering(bus.connection, connectors_of(config.project), running.told))
            services += [*(after(code.ready, pump.run) for pump in running.pumps), *(outlet.run for outlet in running.outlets)]
        services += [code.run, process.closed(bus), lambda stop: reaper.run(bus, stop, keep=config.keep)]
        await service.run(*services, grace=config.worker.grace)
        click.echo(logs.line("", "stopped; events that come now wait on the bus" if config.bus.url else "stopped"))


def after(ready: asyncio.Event, service: Service) -> Service:
    """What sources have waits for the queues of the functions: a new one starts at new events, and would not get what came before."""

    async def run(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            either = [tasks.create_task(ready.wait()), tasks.create_task(stop.wait())]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in either:
                task.cancel()
        if not stop.is_set():
            await service(stop)

    return run


class Code:
    """The project's code as it is saved: the generation that runs, and those before it that finish what they hold.

    config: at the start; `read` reads it again. pumps: whose decoders are its code, too.
    ready: set when some of it has its queues and takes events.
    """

    def __init__(self, config: Config, read: Callable[[], Config], bus: JetStreamBus, pumps: Sequence[Pump]) -> None:
        self._config = config
        self._read = read
        self._bus = bus
        self._pumps = pumps
        self.ready = asyncio.Event()
        self._current: Generation | None = None
        self._living: dict[Generation, asyncio.Task[None]] = {}
        self._told: dict[Feed, dict[str, int]] = {}
        self._quiet_until: dict[str, float] = {}

    @property
    def feeds(self) -> list[Feed]:
        return [feed for generation in self._living for feed in generation.feeds]

    async def run(self, stop: asyncio.Event) -> None:
        """A service. Stops taking in changes at once, then drains every generation."""
        async with asyncio.TaskGroup() as tasks:
            reloading = tasks.create_task(self._reload(tasks))
            telling = tasks.create_task(self._tell())
            await stop.wait()
            reloading.cancel()
            if held := sum(len(feed.held) for feed in self.feeds):
                click.echo(logs.line("", f"finishing {count(held, 'event')}; Ctrl-C again stops at once and loses nothing"))
            for generation, task in self._living.items():
                if generation.is_ready:
                    generation.stop.set()
                else:
                    task.cancel()
            await asyncio.wait([reloading, *self._living.values()])
            telling.cancel()

    async def _reload(self, tasks: asyncio.TaskGroup) -> None:
        root = self._config.root
        seen = look(root)
        await self._start(self._config, tasks)
        async for changed in changes(root, seen):
            click.echo(logs.line("", f"saved: {', '.join(changed)}", BLUE))
            try:
                config = self._read()
            except ConfigError as error:
                self._refuse(error)
                continue
            if (config.bus, config.project) != (self._config.bus, self._config.project):
                click.echo(logs.line("", "the project's name and [bus] change when faas dev is started again", YELLOW))
            await self._renew()
            await self._start(replace(config, bus=self._config.bus, project=self._config.project), tasks)

    async def _renew(self) -> None:
        """The code of decoders. Connectors stay as they were configured at the start."""
        for pump in self._pumps:
            try:
                await pump.renew()
            except FaasError as error:
                click.echo(logs.line(pump.route.name, f"{error}; the decoder before it goes on", RED))

    async def _start(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        """A new generation takes over once it takes events. If it cannot, everything stays as it is."""
        began = time.monotonic()
        old = self._current
        generation = Generation(config, self._bus)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._living[generation] = tasks.create_task(generation.live(started, self._stop_current))
        task.add_done_callback(lambda _: self._end(generation))
        try:
            await started
        except FaasError as error:
            return self._refuse(error)
        if self._current:
            self._current.stop.set()
        self._current = generation
        self.ready.set()
        click.echo(logs.line("", f"{'reloaded' if old else 'ready'} in {duration(time.monotonic() - began)}", GREEN))
        if not old or old.functions != generation.functions:
            self._introduce(generation)

    async def _stop_current(self) -> None:
        if self._current:
            self._current.stop.set()
            await asyncio.wait([self._living[self._current]])
            self._current = None

    def _introduce(self, generation: Generation) -> None:
        for feed in generation.feeds:
            sends = f", sends to {feed.spec.sends}" if feed.spec.sends else ""
            click.echo(logs.line(feed.spec.name, f"listens to {', '.join(feed.spec.topics)}{sends}"))
        if not generation.feeds:
            modules = ", ".join(generation.config.modules)
            click.echo(logs.line("", f"no functions in {modules}: mark one with @function(on=…)", YELLOW))
        elif plain := [topic for feed in generation.feeds for topic in feed.spec.topics if not {"*", ">"} & {*topic.split(".")}]:
            click.echo(logs.line("", f"publish from another terminal in this folder: faas publish {plain[0]} '{{…}}'"))

    def _refuse(self, error: Exception) -> None:
        click.echo(logs.line("", str(error), RED))
        what = "the code before it goes on running" if self._current else "nothing runs yet"
        click.echo(logs.line("", f"{what}; save a file to try again", YELLOW))

    def _end(self, generation: Generation) -> None:
        self._tell_of(generation.feeds, last=True)
        del self._living[generation]

    # --- what ran, for a person: at most a line a second and function

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self._tell_of(self.feeds)

    def _tell_of(self, feeds: list[Feed], *, last: bool = False) -> None:
        now = time.monotonic()
        for feed in feeds:
            counts = asdict(feed.counts)
            before = self._told.get(feed, {})
            new = {name: counts[name] - before.get(name, 0) for name in ("done", "outputs", "discarded", "dead")}
            name = feed.spec.name
            if not any(new.values()) or (now < self._quiet_until.get(name, 0) and not last):
                continue
            self._told[feed] = counts
            self._quiet_until[name] = now + 1
            words = [
                f"done with {count(new['done'], 'event')}" if new["done"] else "",
                f"sent {number(new['outputs'])}" if new["outputs"] else "",
                f"{number(new['discarded'])} not for it (where=)" if new["discarded"] else "",
                colour(f"{number(new['dead'])} dead: see 'faas dead list'", RED) if new["dead"] else "",
            ]
            click.echo(logs.line(name, ", ".join(filter(None, words))))
        if last:
            for feed in feeds:
                self._told.pop(feed, None)


class Generation:
    """A worker with the code as it was when the generation began."""

    def __init__(self, config: Config, bus: JetStreamBus) -> None:
        self.config = config
        self.feeds: list[Feed] = []
        self.stop = asyncio.Event()
        self.is_ready = False
        self._bus = bus

    @property
    def functions(self) -> list[tuple[str, tuple[str, ...], str | None]]:
        return [(feed.spec.name, feed.spec.topics, feed.spec.sends) for feed in self.feeds]

    async def live(self, started: asyncio.Future[None], stop_old: Callable[[], Awaitable[None]]) -> None:
        """Until `stop`, then drain. started: gets a result when events are taken, or the error why never.

        stop_old: drains the generation before. Only for a renamed function: the queue of the old name must be at rest.
        """
        from ..service import first
        from ..workers.host import open_worker

        try:
            async with open_worker(self.config, self._bus) as worker:
                if await old_names(self._bus, self.config.project, worker.specs):
                    await stop_old()
                    await rename_queues(self._bus, self.config.project, worker.specs)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(worker.run(self.stop))
                    await worker.ready.wait()
                    self.feeds, self.is_ready = worker.feeds, True
                    if not started.done():
                        started.set_result(None)
        except Exception as error:
            if started.cancelled():
                return  # faas dev stops; that this code would not have run is no news now
            if started.done():
                raise
            started.set_exception(first(error))


class OwnServer:
    """The embedded server. It is started again, on its port, if it dies, or when a disk that was full has space again."""

    server: Server

    def __init__(self, options: EmbeddedNats) -> None:
        self._options = options
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[OwnServer]:
        async with self._stack:
            await self._begin()
            yield self

    async def keep(self, stop: asyncio.Event) -> None:
        """A service."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep())
            await stop.wait()
            keeping.cancel()

    def fitted(self, config: Config) -> Config:
        """With streams that fit into the store, which is smaller than asked for on a small disk."""
        said = config.bus
        share = min(1.0, 0.9 * self.server.max_bytes / (said.max_bytes + said.dead_bytes))
        return replace(config, bus=replace(said, max_bytes=int(said.max_bytes * share), dead_bytes=int(said.dead_bytes * share)))

    async def _begin(self) -> None:
        self.server = await self._stack.enter_async_context(self._options.open())
        self._options = replace(self._options, port=self.server.port)

    async def _keep(self) -> None:
        while True:
            why = await self._trouble()
            click.echo(logs.line("", f"{why} and is started again; nothing is lost", YELLOW))
            await self._stack.aclose()
            while shutil.disk_usage(self._options.folder).free < LEAST:  # noqa: ASYNC110  # it could not even write its configuration
                await asyncio.sleep(LOOK_EVERY)
            await self._begin()

    async def _trouble(self) -> str:
        """Returns when the server has to be started again. One that found the disk full stores nothing even when there is space again."""
        log_file, full = self.server.log_file, False
        read = log_file.stat().st_size if log_file.exists() else 0  # what an earlier server said is over
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    return f"the NATS server ended (status {await self.server.exited()})"
            except TimeoutError:
                pass
            with suppress(OSError), log_file.open("rb") as log:
                log.seek(read if read <= log_file.stat().st_size else 0)  # 0: a new file took its place
                new = log.read()
                read = log.tell()
                if not full and b"no space left on device" in new:
                    full = True
                    where = self._options.folder
                    click.echo(logs.line("", f"the disk of {where} is full: nothing can be stored, events wait. Free some space", RED))
            if full and shutil.disk_usage(self._options.folder).free > ENOUGH:
                return "the disk has space again: the NATS server was stopped"
