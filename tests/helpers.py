"""What tests share that is no fixture."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from broker_faas.embedded import EmbeddedNats, Server


async def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """The first truthy answer of `condition`, a plain or async function; AssertionError after `timeout` seconds, with the last answer.

    AssertionError and OSError inside `condition` mean "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            seen = condition()
            if inspect.isawaitable(seen):
                seen = await seen
            if seen:
                return seen
        except (AssertionError, OSError) as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout:g} s; last seen: {seen!r}")
        await asyncio.sleep(0.01)


class OwnNats:
    """A private server to break: after kill() or stop(), start() brings it back on the same folder and port."""

    def __init__(self, options: EmbeddedNats) -> None:
        self.options = options
        self.server: Server
        self._open = AsyncExitStack()

    @property
    def url(self) -> str:
        return self.server.url

    async def start(self) -> None:
        self.server = await self._open.enter_async_context(self.options.open())
        self.options = replace(self.options, port=self.server.port)

    async def stop(self) -> None:
        await self._open.aclose()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        os.kill(self.server.pid, signal.SIGKILL)
        await self.server.exited()
        await self.stop()
