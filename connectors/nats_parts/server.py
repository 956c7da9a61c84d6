"""A connection to another NATS, for what is read there and what is sent there."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

from ...buses.access import Access
from ...options import bus_url, check_remote

if TYPE_CHECKING:  # nats-py takes 0.2 s to import: open() pays
    from ...buses.connection import Connection

CONNECT = 5.0  # seconds for a connection


class Server(Protocol):
    """The options that say where and who; check_server() has seen them."""

    @property
    def url(self) -> str: ...
    @property
    def credentials(self) -> str | None: ...
    @property
    def ca(self) -> str | None: ...
    @property
    def insecure(self) -> bool: ...


async def connected(how: Server, name: str, stack: AsyncExitStack) -> Connection:
    """Raises BusUnavailable, BusRefused, ConfigError: source_errors() and sink_errors() say them in other words."""
    from ...buses.connection import connect

    access = Access(credentials=how.credentials, ca=how.ca)
    servers = [url.strip() for url in how.url.split(",") if url.strip()]
    return await stack.enter_async_context(connect(servers, name, access, CONNECT))


def check_server(how: Server) -> None:
    """ValueError, without the option's name in front."""
    bus_url(how.url)
    check_remote(how.url, how.insecure, login=how.credentials is not None, where="")
