"""Out to another NATS: real servers, and what is done to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, StreamConfig

from benchmarks import procs, servers
from broker_faas.connectors.sink import Outgoing, Sink
from broker_faas.connectors.sinks import nats as driver
from broker_faas.connectors.sinks.nats import NatsSink
from broker_faas.embedded import wheel_binary
from broker_faas.errors import SinkRefused, SinkUnavailable
from broker_faas.event import CloudEvent
from tests.helpers import OwnNats, eventually
from tests.proxy import Proxy
from tests.systems.nats import nats_system

Own = Callable[..., Awaitable[OwnNats]]
RICH = CloudEvent(
    type="order.made",
    source="/shop/%C3%A4?q=1",
    id="é 100%41",
    subject='"quoted" 日本',
    time="2026-01-31T09:30:00.123456789Z",
    data=b"\x00\xff{not json",
    datacontenttype="application/octet-stream",
    partitionkey="kunde ü",
    level=7,
)


@pytest_asyncio.fixture
async def there_url(_accounts: Iterator[str]) -> AsyncIterator[str]:
    """The url of another account, with an empty stream `orders` on orders.>."""
    url = next(_accounts)
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
    yield url
    await client.jetstream().delete_stream("orders")
    await client.close()


@pytest_asyncio.fixture
async def there(there_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(there_url)
    yield client
    await client.close()


def numbered(n: int, first: int = 0, target: str = "orders.done", size: int = 0) -> list[Outgoing]:
    made = [CloudEvent(type="t", source="/s", id=str(k), data=b"%d" % k + b" " * size) for k in range(first, first + n)]
    return [Outgoing(target, event) for event in made]


async def datas(client: Client, stream: str = "orders") -> list[int]:
    js = client.jetstream()
    info = await js.stream_info(stream)
    return [int((await js.get_msg(stream, seq)).data or b"") for seq in range(info.state.first_seq, info.state.last_seq + 1)]


async def delivered(sink: Sink, events: list[Outgoing]) -> None:
    assert await sink.send(events) == [None] * len(events)


# --- JetStream ----------------------------------------------------------------------------------------------


async def test_what_is_acknowledged_is_in_the_stream_in_its_order(there_url: str, there: Client) -> None:
    async with NatsSink(url=there_url).open() as sink:
        await delivered(sink, numbered(900))
        await delivered(sink, numbered(100, 900))
        await delivered(sink, [])

    assert await datas(there) == list(range(1000))


async def test_what_is_sent_again_within_the_window_is_stored_once_for_each_subject(there_url: str, there: Client) -> None:
    async with NatsSink(url=there_url).open() as sink:
        await delivered(sink, numbered(5) + numbered(5))
    async with NatsSink(url=there_url).open() as sink:
        await delivered(sink, numbered(6))
        await delivered(sink, numbered(2, target="orders.copied"))
        other = CloudEvent(type="t", source="/other", id="0", data=b"7")
        await delivered(sink, [Outgoing("orders.done", other)])

    assert await datas(there) == [0, 1, 2, 3, 4, 5, 0, 1, 7]


@pytest.mark.parametrize("format", ["binary", "structured"])
async def test_an_event_is_read_as_it_was(bus_url: str, format: str) -> None:
    empty = CloudEvent(type="t", source="/s", id="2")
    async with nats_system(bus_url) as system, system.sink(format=format).open() as sink:
        await delivered(sink, [Outgoing("orders.done", RICH), Outgoing("orders.done", empty)])
        received = await system.received("orders.done", 2)

    assert received == [("kunde ü", RICH), (None, empty)]


@pytest.mark.parametrize("format", ["binary", "structured"])
async def test_another_client_and_the_cloudevents_sdk_read_what_was_sent(there_url: str, there: Client, format: Any) -> None:
    """With nats-py alone. The SDK has no binding for NATS, which is HTTP's but for the name of one header."""
    subscription = await there.subscribe("orders.done")
    async with NatsSink(url=there_url, format=format).open() as sink:
        await delivered(sink, [Outgoing("orders.done", RICH)])
    message = await subscription.next_msg(5)
    assert message.headers is not None
    headers = {"content-type" if name == "ce-datacontenttype" else name.lower(): value for name, value in message.headers.items()}
    read = from_http_event(HTTPMessage(headers, message.data))

    assert read.get_data() == RICH.data
    assert (read.get_id(), read.get_source(), read.get_subject()) == (RICH.id, RICH.source, RICH.subject)
    assert (read.get_extension("partitionkey"), read.get_extension("level")) == ("kunde ü", "7")
    assert read.get_datacontenttype() == "application/octet-stream"


