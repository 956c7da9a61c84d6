"""Answers to requests that were written together, and what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import BusRefused, BusUnavailable


class Replies:
    """Answers to requests written together. `answers[i]`: (headers, data), b"" headers if none; None: not answered."""

    def __init__(self, prefix: str, subjects: Sequence[str]) -> None:
        self.prefix = prefix  # request i asks for its answer at f"{prefix}{i}"
        self.subjects = subjects
        self.answers: list[tuple[bytes, bytes] | None] = [None] * len(subjects)
        self.denied: set[int] = set()
        self.left = len(subjects)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, position: int, headers: bytes, data: bytes) -> None:
        if position < len(self.answers) and self.answers[position] is None:
            self.answers[position] = headers, data
            self.left -= 1
            if not self.left:
                self.end()

    def deny(self, subject: str) -> None:
        for position, asked in enumerate(self.subjects):
            if asked.lower() == subject and self.answers[position] is None:
                self.denied.add(position)
                self.take(position, b"", b"")

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """True once all have answered; False after `seconds` or when the connection is lost."""
        await asyncio.wait([self.done], timeout=seconds)
        return not self.left


def not_permitted(subject: str) -> BusRefused:
    return BusRefused(f"this NATS user may not publish to {subject}; grant it in the server's permissions")


def api_answer(
    subject: str, answer: tuple[bytes, bytes] | None, denied: bool, seconds: float
) -> dict[str, Any] | BusRefused | BusUnavailable:
    """What JetStream's API said on `subject`, or the error it stands for."""
    if denied:
        return not_permitted(subject)
    if answer is None:
        return BusUnavailable(f"NATS did not answer {subject} within {seconds:g} s")
    _, data = answer
    if not data:
        return BusUnavailable(f"nobody answers {subject}: is JetStream enabled, for the server (nats-server -js) and this account?")
    parsed: dict[str, Any] = orjson.loads(data)
    if error := parsed.get("error"):
        text = f"JetStream says no to {subject.removeprefix('$JS.API.')}: {error.get('description')} (err_code {error.get('err_code')})"
        return BusUnavailable(text) if error.get("code") == 503 else BusRefused(text, error.get("err_code", 0))
    return parsed
