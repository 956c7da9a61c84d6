"""Publishes with a peer's own client: `publish.py APP publish`, or `publish.py APP paced RATE`.

An app has send(data), plain or async, and for async ones lifespan(), around them all.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutinefunction
from time import monotonic, sleep
from typing import Any

from benchmarks.marks import here, payload

AT_ONCE = 200  # async publishes under way
marks = here()


def blocking(app: Any, rate: float) -> None:
    started = monotonic()
    for turn, number in enumerate(marks.numbers()):
        if rate:
            sleep(max(0.0, started + turn / rate - monotonic()))
        marks.send(number)
        app.send(payload(number))


async def concurrent(app: Any, rate: float) -> None:
    async def send(number: int) -> None:
        marks.send(number)
        await app.send(payload(number))

    async with app.lifespan(), asyncio.TaskGroup() as tasks:
        started = monotonic()
        if rate:
            for turn, number in enumerate(marks.numbers()):
                await asyncio.sleep(max(0.0, started + turn / rate - monotonic()))
                tasks.create_task(send(number))
        else:
            numbers = marks.numbers()
            for start in range(0, len(numbers), AT_ONCE):
                await asyncio.gather(*map(send, numbers[start : start + AT_ONCE]))


def main(name: str, how: str, rate: str = "0") -> None:
    app = import_module(name)
    if iscoroutinefunction(app.send):
        run = import_module("uvloop" if find_spec("uvloop") else "asyncio").run  # as everybody's programs here
        run(concurrent(app, float(rate)))
    else:
        blocking(app, float(rate))


main(*sys.argv[1:])
