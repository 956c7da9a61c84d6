"""A sink that tests script: what a sink's host does, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker_faas.connectors.sink import Outgoing, Undelivered
from broker_faas.errors import SinkUnavailable


@dataclass
class ScriptedSink:
    """received: what it took, in order. most: of a send(). away: it cannot be connected to. gate: sending waits for it.

    answers: by the id of an event, what its next attempts are answered. kills: ids of events that take the connection down.
    falls: so many sends lose it, whatever they send.
    """

    most: int = 10
    received: list[Outgoing] = field(default_factory=list)
    sends: list[int] = field(default_factory=list)
    opens: int = 0
    away: bool = False
    answers: dict[str, list[Undelivered | None]] = field(default_factory=dict)
    kills: set[str] = field(default_factory=set)
    falls: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ScriptedSink]:
        self.opens += 1
        if self.away:
            raise SinkUnavailable("nobody answers")
        yield self

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Undelivered | None]:
        assert 0 < len(events) <= self.most
        await self.gate.wait()
        if self.away or self.falls:
            self.falls = max(0, self.falls - 1)
            raise SinkUnavailable("gone while it was sent to")
        said: list[Undelivered | None] = []
        for one in events:
            if one.event.id in self.kills:
                raise SinkUnavailable("connection lost")
            answer = self.answers[one.event.id].pop(0) if self.answers.get(one.event.id) else None
            said.append(answer)
            if answer is None:
                self.received.append(one)
        self.sends.append(len(events))
        return said

    @property
    def ids(self) -> list[str]:
        return [one.event.id for one in self.received]
