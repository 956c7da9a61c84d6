"""nats-py with our own data path: it connects, logs in, speaks TLS, pings and reconnects; messages never pass through it.

nats-py spends 7 to 25 µs on a message: two regular expressions, a dict of headers, a queue, a task. Here a message is cut out
of what one read of the socket brought and goes, raw, to a plain function: 1 µs. The overrides below and what connection.py touches
of Client's inside are the whole seam to nats-py 2.16; tests/integration/test_nats_seam.py holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, Client, Srv
from nats.errors import Error as NatsError

from ..intake import ROOM, Intake

T = TypeVar("T")


class NoTls(NatsError):
    """The server does not offer what its url asks for."""


Sink = Callable[[bytes, bytes, bytes, bytes], None]  # subject, reply, headers, data; headers b"" if none. Must not raise.


class WireClient(Client):
    """sinks: by subscription id, who gets its messages; those of other subscriptions are dropped.

    Errors that a reconnect may heal never close it for good.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sinks: dict[int, Sink] = {}
        self.afterwards: list[Callable[[], None]] = []  # to call once what this read brought has been handed to sinks

    def send(self, data: bytes) -> bool:
        """Straight to the socket, past nats-py's buffer and its limit; False while disconnected."""
        if not self.is_connected or self._transport is None or self._lost():
            return False
        self._transport.write(data)
        return True

    def _lost(self) -> bool:
        """Though nats-py has not heard of it yet: to write then is a RuntimeError in uvloop, and a line in the log in asyncio."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer is not None and writer.is_closing()

    async def flush(self, timeout: int = DEFAULT_FLUSH_TIMEOUT) -> None:
        """nats-py writes its PING past what it has buffered: the answer would come before the server has seen a SUB."""
        if self.is_connected and self._lost():
            raise NatsError("nats: the connection is lost")
        if self._pending and self.is_connected and self._transport is not None:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(pending)
        await super().flush(timeout)

    def leave(self, sid: int) -> bool:
        """End a subscription, also for later reconnects. Its sink stays, for what is on its way."""
        return self._subs.pop(sid, None) is not None and self.send(b"UNSUB %d\r\n" % sid)

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" in err_msg or "stale connection" in err_msg:
            await super()._process_err(err_msg)
        else:  # nats-py would close itself for good
            error = NatsError(f"nats: {err_msg}")
            await self._error_cb(error)
            await self._process_op_err(error)

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):
            self._abort()
        await super()._process_op_err(e)

    async def _connect_to_server(self, s: Srv) -> None:
        self._abort()  # the socket of a try that failed halfway would stay open
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        """A connection whose handshake failed never says that it is closed, and nats-py waits for that, before it tries another server."""
        try:
            await super()._process_connect_init()
        except BaseException:
            self._abort()
            self._transport = None
            raise

    def _connect_command(self) -> bytes:
        """What is written first on TLS. asyncio was not told that it is TLS, and would warn at its end."""
        writer: asyncio.StreamWriter = self._transport._io_writer  # type: ignore[union-attr]
        writer.transport.get_protocol()._over_ssl = writer.get_extra_info("ssl_object") is not None  # type: ignore[attr-defined]
        return super()._connect_command()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """For tls://, nats-py speaks TLS only if the server, or who is in between, asks for it: else the password goes in the clear."""
        server = self._current_server
        if initial_connection and server is not None and server.uri.scheme == "tls":
            if not (info.get("tls_required") or info.get("tls_available")):
                raise NoTls("it speaks no TLS, which tls:// asks for")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _abort(self) -> None:
        """nats-py's close() waits until all written bytes have left, which on a dead link is never."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _read_loop(self) -> None:
        """nats-py's loop reads what `Cutter` leaves; the rest never reaches its reader, so that no task has to wake up for it."""
        reader: asyncio.StreamReader = self._transport._io_reader  # type: ignore[union-attr]
        transport: asyncio.Transport = self._transport._io_writer.transport  # type: ignore[union-attr]
        if not transport.is_closing():
            tap = Tap(Cutter(self.sinks, reader.feed_data), self.afterwards, reader, transport.get_protocol())
            early = bytes(reader._buffer)  # type: ignore[attr-defined]  # what came behind the server's first PONG
            reader._buffer.clear()  # type: ignore[attr-defined]
            transport.pause_reading()  # uvloop looks at the protocol when it begins to read
            transport.set_protocol(tap)
            tap.feed(early)
            transport.resume_reading()
        await super()._read_loop()
        task = asyncio.current_task()
        if self.is_connected and not (task and task.cancelling()):  # it swallows what it does not know, and is deaf from then on
            await self._process_op_err(NatsError("nats: reading stopped"))


