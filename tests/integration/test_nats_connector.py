"""The connector of NATS, between two real servers or accounts: what it reads is stored once, in order, and only then acknowledged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.api import AckPolicy
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.buses.store import position as bus_position
from broker_faas.buses.store import stored
from broker_faas.connectors.batch import Refused, Route
from broker_faas.connectors.nats import NatsConnector
from broker_faas.connectors.nats_parts import consumer, core
from broker_faas.connectors.nats_parts.messages import Message, stored_message, translate
from broker_faas.connectors.pump import Positions, Pump
from broker_faas.embedded import Server
from broker_faas.errors import BusRefused, SourceRefused, SourceUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import DEAD, EVENTS, faas_headers
from tests.helpers import OwnNats, eventually
from tests.proxy import Proxy

Own = Callable[..., Awaitable[OwnNats]]
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "made"}
STRUCTURED = {"specversion": "1.0", "id": "2", "source": "/shop", "type": "made", "data": {"n": 1}}


@pytest_asyncio.fixture
async def foreign_url(_accounts: Iterator[str]) -> AsyncIterator[str]:
    """The url of another account, with an empty stream `orders` on orders.>."""
    url = next(_accounts)
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
    yield url
    await client.jetstream().delete_stream("orders")
    await client.close()


@pytest_asyncio.fixture
async def foreign(foreign_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(foreign_url)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[JetStreamBus]:
    async with NatsBus(bus_url).open() as bus:
        yield bus


def connector(url: str = "nats://127.0.0.1:4222", **options: Any) -> NatsConnector:
    return NatsConnector(**{"url": url, "stream": "orders", "consumer": "faas", "create": True} | options)  # type: ignore[arg-type]


def positions_of(bus: JetStreamBus) -> Positions:
    async def position(partition: str) -> str | None:
        try:
            return (await bus_position(bus, "c", partition)).said
        except BusRefused:
            return None

    return position


@asynccontextmanager
async def running(source: NatsConnector, bus: JetStreamBus, to: str | None = None) -> AsyncIterator[Pump]:
    pump = Pump(source, Route(name="c", source="/nats/c", to=to), bus, partial(bus_position, bus, "c"))
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pump.run(stop))
        yield pump
        stop.set()
        await task


async def lying(bus: JetStreamBus, prefix: str = "ev.", stream: str = EVENTS) -> list[Any]:
    """What is stored there, in order."""
    found: list[Any] = []
    at = 1
    while one := await stored(bus, stream, seq=at, next_by_subj=f"{prefix}>"):
        found.append(one)
        at = one.seq + 1
    return found


async def events(bus: JetStreamBus) -> list[CloudEvent]:
    return [CloudEvent.from_headers(one.headers, one.data) for one in await lying(bus)]


async def datas(bus: JetStreamBus) -> list[bytes]:
    return [event.data or b"" for event in await events(bus)]


async def fill(js: JetStreamContext, first: int, last: int, subject: str = "orders.made") -> list[bytes]:
    for n in range(first, last):
        await js.publish(subject, b"%d" % n)
    return [b"%d" % n for n in range(first, last)]


async def unacknowledged(js: JetStreamContext) -> int:
    info = await js.consumer_info("orders", "faas")
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


# --- JetStream ----------------------------------------------------------------------------------------------


async def test_what_a_stream_has_is_stored_in_its_order_and_acknowledged(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    js = foreign.jetstream()
    expected = await fill(js, 0, 30)
    async with running(connector(foreign_url, batch=7), bus) as pump:
        expected += await fill(js, 30, 60)
        await eventually(lambda: pump.status.stored == 60)
        await eventually(lambda: none_left(js))
    [first, *_] = await events(bus)
    [record, *_] = await lying(bus)

    assert await datas(bus) == expected
    assert record.subject == "ev.orders.made.-.-"
    assert (first.type, first.source, first.subject) == ("nats.message", "/nats/c", "orders.made")
    assert first.id.startswith("orders/1@")
    assert first.time is not None


async def none_left(js: JetStreamContext) -> bool:
    """A server says so of a consumer that is being made, too: something has to be known to be read before."""
    try:
        return await unacknowledged(js) == 0
    except NotFoundError:  # the consumer is not made yet
        return False


async def test_nothing_is_acknowledged_while_the_bus_is_away_and_then_all_of_it_is_stored(
    foreign_url: str, foreign: Client, own_nats: Own
) -> None:
    ours = await own_nats()
    js = foreign.jetstream()
    async with NatsBus(ours.url, patience=0.5).open() as bus:
        async with running(connector(foreign_url, batch=5), bus) as pump:
            expected = await fill(js, 0, 5)
            await eventually(lambda: pump.status.stored == 5)
            await eventually(lambda: none_left(js))
            await ours.kill()
            expected += await fill(js, 5, 40)
            await eventually(lambda: pump.status.state == "waiting for the bus")
            assert await unacknowledged(js) == 35
            await ours.start()
            await eventually(lambda: none_left(js), 60)

        assert await datas(bus) == expected


async def test_what_was_stored_and_not_acknowledged_is_not_stored_again(
    foreign_url: str, foreign: Client, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the bus has forgotten its ids: here they are others."""
    js = foreign.jetstream()
    expected = await fill(js, 0, 20)
    with monkeypatch.context() as deaf:
        deaf.setattr(consumer.ConsumerSource, "ack", ignored)
        async with running(connector(foreign_url), bus) as pump:
            await eventually(lambda: pump.status.stored == 20)
    assert await unacknowledged(js) == 20
    monkeypatch.setattr(consumer, "stored_message", otherwise(stored_message))
    async with running(connector(foreign_url), bus):
        expected += await fill(js, 20, 25)
        await eventually(lambda: last_is(bus, b"24"))
        await eventually(lambda: none_left(js))

    assert await datas(bus) == expected


