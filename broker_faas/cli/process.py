"""What long-running commands share: the event loop, the bus closed for good, and words with systemd."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .exit import INTERNAL, Failed

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..service import Service


def run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run, on uvloop where it is installed (extra `uvloop`). Raises Failed for the ways to end that only processes have."""
    from ..errors import BusRefused
    from ..service import Aborted, Stuck, first, new_event_loop

    # What is held is many objects and no cycles: looking through all of them every 700 new ones took a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main)
    except BaseException as error:
        match first(error):
            case Aborted():
                raise Failed("stopped at once; what was not finished runs again when a worker starts.") from None
            case Stuck() as stuck:
                raise Failed(f"{stuck}. This process ends, and its supervisor starts a fresh one.", INTERNAL) from None
            case BusRefused(code=10014) as gone:  # a queue it serves was deleted: the next process makes it anew
                raise Failed(str(gone), INTERNAL) from None
        raise


def closed(bus: JetStreamBus) -> Service:
    """Ends the process when the connection will never come back: its supervisor starts a fresh one."""

    async def service(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_closed(bus))
            await stop.wait()
            watching.cancel()

    return service


async def _closed(bus: JetStreamBus) -> None:
    await bus.closed.wait()
    raise Failed(f"the connection to the bus was closed for good ({bus.last_error or 'no reason given'}).", INTERNAL)


def supervised(ready: asyncio.Event) -> Service:
    """Tells systemd, or whoever gave NOTIFY_SOCKET: READY=1 after `ready`, STOPPING=1 when stopping, WATCHDOG=1 in between.

    The watchdog's beat comes from the event loop: a worker that hangs stops beating, and is started anew.
    """

    async def service(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            beats = tasks.create_task(_beats(ready))
            await stop.wait()
            beats.cancel()
        notify("STOPPING=1")

    return service


async def _beats(ready: asyncio.Event) -> None:
    await ready.wait()
    notify("READY=1")
    every = os.environ.get("WATCHDOG_USEC", "")
    while every.isdigit() and int(every):
        await asyncio.sleep(int(every) / 2e6)  # half of what is allowed
        notify("WATCHDOG=1")


def notify(state: str) -> None:
    """sd_notify(3). Nothing if nobody asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