class Tap(asyncio.BufferedProtocol):
    """Between the socket and nats-py's reader: bytes are read where they are cut, and all else is the reader's protocol's to hear."""

    def __init__(
        self, cutter: Cutter, afterwards: list[Callable[[], None]], reader: asyncio.StreamReader, protocol: asyncio.BaseProtocol
    ) -> None:
        self._cutter = cutter
        self._afterwards = afterwards
        self._reader = reader
        self._broken = False
        self.get_buffer = cutter.room  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign,attr-defined]

    def buffer_updated(self, nbytes: int) -> None:
        self._cut(self._cutter.filled, nbytes)

    def feed(self, data: bytes) -> None:
        self._cut(self._cutter.feed, data)

    def _cut(self, cut: Callable[[T], None], what: T) -> None:
        if self._broken:
            return
        try:
            try:
                cut(what)
            finally:
                while self._afterwards:
                    self._afterwards.pop()()
        except Exception as error:  # no NATS server wrote this: a new connection, instead of a guess where the next message begins
            self._broken = True
            self._reader.set_exception(NatsError(f"nats: not its protocol: {error!r}"))


class Cutter:
    """Cuts messages out of a stream, however it arrives. Every other line (PING, INFO, -ERR, …) goes to `others`, whole.

    Holds at most one message that is not whole. A byte is copied once, from where it was read into what its sink gets. Raises ValueError
    or IndexError at a message that cannot be one.
    """

    def __init__(self, sinks: Mapping[int, Sink], others: Callable[[bytes], None]) -> None:
        self._sinks = sinks
        self._others = others
        self._intake = Intake()
        self._wanted = 0  # bytes of the message that is not whole, if they are known

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), ROOM):
            part = data[start : start + ROOM]
            self.room(0)[: len(part)] = part
            self.filled(len(part))

    def room(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return self._intake.room()

    def filled(self, size: int) -> None:
        """So many bytes were read there."""
        intake, sinks = self._intake, self._sinks
        intake.filled(size)
        memory, view, start, end = intake.memory, intake.view, intake.start, intake.end
        wanted = self._wanted
        while start + wanted < end:
            stop = memory.find(b"\r\n", start, end)
            if stop < 0:
                break
            words = view[start:stop].tobytes().split(b" ")
            if words[0] == b"HMSG":
                size = int(words[-1])
                body, head = stop + 2, stop + 2 + int(words[-2])
                reply = words[3] if len(words) == 6 else b""
            elif words[0] == b"MSG":
                size = int(words[-1])
                body = head = stop + 2
                reply = words[3] if len(words) == 5 else b""
            else:
                self._others(view[start : stop + 2].tobytes())
                start = stop + 2
                continue
            if not body <= head <= body + size:
                raise ValueError(view[start : start + 200].tobytes())
            if body + size + 2 > end:
                wanted = body + size + 1 - start
                break
            if sink := sinks.get(int(words[2])):
                sink(words[1], reply, view[body:head].tobytes(), view[head : body + size].tobytes())
            start, wanted = body + size + 2, 0
        self._wanted = wanted
        intake.taken(start)
