"""`faas gateway`: listens, in our event loop, and within bounds. uvicorn speaks HTTP; accepting, limits and the drain are here."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from ..config import Config
from ..errors import ConfigError
from ..options import loopback
from ..tls import no_password
from .app import PATIENCE, Store, application
from .connection import KEEP_ALIVE, Connection
from .head import MAX_HEAD
from .keys import KeyFile, Keys
from .problem import refusal

log = logging.getLogger(__name__)

HANDSHAKE = 10.0  # seconds for TLS to begin, and
GOODBYE = 3.0  # to end
AT_ONCE = 64  # connections accepted before others have a turn


@asynccontextmanager
async def open_gateway(config: Config, store: Store) -> AsyncIterator[Server]:
    """Listens from here on; run() answers. Raises ConfigError for an address, certificate or keys file that cannot be used."""
    options = config.gateway
    keys = Keys(KeyFile(config.keys_file))
    if not keys.wanted and not loopback(options.host):
        if not options.insecure:
            raise ConfigError(
                f"gateway.host = {options.host!r} can be reached from other machines, and there are no keys: anybody could publish. "
                "`faas keys add NAME` makes one. In a network where nobody else listens, say insecure = true under [gateway]."
            )
        log.warning("anybody who reaches this gateway may publish: it has no keys", extra={"host": options.host})
    tls = _tls(config) if options.tls_cert else None
    listener = _listen(options.host, options.port)
    try:
        yield Server(application(store, keys, options), listener, tls, options.max_connections)
    finally:
        listener.close()


def longest(config: Config) -> float:
    """Seconds that a request in hand may take: what a drain has to wait for."""
    return config.gateway.body_timeout + PATIENCE + 5.0


class Server:
    """ready: set once it accepts. Connections beyond max_connections take the place of the oldest that has no request in hand."""

    def __init__(self, app: ASGIApp, listener: socket.socket, tls: ssl.SSLContext | None, max_connections: int) -> None:
        self.ready = asyncio.Event()
        host, port = listener.getsockname()[:2]
        self.url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        self._listener = listener
        self._tls = tls
        self._max = max_connections
        self._held: dict[Connection, asyncio.Task[None]] = {}  # oldest first; the task is over once the connection is made
        self._change = asyncio.Event()
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what a stranger sends must not fill the log; the app logs what is ours
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        self._config.load()

    @property
    def connections(self) -> int:
        return len(self._held)

    @property
    def in_hand(self) -> int:
        """Requests that are not answered."""
        return sum(not connection.idle for connection in self._held)

    async def run(self, stop: asyncio.Event) -> None:
        """A service: after `stop` nobody is accepted, and requests in hand are answered. Cancelled: they are cut off."""
        async with asyncio.TaskGroup() as self._tasks:
            self._accepting(True)
            self.ready.set()
            log.info("gateway listens", extra={"url": self.url})
            try:
                await stop.wait()
                self._accepting(False)
                self._listener.close()
                await self._drain()
            finally:
                self._accepting(False)
                await self._cut()

    def _accepting(self, on: bool) -> None:
        loop = asyncio.get_running_loop()
        if on and self._listener.fileno() >= 0:
            loop.add_reader(self._listener, self._accept)
        elif self._listener.fileno() >= 0:
            loop.remove_reader(self._listener)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors left
                if not self._evict():
                    log.warning("no connections are accepted for a second", extra={"why": error.strerror})
                    self._accepting(False)
                    asyncio.get_running_loop().call_later(1.0, self._accepting, True)
                return
            sock.setblocking(False)
            if len(self._held) >= self._max and not self._evict():
                with suppress(OSError):
                    if not self._tls:
                        sock.send(refusal(503, "Too many connections. Come again in a moment."))
                sock.close()
                continue
            connection = Connection(self._config, self._state, self._forget)
            self._held[connection] = self._tasks.create_task(self._made(connection, sock))

    async def _made(self, connection: Connection, sock: socket.socket) -> None:
        times = {"ssl_handshake_timeout": HANDSHAKE, "ssl_shutdown_timeout": GOODBYE} if self._tls else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock, ssl=self._tls, **times)
        except OSError:  # it went away, or speaks no TLS
            pass
        except Exception:  # nothing that a stranger does may end the others
            log.exception("a connection could not be made: a bug of ours")
        finally:
            if not connection.made:
                sock.close()
                self._forget(connection)

    def _evict(self) -> bool:
        """Close the oldest connection without a request in hand: slow ones cannot keep others out."""
        connection = next((one for one in self._held if one.idle), None)
        if connection is None:
            return False
        self._held[connection].cancel()
        connection.abort()
        self._forget(connection)
        return True

    def _forget(self, connection: Connection) -> None:
        self._held.pop(connection, None)
        self._change.set()

    async def _drain(self) -> None:
        for connection, task in list(self._held.items()):
            if connection.made:
                connection.shutdown()
            else:
                task.cancel()
        while self._held:
            self._change.clear()
            await self._change.wait()

    async def _cut(self) -> None:
        for connection, task in list(self._held.items()):
            task.cancel()
            connection.abort()
        await asyncio.sleep(0)  # they are told that they are gone before their requests end
        for task in list(self._state.tasks):
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"gateway.host and gateway.port: cannot listen at {host}, port {port}: {error.strerror or error}.") from None
    listener.setblocking(False)
    return listener


def _tls(config: Config) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    cert, key = Path(config.gateway.tls_cert or ""), Path(config.gateway.tls_key or "")
    try:
        context.load_cert_chain(config.root / cert, config.root / key, password=no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"gateway.tls_cert and gateway.tls_key: {cert} and {key} cannot be used: {error}.") from None
    return context
