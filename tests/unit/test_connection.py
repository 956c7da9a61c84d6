"""Questions to JetStream that nobody answers at first."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from broker_faas.buses import connection
from broker_faas.buses.connection import Connection
from broker_faas.buses.wire import WireClient
from broker_faas.errors import BusUnavailable

from ..helpers import eventually


class Deaf:
    """A client whose server answers the n-th time something is written, and never before."""

    def __init__(self, answers_at: int) -> None:
        self.answers_at = answers_at
        self.written: list[bytes] = []
        self.connection: Connection

    def send(self, data: bytes) -> bool:
        self.written.append(data)
        if len(self.written) == self.answers_at:
            for line in data.split(b"\r\n"):
                if line.startswith(b"PUB"):
                    self.connection._reply(line.split(b" ")[2], b"", b"", b'{"ok": true}')
        return True


def connected(client: Deaf) -> Connection:
    client.connection = Connection(cast(WireClient, client), "_INBOX.x")
    client.connection.up.set()
    return client.connection


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ASK_AGAIN", 0.02)


async def test_a_question_that_gets_no_answer_is_asked_again() -> None:
    client = Deaf(answers_at=3)

    answer = await connected(client).api("STREAM.INFO.events", seconds=0.2)

    assert answer == {"ok": True}
    assert len(client.written) == 3


async def test_an_order_is_given_once() -> None:
    client = Deaf(answers_at=3)

    with pytest.raises(BusUnavailable, match="did not answer"):
        await connected(client).api("STREAM.PURGE.events", seconds=0.1)

    assert [data for data in client.written if data] == client.written[:1]


async def test_a_connection_that_is_lost_ends_the_wait() -> None:
    client = Deaf(answers_at=99)
    bus = connected(client)
    calls: list[tuple[str, dict[str, Any] | None]] = [("STREAM.INFO.events", None), ("STREAM.INFO.dead", None)]

    asking = asyncio.ensure_future(bus.apis(calls, seconds=5))
    [replies] = await eventually(lambda: list(bus._open.values()))
    replies.end()  # as on_lost() does

    async with asyncio.timeout(1):
        assert all(isinstance(answer, BusUnavailable) for answer in await asking)
