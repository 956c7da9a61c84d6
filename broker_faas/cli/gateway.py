"""`faas gateway`: events over HTTP."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import click

from . import logs, process
from .connection import Place, find, url_option
from .exit import Failed


@click.command()
@url_option
def gateway(url: str | None) -> None:
    """Take events over HTTP: CloudEvents, or any body, posted to /topics/TOPIC.

    What is answered with 200 is on disk. Listens at 127.0.0.1:8080, or where [gateway] of faas.toml says; /docs shows what it takes.
    Once there are keys ('faas keys add'), every post needs one. SIGTERM drains: nobody is accepted, requests in hand are answered. Logs
    are JSON, unless stdout is a terminal.

    \b
    Example:
      faas gateway
      curl --json '{"id": 1}' http://127.0.0.1:8080/topics/orders.created
    """
    from ..errors import ConfigError

    place = find(url)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"the gateway needs {error.name}, which is not installed: pip install 'broker-faas[http]'.") from None
    logs.start(human=sys.stdout.isatty())
    process.run(_work(place))


async def _work(place: Place) -> None:
    from .. import service
    from ..gateway.server import longest, open_gateway

    config = place.project
    async with AsyncExitStack() as stack:
        bus = await service.patiently(lambda: stack.enter_async_context(place.open(manage=True)))
        server = await stack.enter_async_context(open_gateway(config, bus))
        try:
            await service.run(server.run, process.closed(bus), process.supervised(server.ready), grace=longest(config))
        except service.Aborted:
            raise Failed("stopped at once; clients whose requests were cut off have to send them again.") from None
