"""One connection: uvicorn's HTTP/1.1, with a time for the head of a request, and refusals that say what was wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from .problem import refusal

HEAD_TIMEOUT = 10.0  # seconds from its first byte, or from the beginning of the connection
KEEP_ALIVE = 15  # seconds that a connection may be quiet after an answer
LINGER = 1.0  # seconds that a client may go on sending after its answer


class Connection(H11Protocol):
    """made: it has a transport. lost: called once it is gone."""

    def __init__(self, config: Config, state: ServerState, lost: Callable[[Connection], None]) -> None:
        super().__init__(config, state, {})
        self.made = False
        self._lost = lost
        self._head: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Has no request in hand: closing it takes nothing from anybody."""
        request = self._request
        return request is None or request.response_complete

    @property
    def _request(self) -> RequestResponseCycle | None:
        return self.cycle  # None before the first one, which its type does not say

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Lingering(transport, self._read_all)))
        self.made = True
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._head:
            self._head.cancel()
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # h11 takes nothing more
            return
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Called where h11's error is handled, which knows a better status: 431, 501."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.ProtocolError) else 400
        self._refuse(status, f"This is no HTTP/1.1 request: {error or msg}.")

    def shutdown(self) -> None:
        """What is in hand is finished; then it closes."""
        if self.idle:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def abort(self) -> None:
        if self.made:
            self.transport.abort()

    def _watch(self) -> None:
        """The clock runs while a head, or the rest of a body that nobody wants, is coming: bytes that trickle in do not stop it."""
        if self.transport.is_closing():
            return
        if not self.idle:
            if self._head:
                self._head.cancel()
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def _too_slow(self) -> None:
        self._refuse(408, f"The request did not come within {HEAD_TIMEOUT:g} seconds.")

    def _refuse(self, status: int, detail: str) -> None:
        # After an answer another one would be taken for that of the next request.
        request = self._request
        if request is None or not request.response_started or self.conn.our_state is h11.IDLE:
            self.transport.write(refusal(status, detail))
        self.transport.close()

    def _read_all(self) -> bool:
        return self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)


class _Lingering:
    """A transport whose close() waits for the client to be done: one that is closed on unread bytes takes the answer with it (RST)."""

    def __init__(self, transport: asyncio.Transport, read_all: Callable[[], bool]) -> None:
        self._transport = transport
        self._read_all = read_all
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._read_all() or not self._transport.can_write_eof():  # over TLS a goodbye does the same
            return self._transport.close()
        self._lingers = True
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER, self._transport.close)
        if not self._transport.get_write_buffer_size():
            with suppress(OSError):  # it is gone already
                self._transport.write_eof()
