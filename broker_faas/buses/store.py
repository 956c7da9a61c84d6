"""What lies in JetStream's streams: single requests, for operators and housekeeping."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from ..bus import Delivery, Position
from ..errors import BusRefused
from ..layout import EVENTS, position_subject

T = TypeVar("T")

NO_MESSAGE = 10037  # JetStream's err_codes
GONE = (10043, 10057)  # no such sequence; deleted meanwhile
AT_ONCE = 32  # requests in flight: making 257 consumers takes the server seconds, and each answer has 5


class Api(Protocol):
    """JetStream's API: a Connection or an open bus."""

    async def api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Raises BusUnavailable, BusRefused with JetStream's err_code."""


# --- streams ------------------------------------------------------------------------------------------------


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Their answers, some asked for at once, so that none waits long; the first error after all have ended."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(call: Awaitable[T]) -> T:
        async with turns:
            return await call

    answers = await asyncio.gather(*(ask(call) for call in calls), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def info(bus: Api, stream: str) -> dict[str, Any]:
    """STREAM.INFO: `config`, `state`, and `ts`, the server's clock."""
    return await bus.api(f"STREAM.INFO.{stream}")


async def subjects(bus: Api, stream: str, pattern: str) -> dict[str, int]:
    """How many messages lie on each subject that matches. The server sends 100,000 subjects at a time."""
    found: dict[str, int] = {}
    while True:
        answer = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(found)})
        page = answer["state"].get("subjects") or {}
        found |= page
        if not page or len(found) >= answer.get("total", 0):
            return found


async def stored(bus: Api, stream: str, **query: Any) -> Delivery | None:
    """One message, or None. query: `seq`; `next_by_subj` (a filter) at or after `seq` or `start_time` (RFC 3339)."""
    try:
        message = (await bus.api(f"STREAM.MSG.GET.{stream}", query))["message"]
    except BusRefused as error:
        if error.code == NO_MESSAGE:
            return None
        raise
    headers, data = b64decode(message.get("hdrs", "")), b64decode(message.get("data", ""))
    return Delivery(message["subject"], headers, data, message["seq"], 0, seconds(message["time"]), stream, "")


async def position(bus: Api, connector: str, partition: str) -> Position:
    """How far a partition of a connector's source is stored."""
    found = await stored(bus, EVENTS, last_by_subj=position_subject(connector, partition))
    return Position(found.data.decode(), found.seq) if found else Position()


async def first_since(bus: Api, stream: str, when: float, last_seq: int) -> int:
    """The first sequence stored at or after unix time `when`; behind `last_seq` if there is none. The server searches."""
    found = await stored(bus, stream, start_time=timestamp(when), next_by_subj=">")
    return min(found.seq, last_seq + 1) if found else last_seq + 1


async def purge(bus: Api, stream: str, pattern: str, below: int | None = None) -> int:
    """Remove what matches, or its part with sequences < below. How many messages went."""
    if below is not None and below < 2:
        return 0  # the server reads 0 as "all"
    body = ({} if pattern == ">" else {"filter": pattern}) | ({} if below is None else {"seq": below})
    return int((await bus.api(f"STREAM.PURGE.{stream}", body))["purged"])


async def delete(bus: Api, stream: str, seq: int, *, erase: bool = False) -> bool:
    """Remove one message; False if it is gone already. erase: overwrite its bytes, too (rewrites a whole block: 0.3 s, not 1 ms)."""
    try:
        await bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": not erase})
    except BusRefused as error:
        if error.code in GONE:
            return False
        raise
    return True


# --- times --------------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """Unix seconds of the server's RFC 3339."""
    return datetime.fromisoformat(text).timestamp()


def timestamp(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
