"""Signals, drain, grace and abort of every process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker_faas.cli import process
from broker_faas.cli.exit import Failed
from broker_faas.service import Aborted, run


async def test_a_first_signal_lets_a_service_finish_what_it_holds() -> None:
    finished = False

    async def service(stop: asyncio.Event) -> None:
        nonlocal finished
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        await asyncio.sleep(0)
        finished = True

    await run(service)

    assert finished


async def test_a_second_signal_cancels_and_raises() -> None:
    cancelled = False

    async def service(stop: asyncio.Event) -> None:
        nonlocal cancelled
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(Aborted):
        await run(service)

    assert cancelled


async def test_when_the_grace_is_over_services_are_cancelled_and_that_is_a_normal_end() -> None:
    cancelled = False

    async def service(stop: asyncio.Event) -> None:
        nonlocal cancelled
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    await run(service, grace=0.01)

    assert cancelled


async def test_a_service_that_fails_drains_the_others_and_its_error_is_raised() -> None:
    drained = False

    async def fails(stop: asyncio.Event) -> None:
        raise RuntimeError("bad")

    async def drains(stop: asyncio.Event) -> None:
        nonlocal drained
        try:
            await stop.wait()
        finally:
            drained = True

    with pytest.raises(RuntimeError, match="bad"):
        await run(fails, drains)

    assert drained


async def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def service(stop: asyncio.Event) -> None:
        return

    await run(service)

    assert before == signal.getsignal(signal.SIGTERM)


@pytest.fixture
def on_hangup() -> Iterator[Callable[[Any], None]]:
    """`on_hangup(handler)` is what SIGHUP does until the end of the test."""
    before = signal.getsignal(signal.SIGHUP)

    def set_to(handler: Any) -> None:
        signal.signal(signal.SIGHUP, handler)

    yield set_to
    signal.signal(signal.SIGHUP, before)


async def test_a_terminal_that_is_closed_drains(on_hangup: Callable[[Any], None]) -> None:
    on_hangup(lambda *_: None)

    async def service(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(1):
            await stop.wait()

    await run(service)


async def test_under_nohup_a_terminal_that_is_closed_drains_nothing(
    on_hangup: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    on_hangup(signal.SIG_IGN)
    caplog.set_level("INFO", logger="broker_faas")

    async def service(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)  # a second signal, were the first one heard
        await stop.wait()

    await run(service)

    assert ["SIGTERM"] == [vars(record)["why"] for record in caplog.records if record.message == "drain"]


async def test_a_bus_that_is_closed_for_good_ends_the_process_with_70() -> None:
    bus = SimpleNamespace(closed=asyncio.Event(), last_error="credentials refused")
    bus.closed.set()
    with pytest.raises(Failed) as ended:
        await run(process.closed(cast(Any, bus)))

    assert (ended.value.code, "credentials refused" in str(ended.value)) == (70, True)