async def test_a_subject_without_a_stream_is_not_delivered_and_its_neighbours_are(there_url: str, there: Client) -> None:
    async with NatsSink(url=there_url).open() as sink:
        outcomes = await sink.send([*numbered(3), *numbered(2, target="nobody.here"), *numbered(3, 3)])

    assert [outcome is None for outcome in outcomes] == [True] * 3 + [False] * 2 + [True] * 3
    assert outcomes[3] is not None
    assert outcomes[3].again
    assert "nats stream add NAME --subjects nobody.here" in outcomes[3].reason
    assert await datas(there) == list(range(6))


async def test_what_is_too_large_is_refused_for_good_and_its_neighbours_are_delivered(there_url: str, there: Client) -> None:
    await there.jetstream().add_stream(name="small", subjects=["small.>"], max_msg_size=1000)
    async with NatsSink(url=there_url).open() as sink:
        most = there.max_payload
        [event] = numbered(1)
        head = len(event.event.headers()) + driver._HEAD
        fits, not_quite = (numbered(1, 1, size=most - head - 1 + more)[0] for more in (0, 1))
        outcomes = await sink.send([event, not_quite, fits, *numbered(1, 2, "small.x", 2000), *numbered(1, 3, "small.x")])
    await there.jetstream().delete_stream("small")

    assert [outcome is None for outcome in outcomes] == [True, False, True, False, True]
    assert not any(outcome.again for outcome in outcomes if outcome)
    assert f"takes {most:,} (max_payload)" in str(outcomes[1])
    assert "message size exceeds maximum" in str(outcomes[3])
    assert await datas(there) == [0, 1]


async def test_a_full_stream_refuses_and_takes_again_when_it_has_room(there_url: str, there: Client) -> None:
    js = there.jetstream()
    await js.add_stream(StreamConfig(name="full", subjects=["full.>"], max_msgs=5, discard=DiscardPolicy.NEW))
    async with NatsSink(url=there_url).open() as sink:
        await delivered(sink, numbered(5, target="full.x"))
        outcomes = await sink.send([*numbered(2, 5, "full.x"), *numbered(2)])
        await js.purge_stream("full")
        await delivered(sink, numbered(2, 5, "full.x"))

    assert [outcome is None for outcome in outcomes] == [False, False, True, True]
    assert outcomes[0] is not None
    assert outcomes[0].again
    assert "the stream on full.x is full (maximum messages exceeded)" in outcomes[0].reason
    assert await datas(there, "full") == [5, 6]
    await js.delete_stream("full")


