"""Listing the consumers of a stream: all of them, or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_faas.buses import consumers
from broker_faas.errors import BusUnavailable


class Lists:
    """A bus that gives these answers to CONSUMER.LIST, one after the other, the last one for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)

    async def api(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def page(*names: str, **more: Any) -> dict[str, Any]:
    return {"total": len(names), "consumers": [{"name": name, "config": {"durable_name": name}} for name in names], **more}


async def test_a_consumer_whose_leader_is_being_elected_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", _at_once)
    bus = Lists(page("a", missing=["b"]), page("a", missing=["b"]), page("a", "b"))

    assert [one["name"] for one in await consumers.listing(bus, "events")] == ["a", "b"]


async def test_a_list_that_stays_incomplete_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", _at_once)

    with pytest.raises(BusUnavailable, match="consumers b of events have no leader now"):
        await consumers.listing(Lists(page("a", missing=["b"])), "events")


async def test_a_list_that_changes_between_its_pages_starts_anew() -> None:
    first = {"total": 3, "consumers": page("a", "b")["consumers"]}
    bus = Lists(first, page("c"), first, {"total": 3, "consumers": page("b", "c")["consumers"]})

    assert [one["name"] for one in await consumers.listing(bus, "events")] == ["a", "b", "c"]


async def _at_once(seconds: float) -> None:
    pass
