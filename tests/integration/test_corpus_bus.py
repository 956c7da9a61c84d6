"""Hostile input that only a real server can judge: what it stored, and what it did not do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from broker_faas.bus import Delivery, Queue, Record
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.client import Client
from broker_faas.errors import EventTooLarge
from broker_faas.event import CloudEvent
from broker_faas.layout import MAX_DATA, MAX_HEADERS, dead_record, event_subject, header_lines, replay_record, retry_record
from tests.doors import HEADERS
from tests.helpers import eventually
from tests.hostile import Case, made, through

QUEUE = Queue("shop--reserve", ("orders.created",), start="first")
FIRST = Record("ev.orders.created.-.-", "victim", HEADERS, b"first")


def named(*doors: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", through(*doors), ids=lambda case: case.id)


class Stored:
    """A bus with one event on it, and a look at what its streams hold."""

    def __init__(self, bus: JetStreamBus, url: str) -> None:
        self.bus = bus
        self.url = url

    async def headers(self, stream: str) -> list[dict[str, str]]:
        """Of every message in it, names in lower case."""
        client = await nats.connect(self.url)
        try:
            jetstream = client.jetstream()
            state = (await jetstream.stream_info(stream)).state
            messages = (
                [await jetstream.get_msg(stream, seq) for seq in range(state.first_seq, state.last_seq + 1)] if state.messages else []
            )
        finally:
            await client.close()
        assert len(messages) == state.messages
        return [{name.lower(): str(value) for name, value in (message.headers or {}).items()} for message in messages]


@asynccontextmanager
async def stored(url: str) -> AsyncIterator[Stored]:
    async with NatsBus(url).open() as bus, bus.subscribe(QUEUE, 1):
        await bus.publish([FIRST])
        yield Stored(bus, url)


def acting(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("nats-")}


@named("stored attributes")
async def test_attributes_that_look_like_the_servers_headers_are_stored_as_attributes(case: Case, bus_url: str) -> None:
    given = made(case.input)
    async with stored(bus_url) as on:
        sent = await Client(on.bus, "/s").publish("orders.created", "x", **given)
        first, second = await on.headers("events")
        block = "".join(f"{name}: {value}\r\n" for name, value in second.items()).encode()

        assert CloudEvent.from_headers(block, b'"x"') == sent
        assert {name: sent[name] for name in given} == given
        assert acting(first) == {"nats-msg-id": "victim"}
        assert acting(second).keys() == {"nats-msg-id"}
        assert second.keys() - acting(second).keys() == {f"ce-{name}" for name in sent.attributes}


@named("foreign headers")
async def test_headers_of_another_client_act_on_nothing_that_we_store(case: Case, bus_url: str) -> None:
    """Retried, dead and replayed: three records of one that carries them, beside one that would be their victim."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in made(case.input).items()).encode()
    delivery = Delivery(event_subject("orders.created", None), lines + HEADERS, b"x", 7, 1, 1e9, "events/shop--reserve", "")
    dead = dead_record(QUEUE, delivery, reason="r", detail="", attempts=1, now=1e9, version="v")
    kept = Delivery(dead.subject, dead.headers, b"x", 9, 1, 1e9, "dead", "")
    async with stored(bus_url) as on:
        await on.bus.publish([dead], output=True)
        await on.bus.publish([replay_record(QUEUE, kept, 0)], output=True)
        await on.bus.publish([retry_record(QUEUE, delivery, 1, 4e9)], output=True)
        events, dead_letters, retries = [await on.headers(stream) for stream in ("events", "dead", "retries")]

        assert [acting(one) for one in events] == [{"nats-msg-id": "victim"}]
        assert [acting(one) for one in dead_letters] == [{"nats-msg-id": dead.msg_id}]
        assert acting(retries[0]).keys() == {"nats-msg-id"}
        assert acting(retries[1]) == {
            "nats-msg-id": "at:shop--reserve:7:1",
            "nats-schedule": "@at 2096-10-02T07:06:40.000000Z",
            "nats-schedule-target": "go.shop--reserve",
            "nats-rollup": "sub",  # the server's own, on every schedule
        }
        assert [one["ce-id"] for one in dead_letters + retries] == ["1"] * 3


@named("stored topic")
async def test_the_deepest_topic_is_stored_and_delivered(case: Case, bus_url: str) -> None:
    topic = made(case.input)
    queue = Queue("shop--deep", (topic,), start="first")
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 1) as subscription:
        await Client(bus, "/s").publish(topic, "x")
        async for batch in subscription:
            assert [one.data for one in batch] == [b'"x"']
            break


@named("limit")
async def test_at_the_limit_is_stored_and_beyond_it_refused_and_the_connection_lives(case: Case, bus_url: str) -> None:
    given = made(case.input)
    pad = MAX_HEADERS + given["headers"] - len(HEADERS) - len(b"ce-pad: \r\n")
    headers = HEADERS + b"ce-pad: " + b"x" * pad + b"\r\n"
    record = Record(FIRST.subject, "large", headers, b"x" * (MAX_DATA + given["data"]))
    async with stored(bus_url) as on:
        if case.expect == "refused":
            with pytest.raises(EventTooLarge, match=case.says):
                await on.bus.publish([record])
        else:
            await on.bus.publish([record])
        await on.bus.publish([FIRST._replace(msg_id="after")])
        client: Any = on.bus._connection.client

        assert len(await on.headers("events")) == (2 if case.expect == "refused" else 3)
        assert client.stats["reconnects"] == 0


@named("foreign message")
async def test_what_another_client_sends_to_our_inbox_is_nothing(case: Case, bus_url: str) -> None:
    """It is no delivery, nothing is acknowledged for it, and the connection stays."""
    given = {"subject": "0-1", "reply": "", "headers": ""} | made(case.input)
    said: list[str] = []
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        other = await nats.connect(bus_url)

        async def hear(message: Any) -> None:
            said.append(message.subject)

        if given["reply"] and not given["reply"].startswith("$JS.API"):
            await other.subscribe(given["reply"], cb=hear)
        headers = dict(header_lines(given["headers"].encode())) or None
        await other.publish(f"{subscription._inbox}.{given['subject']}", b"forged", reply=given["reply"], headers=headers)
        await other.flush()
        await bus.publish([FIRST])
        batch = await anext(aiter(subscription))
        subscription.settle(batch)
        await eventually(lambda: not subscription._acks)
        lag = await eventually(lambda: bus.lag(QUEUE))
        client: Any = bus._connection.client
        await other.close()

        assert [one.data for one in batch] == [b"first"]
        assert said == []
        assert lag.waiting == 0
        assert client.stats["reconnects"] == 0