async def ignored(self: object, token: object) -> None:
    """An acknowledgement that nobody hears."""


def otherwise(stored: Callable[..., Any]) -> Callable[..., Any]:
    return lambda stream, *rest: stored(f"again-{stream}", *rest)


async def test_what_another_session_held_when_it_was_killed_is_stored_behind_newer_events_and_none_is_skipped(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    expected = await fill(js, 0, 10)
    source = connector(foreign_url)
    async with running(source, bus) as pump:
        await eventually(lambda: pump.status.stored == 10)
        await eventually(lambda: none_left(js))
    config = (await js.consumer_info("orders", "faas")).config
    config.ack_wait = 6
    await js.add_consumer("orders", config)
    lost = await fill(js, 10, 15)
    dead = await js.pull_subscribe_bind("faas", "orders")
    await dead.fetch(5)  # and never acknowledged
    newer = await fill(js, 15, 20)
    async with running(source, bus) as pump:
        await eventually(lambda: pump.status.stored == 5)
        [before] = [one.data for one in await lying(bus, "pos.")][-1:]
        await eventually(lambda: pump.status.stored == 10, 20)
        await eventually(lambda: none_left(js))
    [after] = [one.data for one in await lying(bus, "pos.")][-1:]

    assert await datas(bus) == expected + newer + lost
    assert (before, after) == (b"10", b"20")


async def test_a_stream_that_was_made_anew_counts_from_1_and_nothing_of_it_is_skipped(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    expected = await fill(js, 0, 5)
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.stored == 5)
        await eventually(lambda: none_left(js))
    await js.delete_stream("orders")
    await js.add_stream(name="orders", subjects=["orders.>"])
    expected += await fill(js, 5, 8)
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.stored == 3)

    assert await datas(bus) == expected


