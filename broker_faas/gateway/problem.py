"""What is wrong, as application/problem+json (RFC 9457). Nothing here says where the bus is, or what a client sent as its key."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import BusFull, BusRefused, BusUnavailable, ConfigError, EventError, EventTooLarge

PROBLEM = "application/problem+json"
_MEANS = {404: "There is nothing at this path. Events go to /topics/{topic}; /docs says more."}


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = "application/json") -> Response:
    """content: bytes as they are, everything else as JSON."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, status, {**_common(), **(headers or {})}, media_type)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return answer(_members(status, detail), status, headers, PROBLEM)


def refusal(status: int, detail: str) -> bytes:
    """The same as bytes on the wire, for what never becomes a request. The connection is closed after it."""
    body = orjson.dumps(_members(status, detail))
    head = {**_common(), "content-type": PROBLEM, "content-length": str(len(body)), "connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode() + body


def problem_of(error: Exception) -> Response:
    """What a client is told of an error. 503 and 5xx: the outcome is not known, or will be another one later. 4xx: never as it is."""
    match error:
        case HTTPException():
            detail = _MEANS.get(error.status_code, error.detail)
            return problem(error.status_code, detail, error.headers)
        case ClientDisconnect():
            return problem(400, "The body ended before its end.")
        case EventTooLarge():
            return problem(413, str(error))
        case EventError():
            return problem(400, str(error))
        case BusFull():
            return problem(503, "The bus has no room. Of several events some may be stored: send all again with the same ids.", _after(5))
        case BusUnavailable() | TimeoutError():
            return problem(
                503, "The bus did not answer. What was sent may or may not be stored: send it again with the same id.", _after(1)
            )
        case BusRefused():
            return problem(503, "The bus refuses, and an operator has to mend that. Then send it again with the same id.", _after(60))
        case ConfigError():
            return problem(503, "The keys cannot be read, and an operator has to mend that.", _after(60))
        case _:
            return problem(500, "A bug of ours. What was sent may or may not be stored: send it again with the same id.")


def _members(status: int, detail: str) -> dict[str, object]:
    return {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def _common() -> dict[str, str]:
    return {"date": formatdate(usegmt=True), "x-content-type-options": "nosniff", "cache-control": "no-store"}


def _after(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}