async def test_a_stream_that_does_not_answer_is_tried_again(there_url: str, there: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber who says nothing is there, so the server has somebody to give it to."""
    monkeypatch.setattr(driver, "PATIENCE", 0.5)
    await there.subscribe("silent.x")
    await there.flush()
    async with NatsSink(url=there_url).open() as sink:
        outcomes = await sink.send([*numbered(1, target="silent.x"), *numbered(2)])

    assert [outcome is None for outcome in outcomes] == [False, True, True]
    assert outcomes[0] is not None
    assert outcomes[0].again


async def test_many_large_events_go_in_waves(there_url: str, there: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_BYTES", 1 << 20)
    async with NatsSink(url=there_url).open() as sink:
        await delivered(sink, numbered(30, size=200_000))

    assert await datas(there) == list(range(30))


async def test_the_server_is_killed_and_what_was_acknowledged_is_there(own_nats: Own) -> None:
    own = await own_nats()
    client = await nats.connect(own.url)
    await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
    await client.close()
    acknowledged: list[int] = []

    async def flood(sink: Sink) -> None:
        while True:
            first = len(acknowledged)
            await delivered(sink, numbered(50, first))
            acknowledged.extend(range(first, first + 50))

    async with NatsSink(url=own.url).open() as sink:
        flooding = asyncio.ensure_future(flood(sink))
        await eventually(lambda: len(acknowledged) >= 500, 30)
        await own.kill()
        with pytest.raises(SinkUnavailable):
            await flooding
        with pytest.raises(SinkUnavailable):
            await sink.send(numbered(1))
    with pytest.raises(SinkUnavailable):
        async with NatsSink(url=own.url).open():
            pass
    await own.start()
    async with NatsSink(url=own.url).open() as sink:
        await delivered(sink, numbered(100, len(acknowledged)))  # the first of them may be there already
    client = await nats.connect(own.url)
    stored = await datas(client)
    await client.close()

    assert stored == list(range(len(acknowledged) + 100))


# --- plain subjects -----------------------------------------------------------------------------------------


async def test_plain_subjects_get_what_is_sent_in_its_order(there_url: str, there: Client) -> None:
    subscription = await there.subscribe("plain.>")
    await there.flush()
    async with NatsSink(url=there_url, core=True).open() as sink:
        await delivered(sink, numbered(700, target="plain.x"))
        await delivered(sink, numbered(1, target="nobody.listens"))
    got = [int((await subscription.next_msg(5)).data) for _ in range(700)]

    assert got == list(range(700))


async def test_a_server_that_hears_nothing_has_not_taken_plain_events(there_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PATIENCE", 0.5)
    port = int(there_url.rpartition(":")[2])
    async with Proxy(port).open() as proxy, NatsSink(url=proxy.url(there_url), core=True).open() as sink:
        proxy.freeze()
        with pytest.raises(SinkUnavailable):
            await sink.send(numbered(1))
        proxy.cut()


# --- permissions --------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def strict(nats_binary: Path, tmp_path: Path) -> AsyncIterator[str]:
    """A server where `shop` may publish to orders.> alone."""
    port = servers._free_port()
    users = [
        {"user": "admin", "password": "a"},
        {"user": "shop", "password": "a-secret", "permissions": {"publish": ["orders.>"], "subscribe": ["_INBOX.>"]}},
        {"user": "deaf", "password": "d", "permissions": {"publish": [">"], "subscribe": ["nothing"]}},
    ]
    settings = {"listen": f"127.0.0.1:{port}", "jetstream": {"store_dir": str(tmp_path / "js")}, "authorization": {"users": users}}
    (tmp_path / "nats.conf").write_text(json.dumps(settings))
    async with procs.running([str(wheel_binary()), "-c", str(tmp_path / "nats.conf")], {}, tmp_path / "log"):
        await servers._listening(port, tmp_path / "log", 20)
        client = await nats.connect(f"nats://admin:a@127.0.0.1:{port}")
        await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
        await client.close()
        yield f"nats://shop:a-secret@127.0.0.1:{port}"


@pytest.mark.parametrize("core", [False, True])
async def test_a_subject_that_is_not_permitted_says_so_and_its_neighbours_are_delivered(strict: str, core: bool) -> None:
    async with NatsSink(url=strict, core=core).open() as sink:
        outcomes = await sink.send([*numbered(2), *numbered(2, target="other.Done"), *numbered(2, 2)])

    assert [outcome is None for outcome in outcomes] == [True, True, False, False, True, True]
    assert outcomes[2] is not None
    assert outcomes[2].reason == "this NATS user may not publish to other.Done; grant it in the server's permissions"
    assert outcomes[2].again


async def test_what_cannot_be_opened_says_so(strict: str) -> None:
    for sink, error, text in [
        (NatsSink(url=strict.replace("a-secret", "wrong-secret")), SinkRefused, "credentials"),
        (NatsSink(url=strict.replace("shop:a-secret", "deaf:d")), SinkRefused, "may not subscribe"),
        (NatsSink(url=strict, credentials="/nowhere.creds"), SinkRefused, "no file"),
        (NatsSink(url="nats://u:secret@127.0.0.1:9"), SinkUnavailable, "no NATS server"),
    ]:
        with pytest.raises(error, match=text) as raised:
            async with sink.open():
                pass

        assert "secret" not in str(raised.value) + repr(sink)


@pytest.mark.parametrize(
    ("options", "text"), [({"url": "http://x"}, "url must look like"), ({"url": "nats://x.example"}, "another machine")]
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NatsSink(**options)
