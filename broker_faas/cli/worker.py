"""`faas worker`: what systemd, compose and Kubernetes start."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import click

from . import logs, process
from .connection import Place, find, url_option
from .functions import rename_queues


@click.command()
@url_option
def worker(url: str | None) -> None:
    """Run the project's functions against a bus.

    SIGTERM drains: no new events, what is running is finished within `worker.grace` seconds, the rest is handed back to the bus. A
    second signal stops at once, and loses nothing either. A bus that cannot be had at the start is waited for, for 30 s. Logs are
    JSON, unless stdout is a terminal. Tells systemd when it is ready (Type=notify), and that it is alive (WatchdogSec).

    \b
    Example:
      NATS_URL=tls://user:password@nats.example.com:4222 faas worker
    """
    place = find(url)
    logs.start(human=sys.stdout.isatty())
    process.run(_work(place))


async def _work(place: Place) -> None:
    from .. import reaper, service
    from ..workers.host import open_worker
    from .stats import answering, counters, stats_of

    config = place.project
    async with AsyncExitStack() as stack:
        bus = await service.patiently(lambda: stack.enter_async_context(place.open(manage=True)))
        worker = await stack.enter_async_context(open_worker(config, bus))
        await service.patiently(lambda: rename_queues(bus, config.project, worker.specs))
        await stack.enter_async_context(answering(bus.connection, stats_of(config.project), lambda: counters(worker.feeds)))
        services = [worker.run, lambda stop: reaper.run(bus, stop, keep=config.keep), process.closed(bus), process.supervised(worker.ready)]
        await service.run(*services, grace=config.worker.grace)
