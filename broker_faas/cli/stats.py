"""Counters of live processes: each answers a request with JSON; nobody stores them. Workers on `faas.stats.{project}`:

    {"worker": "node-1/4711", "seconds": 12.5, "functions": {"reserve": {"accepted": 9, "done": 7, …, "held": 2}}}

what runs connectors on `faas.connectors.{project}`:

    {"worker": "node-2/815", "seconds": 12.5, "connectors": {"orders": {"state": "reading", "read": 9, "stored": 9, …}}}

accepted = done + dead + discarded + handed_back + held, in every answer: it is made in one step of the worker's event loop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
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
async def answering(connection: Connection, subject: str, told: Callable[[], Mapping[str, Any]]) -> AsyncIterator[None]:
    """Answer requests on `subject` while the context is open, to the very end of a drain: with who we are, since when, and what is told."""
    started = time.monotonic()
    worker = f"{socket.gethostname()}/{os.getpid()}"

    def answer(_: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        body = orjson.dumps({"worker": worker, "seconds": round(time.monotonic() - started, 1), **told()})
        if reply:
            connection.write(b"PUB %b %d\r\n%b\r\n" % (reply, len(body), body))

    sid = await connection.subscribe(subject, answer)
    try:
        yield
    finally:
        connection.unsubscribe(sid)
        connection.forget(sid)


def stats_of(project: str) -> str:
    """The subject on which the workers of a project answer."""
    return f"faas.stats.{project}"


def connectors_of(project: str) -> str:
    return f"faas.connectors.{project}"


def counters(feeds: Iterable[Feed]) -> dict[str, Any]:
    """What a worker tells."""
    functions: dict[str, dict[str, int]] = {}
    for feed in feeds:
        add(functions.setdefault(feed.spec.name, {}), asdict(feed.counts) | {"held": len(feed.held)})
    return {"functions": functions}


async def ask(connection: Connection, subject: str) -> list[dict[str, Any]]:
    """What the live processes that listen there answer; [] without any."""
    answers: list[dict[str, Any]] = []
    more = asyncio.Event()

    def take(subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        if data:  # without: "no responders"
            answers.append(orjson.loads(data))
        more.set()

    inbox = f"{connection.inbox}.s.{secrets.token_hex(4)}"
    sid = await connection.subscribe(inbox, take)
    try:
        connection.write(b"PUB %b %b 0\r\n\r\n" % (subject.encode(), inbox.encode()))
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