async def test_a_server_that_is_killed_and_started_again_is_read_on(own_nats: Own, bus: JetStreamBus) -> None:
    """It may have lost acknowledgements, and deliver again what is stored."""
    theirs = await own_nats()
    client = await nats.connect(theirs.url)
    await client.jetstream().add_stream(name="orders", subjects=["orders.>"])
    await client.jetstream().add_consumer("orders", durable_name="faas", ack_policy=AckPolicy.EXPLICIT, ack_wait=2)
    expected = await fill(client.jetstream(), 0, 10)
    async with running(connector(theirs.url), bus) as pump:
        await eventually(lambda: pump.status.stored == 10)
        await client.close()
        await theirs.kill()
        await eventually(lambda: pump.status.state == "connecting")
        await theirs.start()
        client = await nats.connect(theirs.url)
        expected += await fill(client.jetstream(), 10, 20)
        await eventually(lambda: last_is(bus, b"19"), 40)
        await eventually(lambda: none_left(client.jetstream()))
    await client.close()

    assert await datas(bus) == expected


async def test_what_is_not_stored_when_it_stops_comes_again_at_once_and_in_order(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    expected = await fill(js, 0, 30)
    async with connector(foreign_url, batch=10).open("/s", positions_of(bus)) as session:
        await anext(aiter(session))
        await eventually(lambda: session._held)  # type: ignore[attr-defined]
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.stored == 30, 5)

    assert await datas(bus) == expected


async def test_who_opens_again_at_once_gets_what_was_handed_back_before_what_is_behind_it(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    """Also what the server sends while the connector leaves: it has just asked for more."""
    js = foreign.jetstream()
    await asyncio.gather(*[await js.publish_async("orders.made", b"%d" % n) for n in range(3000)])
    source = connector(foreign_url, batch=100)
    acked, firsts, open_requests = [0], [], []
    for _ in range(20):
        async with source.open("/s", positions_of(bus)) as session:
            batch = await anext(aiter(session))
            await session.ack(batch.token)
        open_requests.append(session._asked)  # type: ignore[attr-defined]
        datas = [item.data or b"" for _, items in batch.parts for item in items]
        firsts.append(int(datas[0]))
        acked.append(int(datas[-1]) + 1)

    assert firsts == acked[:-1]
    assert open_requests == [0] * 20


async def test_two_connectors_share_a_consumer_and_give_no_positions(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    js = foreign.jetstream()
    source = connector(foreign_url, batch=1)
    async with source.open("/s", positions_of(bus)) as one, source.open("/s", positions_of(bus)) as two:
        first, second = aiter(one), aiter(two)
        readers = [asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))]
        await eventually(lambda: one._asked and two._asked)  # type: ignore[attr-defined]
        await fill(js, 0, 2)
        batches = await asyncio.gather(*readers)
        for session, batch in zip((one, two), batches, strict=True):
            await session.ack(batch.token)
        readers = [asyncio.ensure_future(anext(first)), asyncio.ensure_future(anext(second))]
        await fill(js, 2, 4)
        later = await asyncio.gather(*readers)

    assert [batch.positions for batch in later] == [{}, {}]
    assert {item.data for batch in [*batches, *later] for _, items in batch.parts for item in items} == {b"0", b"1", b"2", b"3"}


