"""What HTTP clients are told of errors."""

from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from broker_faas.errors import (
    BusFull,
    BusRefused,
    BusUnavailable,
    ConfigError,
    EventInvalid,
    EventTooLarge,
    TopicInvalid,
)
from broker_faas.gateway.problem import problem_of, refusal

SECRET = "nats://user:hunter2@bus.internal:4222"


@pytest.mark.parametrize(
    ("error", "status", "later"),
    [
        (EventInvalid("attribute 'id' is missing"), 400, None),
        (TopicInvalid("no topic"), 400, None),
        (EventTooLarge(2, 1), 413, None),
        (BusFull(SECRET), 503, "5"),
        (BusUnavailable(SECRET), 503, "1"),
        (TimeoutError(SECRET), 503, "1"),
        (BusRefused(SECRET, 10077), 503, "60"),
        (ConfigError(SECRET), 503, "60"),
        (KeyError(SECRET), 500, None),
        (HTTPException(405, headers={"Allow": "POST"}), 405, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_4xx_is_for_what_can_never_be_stored_and_5xx_tells_nothing_of_our_side(error: Exception, status: int, later: str | None) -> None:
    answer = problem_of(error)

    assert (status, later) == (answer.status_code, answer.headers.get("retry-after"))
    assert "application/problem+json" == answer.headers["content-type"]
    assert "hunter2" not in bytes(answer.body).decode()
    assert "bus.internal" not in bytes(answer.body).decode()
    assert {"title", "status", "detail"} == json.loads(bytes(answer.body)).keys()


def test_a_refusal_is_a_whole_response() -> None:
    head, _, body = refusal(431, 'more than "64" KiB').partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"connection: close" in head
    assert f"content-length: {len(body)}".encode() in head
    assert 'more than "64" KiB' == json.loads(body)["detail"]
