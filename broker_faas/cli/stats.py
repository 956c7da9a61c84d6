"""Counters of live workers: each answers a request on `faas.stats.{project}` with JSON; nobody stores them.

    {"worker": "node-1/4711", "seconds": 12.5, "functions": {"reserve": {"accepted": 9, "done": 7, …, "held": 2}}}

accepted = done + dead + discarded + handed_back + held, in every answer: it is made in one step of the worker's event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from ..buses.connection import Connection
    from ..workers.feed import Feed

PATIENCE = 1.0  # seconds for the first answer
QUIET = 0.1  # seconds without another answer, after which nobody else is expected


@asynccontextmanager
async def answering(connection: Connection, project: str, feeds: Callable[[], Iterable[Feed]]) -> AsyncIterator[None]:
    """Answer for these feeds while the context is open: to the very end of a drain."""
    started = time.monotonic()
    worker = f"{socket.gethostname()}/{os.getpid()}"

    def answer(subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        functions: dict[str, dict[str, int]] = {}
        for feed in feeds():
            add(functions.setdefault(feed.spec.name, {}), asdict(feed.counts) | {"held": len(feed.held)})
        body = orjson.dumps({"worker": worker, "seconds": round(time.monotonic() - started, 1), "functions": functions})
        if reply:
            connection.write(b"PUB %b %d\r\n%b\r\n" % (reply, len(body), body))

    sid = await connection.subscribe(f"faas.stats.{project}", answer)
    try:
        yield
    finally:
        connection.unsubscribe(sid)
        connection.forget(sid)


async def ask(connection: Connection, project: str) -> list[dict[str, Any]]:
    """What the live workers of a project answer; [] without any."""
    answers: list[dict[str, Any]] = []
    more = asyncio.Event()

    def take(subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if data:  # without: "no responders"
            answers.append(orjson.loads(data))
        more.set()

    inbox = f"{connection.inbox}.s.{secrets.token_hex(4)}"
    sid = await connection.subscribe(inbox, take)
    try:
        connection.write(b"PUB faas.stats.%b %b 0\r\n\r\n" % (project.encode(), inbox.encode()))
        wait = PATIENCE
        while True:
            async with asyncio.timeout(wait):
                await more.wait()
            if not answers:
                return []
            more.clear()
            wait = QUIET
    except TimeoutError:
        return answers
    finally:
        connection.unsubscribe(sid)
        connection.forget(sid)


def totals(answers: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By function, over all workers."""
    found: dict[str, dict[str, int]] = {}
    for answer in answers:
        for name, counts in answer["functions"].items():
            add(found.setdefault(name, {}), counts)
    return found


def add(to: dict[str, int], counts: dict[str, int]) -> None:
    for name, value in counts.items():
        to[name] = to.get(name, 0) + value