async def test_a_consumer_that_acknowledges_all_before_a_message_is_acknowledged_by_the_last(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    await js.add_consumer("orders", durable_name="faas", ack_policy=AckPolicy.ALL)
    expected = await fill(js, 0, 10)
    async with running(connector(foreign_url, create=False, batch=3), bus) as pump:
        await eventually(lambda: pump.status.stored == 10)
        await eventually(lambda: none_left(js))

    assert await datas(bus) == expected


@pytest.mark.parametrize(
    ("options", "consumer", "said"),
    [
        ({"create": False}, None, "has no consumer 'faas': say create = true"),
        ({"stream": "nowhere"}, None, "no stream 'nowhere'"),
        ({}, {"deliver_subject": "there"}, "pushes"),
        ({}, {"ack_policy": AckPolicy.NONE}, "has no acknowledgements"),
    ],
)
async def test_what_cannot_be_read_is_refused_with_a_way_out(
    foreign_url: str, foreign: Client, bus: JetStreamBus, options: dict[str, Any], consumer: dict[str, Any] | None, said: str
) -> None:
    if consumer:
        await foreign.jetstream().add_consumer("orders", durable_name="faas", **consumer)
    with pytest.raises(SourceRefused, match=said):
        async with connector(foreign_url, **options).open("/s", positions_of(bus)):
            pass


async def test_a_consumer_that_is_deleted_while_it_is_read_is_an_operator_s_matter(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    async with connector(foreign_url).open("/s", positions_of(bus)) as session:
        reading = asyncio.ensure_future(anext(aiter(session)))
        await eventually(lambda: session._asked)  # type: ignore[attr-defined]
        await js.delete_consumer("orders", "faas")
        with pytest.raises(SourceRefused, match="was deleted while it was read"):
            await reading


async def test_refused_credentials_and_a_server_that_is_not_there_are_told_apart(foreign_url: str, bus: JetStreamBus) -> None:
    wrong = foreign_url.replace("nats://", "nats://x", 1)
    with pytest.raises(SourceRefused, match="refuses these credentials") as refused:
        async with connector(wrong).open("/s", positions_of(bus)):
            pass
    with pytest.raises(SourceUnavailable, match="no NATS server") as away:
        async with connector("nats://u:secret@127.0.0.1:1").open("/s", positions_of(bus)):
            pass

    assert "secret" not in f"{refused.value}{away.value}{connector(foreign_url)}"
    assert foreign_url not in repr(connector(foreign_url))


async def test_a_creds_file_that_cannot_be_used_is_refused(foreign_url: str, bus: JetStreamBus, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match=r"there is no file .*missing\.creds"):
        await connector(foreign_url, credentials=str(tmp_path / "missing.creds")).peek("/s", 1)
    with pytest.raises(SourceRefused, match=r"certificates cannot be read .*authority\.pem"):
        await connector(foreign_url, ca=str(tmp_path / "authority.pem")).peek("/s", 1)


async def test_what_another_client_writes_to_the_inbox_is_no_delivery(
    foreign_url: str, foreign: Client, bus: JetStreamBus, caplog: pytest.LogCaptureFixture
) -> None:
    js = foreign.jetstream()
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.state == "reading")
        seen = await foreign.subscribe("$JS.API.CONSUMER.MSG.NEXT.orders.faas")
        inbox = (await seen.next_msg(10)).reply
        for reply in (
            "orders.made",
            "$JS.ACK.orders.faas.1.1.1.1.0.x.y",
            "$JS.ACK.orders.faas.1.1.1." + "9" * 40 + ".0",
            "$JS.ACK.other.faas.1.1.1.1.0",
        ):
            await foreign.publish(inbox, b"forged", reply=reply)
        await foreign.publish(inbox, b"forged")
        expected = await fill(js, 0, 3)
        await eventually(lambda: none_left(js))
        await eventually(lambda: pump.status.stored == 3)

    assert await datas(bus) == expected


async def test_a_consumer_that_is_paused_has_no_lag(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    await fill(foreign.jetstream(), 0, 3)
    async with connector(foreign_url).open("/s", positions_of(bus)) as session:
        assert await session.lag() == 3
        await foreign.request("$JS.API.CONSUMER.PAUSE.orders.faas", b'{"pause_until": "2100-01-01T00:00:00Z"}')
        assert await session.lag() is None


async def test_peek_acknowledges_nothing_and_disturbs_nobody(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    js = foreign.jetstream()
    source = connector(foreign_url)
    await fill(js, 0, 5)
    before = (await source.peek("/nats/c", 3)).items
    async with running(source, bus) as pump:
        await eventually(lambda: pump.status.stored == 5)
        await eventually(lambda: none_left(js))
    await fill(js, 5, 8)
    state = await js.consumer_info("orders", "faas")
    seen = (await source.peek("/nats/c", 10)).items
    [name, one] = before[0]

    assert (name, one) == ("orders.made", (await events(bus))[0])
    assert [item.data for _, item in seen] == [b"5", b"6", b"7"]
    assert (await js.consumer_info("orders", "faas")).delivered == state.delivered
    assert len(await js.consumers_info("orders")) == 1


async def test_a_message_larger_than_a_request_may_bring_comes_all_the_same(
    foreign_url: str, foreign: Client, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_HELD", 100_000)
    js = foreign.jetstream()
    await js.publish("orders.made", b"small")
    await js.publish("orders.made", b"x" * 300_000)
    await js.publish("orders.made", b"small")
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.stored == 3, 20)
        await eventually(lambda: none_left(js), 20)

    assert [len(data) for data in await datas(bus)] == [5, 300_000, 5]


async def test_cancelled_while_it_connects_it_lets_go(foreign_url: str, bus: JetStreamBus) -> None:
    for turns in range(0, 40, 2):
        pump = Pump(connector(foreign_url), Route(name="c", source="/nats/c"), bus, partial(bus_position, bus, "c"))
        task = asyncio.ensure_future(pump.run(asyncio.Event()))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)

        assert done, turns


# --- what becomes of a message ------------------------------------------------------------------------------


async def test_cloudevents_keep_what_they_say_in_all_three_forms(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    js = foreign.jetstream()
    await js.publish("orders.made", b"\xff", headers={"CE-SpecVersion": "1.0", "Ce-Id": "1", "ce-source": "/shop", "ce-type": "%C3%A4"})
    await js.publish("orders.made", json.dumps(STRUCTURED).encode(), headers={"content-Type": "application/cloudevents+json"})
    await js.publish("orders.made", json.dumps(STRUCTURED | {"id": "3"}).encode())
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.stored == 3)
    one, two, three = await events(bus)

    assert (one.id, one.source, one.type, one.data) == ("1", "/shop", "ä", b"\xff")
    assert (two.id, two.source, two.json()) == ("2", "/shop", {"n": 1})
    assert (three.id, three.source, three.json()) == ("3", "/shop", {"n": 1})


async def test_other_messages_become_events_with_their_data_as_it_is(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    js = foreign.jetstream()
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await js.publish("orders.made", b'{"n": 1, "inner": {"specversion": "1.0"}}')
    await js.publish("orders.made", b"\xff\x00", headers={"Content-Type": "image/png", "Traceparent": trace})
    await js.publish("orders.gone", b"")
    await js.publish("orders.made", b'{"specversion": ')
    await js.publish("orders.made", b"[" * 100_000 + b'"specversion"')
    async with running(connector(foreign_url, event_type="made"), bus) as pump:
        await eventually(lambda: pump.status.stored == 5)
    one, two, three, four, _ = await events(bus)

    assert {event.type for event in (one, two, three, four)} == {"made"}
    assert (one.json(), one.datacontenttype) == ({"n": 1, "inner": {"specversion": "1.0"}}, None)
    assert (two.data, two.datacontenttype, two.get("traceparent")) == (b"\xff\x00", "image/png", trace)
    assert (three.data, three.subject) == (None, "orders.gone")


async def test_what_cannot_become_an_event_is_quarantined_and_the_others_are_stored(
    foreign_url: str, foreign: Client, bus: JetStreamBus
) -> None:
    js = foreign.jetstream()
    await js.publish("orders.made", b"first")
    await js.publish("orders.made", b"1", headers={"ce-id": "1", "ce-specversion": "0.3", "ce-source": "/s", "ce-type": "t"})
    await js.publish("orders.made", b"[]", headers={"Content-Type": "application/cloudevents-batch+json"})
    await js.publish("orders.made", b'{"specversion": "1.0"}')
    await js.publish("orders.made", b"2", headers={"Content-Type": "no media type"})
    await js.publish("orders.not a topic".replace(" ", ":"), b"3")
    await js.publish("orders.made", b"last")
    async with running(connector(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.read == 7)
        await eventually(lambda: none_left(js))
    refused = await lying(bus, "quarantine.", DEAD)

    assert await datas(bus) == [b"first", b"last"]
    assert pump.status.quarantined == 5
    assert [one.data for one in refused] == [b"1", b"[]", b'{"specversion": "1.0"}', b"2", b"3"]
    assert faas_headers(refused[0].headers)["position"].startswith("orders/2@")


async def test_headers_that_mean_something_to_a_server_do_nothing_on_our_bus(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    hostile = {
        "Nats-Expected-Last-Sequence": "0",
        "Nats-Rollup": "all",
        "Nats-Msg-Id": "same",
        "Nats-Expected-Stream": "orders",
        "Nats-TTL": "1s",
        "Nats-Schedule": "@at 2020-01-01T00:00:00Z",
        "Nats-Batch-Id": "x",
        "Faas-Topic": "other",
        "Status": "503",
    }
    async with running(
        connector("nats" + foreign_url[4:], stream="", consumer="", create=False, core=["plain.>"], queue_group="g"), bus
    ) as pump:
        await eventually(lambda: pump.status.state == "reading")
        await foreign.publish("plain.a", b"0", headers={"ce-id": "0", **{k: v for k, v in BINARY.items() if k != "ce-id"}, **hostile})
        await foreign.publish("plain.a", b"1", headers=BINARY | hostile | {"ce-subject": "a%0D%0ANats-Rollup: all"})
        await foreign.publish("plain.a", b"2", headers=hostile)
        await eventually(lambda: pump.status.stored == 2 and pump.status.quarantined == 1)
    found = await lying(bus)

    assert [one.data for one in found] == [b"0", b"2"]
    for one in found:
        assert b"Nats-Rollup" not in one.headers
        assert b"Nats-Expected" not in one.headers
        assert b"Nats-TTL" not in one.headers
        assert b"Faas-" not in one.headers


@pytest.mark.parametrize(
    "headers",
    [
        b"NATS/1.0\r\ntraceparent: 00\r\n\r\n",
        b"NATS/1.0\r\ntraceparent : x\rNats-Rollup: all\r\n\r\n",
        b"NATS/1.0\r\nContent-Type: a/b\nNats-Rollup: all\r\n\r\n",
        b"NATS/1.0\r\nce-other: x\r\n\r\n",
        b"NATS/1.0 503\r\n\xff\xfe: \xff\r\n\r\n",
        b"",
    ],
)
def test_whatever_the_headers_are_they_end_no_line_of_ours(headers: bytes) -> None:
    made = translate(Message(b"a", headers, b"x", "1"), "/s", "t")

    assert isinstance(made, Refused) or b"Rollup" not in made.headers()
    assert isinstance(made, Refused) or b"\n" not in made.headers().replace(b"\r\n", b"")


def test_a_subject_that_is_no_text_is_refused() -> None:
    made = translate(Message(b"a.\xff", b"", b"x", "1"), "/s", "t")

    assert isinstance(made, Refused)
    assert "not UTF-8" in made.reason


# --- plain subjects -----------------------------------------------------------------------------------------


def plain(url: str, **options: Any) -> NatsConnector:
    return NatsConnector(**{"url": url, "core": ("plain.>",), "queue_group": "faas"} | options)


async def test_plain_subjects_are_shared_by_the_connectors_of_one_group(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    async with running(plain(foreign_url), bus) as one, running(plain(foreign_url), bus) as two:
        await eventually(lambda: one.status.state == two.status.state == "reading")
        for n in range(100):
            await foreign.publish("plain.a", b"%d" % n)
        await eventually(lambda: one.status.stored + two.status.stored == 100)

    assert sorted(await datas(bus)) == sorted(b"%d" % n for n in range(100))
    assert one.status.stored
    assert two.status.stored
    assert len({event.id for event in await events(bus)}) == 100


async def test_a_plain_message_with_an_id_keeps_it(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    async with running(plain(foreign_url), bus) as pump:
        await eventually(lambda: pump.status.state == "reading")
        await foreign.publish("plain.a", b"1", headers={"nats-msg-id": "mine"})
        await foreign.publish("plain.a", b"1", headers={"nats-msg-id": "mine"})
        await eventually(lambda: pump.status.stored == 2)
    [event] = await events(bus)

    assert event.id == "mine"


async def test_what_plain_subjects_have_while_the_connection_is_lost_is_lost_and_nothing_else_is(
    nats_server: Server, foreign_url: str, foreign: Client, bus: JetStreamBus, caplog: pytest.LogCaptureFixture
) -> None:
    async def publish(first: int, last: int) -> None:
        for n in range(first, last):
            await foreign.publish("plain.a", b"%d" % n)
        await foreign.flush()

    async with Proxy(nats_server.port).open() as proxy, running(plain(proxy.url(foreign_url)), bus) as pump:
        await eventually(lambda: pump.status.state == "reading")
        await publish(0, 100)
        await eventually(lambda: pump.status.stored == 100)
        proxy.accepting = False
        proxy.cut()
        await eventually(lambda: pump.status.state == "connecting")
        await publish(100, 150)
        proxy.accepting = True
        await eventually(lambda: pump.status.state == "reading", 30)
        await publish(150, 250)
        await eventually(lambda: last_is(bus, b"249"))

    assert await datas(bus) == [b"%d" % n for n in (*range(100), *range(150, 250))]
    assert len({event.id for event in await events(bus)}) == 200
    assert "source is opened again" in caplog.messages


async def test_what_comes_faster_than_it_is_read_is_dropped_and_said(
    foreign_url: str, foreign: Client, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core, "MAX_WAITING", 10)
    async with plain(foreign_url).open("/s", positions_of(bus)) as session:
        for n in range(50):
            await foreign.publish("plain.a", b"%d" % n)
        await foreign.flush()
        with caplog.at_level(logging.WARNING):
            await eventually(lambda: session._count == 50)  # type: ignore[attr-defined]
        [(_, items)] = (await anext(aiter(session))).parts

    assert [item.data for item in items] == [b"%d" % n for n in range(10)]
    assert any("dropped" in message for message in caplog.messages)


async def test_peek_at_plain_subjects_takes_nothing_from_the_group(foreign_url: str, foreign: Client, bus: JetStreamBus) -> None:
    source = plain(foreign_url)
    async with running(source, bus) as pump:
        await eventually(lambda: pump.status.state == "reading")
        looking = asyncio.ensure_future(source.peek("/nats/c", 2))
        while not looking.done():
            await foreign.publish("plain.a", b"x")
            await asyncio.sleep(0.02)
        await foreign.publish("plain.a", b"last")
        await eventually(lambda: last_is(bus, b"last"))
        published = pump.status.stored

    assert [item.data for _, item in (await looking).items] == [b"x", b"x"]
    assert published >= 3


async def last_is(bus: JetStreamBus, data: bytes) -> bool:
    return (await datas(bus))[-1:] == [data]


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "http://x"}, "url must look like"),
        ({"url": "nats://example.com:4222"}, "url is another machine .* insecure = true"),
        ({"url": "tls://example.com:4222"}, "url is another machine"),
        ({"stream": "", "consumer": ""}, "stream and consumer, or core"),
        ({"core": ("a",)}, "stream and consumer, or core"),
        ({"consumer": ""}, "must be names"),
        ({"stream": "a.b"}, "must be names"),
        ({"consumer": "a b\r\nPUB x 0"}, "must be names"),
        ({"queue_group": "g"}, "belongs to core"),
        ({"stream": "", "consumer": "", "create": False, "core": ("a",)}, "core needs a queue_group"),
        ({"stream": "", "consumer": "", "create": False, "core": ("a b",), "queue_group": "g"}, "no NATS subject"),
        ({"stream": "", "consumer": "", "create": False, "core": ("a\r\nPUB",), "queue_group": "g"}, "no NATS subject"),
        ({"stream": "", "consumer": "", "create": False, "core": ("a.>", "a.b"), "queue_group": "g"}, "two of them overlap"),
        ({"create": False, "subjects": ("a",)}, "say create = true"),
        ({"batch": 0}, "batch must lie"),
        ({"event_type": ""}, "event_type must not"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        connector(**options)


@pytest.mark.parametrize("options", [{"url": "tls://u:p@example.com:4222"}, {"url": "tls://example.com:4222", "credentials": "f.creds"}])
def test_another_machine_with_tls_and_a_login_is_accepted(options: dict[str, Any]) -> None:
    assert connector(**options).url == options["url"]
