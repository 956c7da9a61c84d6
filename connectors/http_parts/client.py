"""The client: how the receiver is connected to, and what is read of its answers. aiohttp's traps are here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from ...errors import SinkRefused, SinkUnavailable
from ...tls import client_context, refusal

if TYPE_CHECKING:
    from ..sinks.http import HttpSink

KEEP_ALIVE = 15.0  # seconds that a connection may be quiet
BODY = 16 << 10  # bytes of an answer that are read; beyond, its connection is closed


class Phase(Enum):
    """How far the request of the running task has come."""

    CONNECTING = "not connected"
    NEW = "on a connection made for it"
    REUSED = "on a connection that others were sent on before"


phase: ContextVar[Phase] = ContextVar("phase")


class Connections(aiohttp.TCPConnector):
    """Tells `phase`. What was said on a connection without having been asked would be the answer to the next request: it is closed."""

    def __init__(self, limit: int, tls: ssl.SSLContext | bool) -> None:
        super().__init__(limit=limit, ssl=tls, keepalive_timeout=KEEP_ALIVE, resolver=aiohttp.ThreadedResolver())
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        phase.set(Phase.CONNECTING)
        connection = await super().connect(req, traces, timeout)
        while (protocol := connection.protocol) is not None and protocol.should_close:
            connection.close()
            connection = await super().connect(req, traces, timeout)
        if protocol in self._used:
            phase.set(Phase.REUSED)
        elif protocol is not None:
            self._used.add(protocol)
            phase.set(Phase.NEW)
        return connection


@asynccontextmanager
async def connected(how: HttpSink) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a receiver that could be connected to just now. Raises SinkUnavailable, SinkRefused."""
    tls = _tls(how)
    url = URL(how.url.replace("{target}", "t"), encoded=True)
    await _reach(url, tls, how.timeout)
    async with aiohttp.ClientSession(
        connector=Connections(how.concurrency, tls or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # ours has no rounding to whole seconds
        cookie_jar=aiohttp.DummyCookieJar(),  # one request is nothing to the next
        auto_decompress=False,  # nobody wants to see it, and it may be a bomb
        read_bufsize=BODY,
        trust_env=False,
    ) as session:
        yield session


def why(error: BaseException) -> str:
    """Of a connection, in a few words, without any path."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    if isinstance(error, TimeoutError):
        return "no answer"
    if refused := refusal(error, "ca_file"):
        return refused
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what it said is no HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


async def read(response: aiohttp.ClientResponse, body: bytearray) -> None:
    """Appends what comes of the body, up to BODY. What is not read to its end is closed when the response is left."""
    while len(body) < BODY and (chunk := await response.content.readany()):
        body += chunk[: BODY - len(body)]


async def _reach(url: URL, tls: ssl.SSLContext | None, timeout: float) -> None:
    """One connection, on which nothing is asked: an address that is wrong is heard of before the first event."""
    where = f"{url.host}:{url.port}"
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)  # uvloop knows no happy_eyeballs_delay
    except (OSError, TimeoutError) as error:
        kind = SinkRefused if refusal(error, "ca_file") else SinkUnavailable
        raise kind(f"{where} cannot be connected to: {why(error)}") from None
    writer.transport.abort()


def _tls(how: HttpSink) -> ssl.SSLContext | None:
    if not how.url.startswith("https:"):
        return None
    try:
        return client_context(how.ca_file, how.cert_file, how.key_file)
    except ValueError as error:
        raise SinkRefused(str(error)) from None
