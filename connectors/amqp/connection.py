"""A connection to RabbitMQ, and what its errors mean. aiormq keeps it; what it reads passes through here first."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

import aiormq
from aiormq import exceptions as amqp
from aiormq.connection import TransportFactory

from ...errors import ConfigError, SinkError, SinkRefused, SinkUnavailable, SourceError, SourceRefused, SourceUnavailable
from ...options import loopback, masked
from ...tls import client_context, refusal

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

CONNECT, CLOSE = 10.0, 3.0  # seconds
HEARTBEAT = 15  # seconds; a connection that is silent for three of them is lost
MAX_FRAME = 16 << 20  # bytes
_HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"


class Server(Protocol):
    """The options that say where and who; check_server() has seen them."""

    @property
    def url(self) -> str: ...
    @property
    def ca(self) -> str: ...
    @property
    def cert(self) -> str: ...
    @property
    def cert_key(self) -> str: ...


class Tap(Protocol):
    """Who hears every frame before aiormq does, and may write beside it: whole frames, on channels that aiormq has opened."""

    def begin(self, writer: asyncio.StreamWriter) -> None: ...
    def heard(self, kind: int, channel: int, payload: bytes) -> bool:
        """True: it was for the tap alone. Must not raise."""
        ...


@asynccontextmanager
async def connected(
    how: Server, name: str, gate: asyncio.Event, errors: Callable[[str], AbstractContextManager[None]], tap: Tap | None = None
) -> AsyncIterator[AbstractConnection]:
    """name: what an operator sees of it at the broker. errors: source_errors or sink_errors."""
    parts = urlsplit(how.url)
    url = f"{how.url}{'' if parts.path else '/'}?heartbeat={HEARTBEAT}&name={quote(name, safe='')}"
    with errors(f"RabbitMQ at {parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"):
        async with asyncio.timeout(CONNECT):
            connection = aiormq.Connection(url, transport_factory=_transport(_tls(how), gate, tap))
            await connection.connect()
    try:
        yield connection
    finally:
        gate.set()
        with suppress(Exception):
            async with asyncio.timeout(CLOSE):
                await connection.close()


def _tls(how: Server) -> ssl.SSLContext | None:
    if urlsplit(how.url).scheme != "amqps":
        return None
    try:
        return client_context(how.ca, how.cert, how.cert_key)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _transport(tls: ssl.SSLContext | None, gate: asyncio.Event, tap: Tap | None) -> Any:
    class Transport(TransportFactory):
        async def create(self, url: Any, **_: Any) -> tuple[Any, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
            if tap is not None:
                tap.begin(writer)
            return Frames(reader, gate, tap), writer

    return Transport()


class Frames:
    """A reader of whole frames, between the socket and aiormq.

    A header table that its decoder does not like would end the connection, and the message would come again, for ever. So properties travel
    through it unread, as one value of a table, and are read where an error is an error of one message.
    gate: while it is closed nothing is read, and aiormq, which would believe the connection lost, is told of a heartbeat now and then.
    It is, too, while all that comes is for the tap.
    """

    def __init__(self, reader: asyncio.StreamReader, gate: asyncio.Event, tap: Tap | None = None) -> None:
        self._reader, self._gate, self._tap = reader, gate, tap
        self._passed = 0.0  # loop time of the last frame that aiormq got
        self._frame, self._at = b"", 0

    def at_eof(self) -> bool:
        return self._at == len(self._frame) and self._reader.at_eof()

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        if self._at == len(self._frame):
            self._frame, self._at = await self._next(), 0
        self._at += n
        return self._frame[self._at - n : self._at]

    async def _next(self) -> bytes:
        if not self._gate.is_set():
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._gate.wait()
            except TimeoutError:
                return _HEARTBEAT
        head, payload = await self._frame_of_socket()
        if self._tap is not None:
            now = asyncio.get_running_loop().time
            while self._tap.heard(head[0], int.from_bytes(head[1:3]), payload):
                if now() - self._passed > HEARTBEAT / 2:
                    self._passed = now()
                    return _HEARTBEAT
                head, payload = await self._frame_of_socket()
            self._passed = now()
        if head.startswith(b"AMQP"):  # the server speaks another version, and says which
            return head + payload
        match head[0]:
            case 1 if payload[:4] in (b"\0\x3c\0\x3c", b"\0\x3c\0\x47"):  # basic.deliver, basic.get-ok
                payload = readable(payload)
            case 2:
                table = b"\1px" + len(payload).to_bytes(4) + payload
                payload = payload[:12] + b"\x20\0" + len(table).to_bytes(4) + table
        return head[:3] + len(payload).to_bytes(4) + payload + b"\xce"

    async def _frame_of_socket(self) -> tuple[bytes, bytes]:
        """Head and payload."""
        head = await self._reader.readexactly(7)
        if head.startswith(b"AMQP"):
            return head, await self._reader.readexactly(1)
        size = int.from_bytes(head[3:7])
        if size > MAX_FRAME:
            raise ConnectionError(f"the broker announces a frame of {size:,} bytes")
        return head, (await self._reader.readexactly(size + 1))[:-1]


def readable(method: bytes) -> bytes:
    """A delivery, its exchange and routing key as UTF-8: AMQP has them as bytes."""
    at = 13 if method[3] == 0x47 else 14 + method[4]  # behind the tag and the redelivered bit
    exchange_end = at + 1 + method[at]
    key_end = exchange_end + 1 + method[exchange_end]
    names = [method[at + 1 : exchange_end], method[exchange_end + 1 : key_end]]
    if all(name.isascii() for name in names):
        return method
    texts = [name.decode("utf-8", "backslashreplace").encode()[:255].decode("utf-8", "ignore").encode() for name in names]
    return method[:at] + b"".join(len(text).to_bytes(1) + text for text in texts) + method[key_end:]


def source_errors(connecting: str = "") -> AbstractContextManager[None]:
    """What aiormq raises, as a SourceError. connecting: where to."""
    return _errors(SourceError, SourceUnavailable, SourceRefused, connecting)


def sink_errors(connecting: str = "") -> AbstractContextManager[None]:
    """What aiormq raises, as a SinkError. connecting: where to."""
    return _errors(SinkError, SinkUnavailable, SinkRefused, connecting)


@contextmanager
def _errors(known: type[Exception], unavailable: type[Exception], refused: type[Exception], connecting: str) -> Iterator[None]:
    try:
        yield
    except known:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise unavailable("the connection was lost") from None  # aiormq cancels what waits for it
    except Exception as error:
        for_good, text = told(error)
        if connecting:
            closed = not for_good and isinstance(error, amqp.AMQPError)
            text = f"{connecting}: {text}{': are amqp:// or amqps://, cert and cert_key what this port wants?' if closed else ''}"
        raise (refused if for_good else unavailable)(text) from None


def told(error: Exception) -> tuple[bool, str]:
    """(whether it would be the same when coming again, what to say). Pure."""
    text = masked(str(error)) or type(error).__name__
    match error:
        case ConfigError():
            return True, text
        case amqp.ChannelNotFoundEntity() if "no queue" in text:
            return True, f"{text}: make the queue first; a connector makes none"
        case amqp.ChannelNotFoundEntity() if "no exchange" in text:
            return True, f"{text}: make the exchange first, or mend the name; a sink makes none"
        case amqp.ChannelAccessRefused() if "exclusive" in text:
            return False, f"{text}: another consumer has it for itself"
        case amqp.ChannelPreconditionFailed() if "'x-priority'" in text:
            return True, f'{text}: it is a stream, which needs the option offset, like offset = "first"'
        case amqp.ChannelPreconditionFailed() if "'x-stream-offset'" in text:
            return True, f"{text}: it is no stream, take the option offset away"
        case amqp.ChannelAccessRefused() | amqp.ChannelLockedResource() | amqp.ChannelPreconditionFailed():
            return True, text
        case amqp.ProbableAuthenticationError() | amqp.AuthenticationError():
            return True, f"{text.rstrip('.')}: check user and password in url"
        case amqp.ConnectionNotAllowed():
            return True, text
        case amqp.InvalidFrameError() if "OpenOk" in text:  # a close, whose reason aiormq does not tell
            return True, "there is no such vhost, or this login may not use it"
    said = refusal(error.__cause__ or error, "ca")
    return said is not None, said or text  # not for good: also a queue whose node is down, which is said with 404, too


def check_server(how: Server, insecure: bool) -> None:
    """ValueError that names the option."""
    try:
        parts = urlsplit(how.url)
        valid = parts.scheme in ("amqp", "amqps") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("url must look like amqp://127.0.0.1:5672 or amqps://user:password@host:5671/vhost")
    if parts.scheme == "amqp" and not insecure and not loopback(parts.hostname or ""):
        raise ValueError(
            f"url is another machine ({parts.hostname}): it needs TLS, like amqps://user:password@{parts.hostname}:5671. "
            "In a network where nobody else listens, say insecure = true."
        )
    if bool(how.cert) != bool(how.cert_key):
        raise ValueError("cert and cert_key belong together")
    if (how.ca or how.cert) and parts.scheme != "amqps":
        raise ValueError("ca and cert are for amqps://")
