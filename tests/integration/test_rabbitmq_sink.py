"""Out to RabbitMQ: real servers, and what is done to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp_event
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event

from broker_faas.connectors.amqp import connection, publisher
from broker_faas.connectors.sink import Outgoing, Sink
from broker_faas.connectors.sinks.rabbitmq import RabbitmqSink
from broker_faas.errors import SinkRefused, SinkUnavailable
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.proxy import Proxy
from tests.rabbitmq_server import Rabbit
from tests.systems.rabbitmq import rabbitmq_system

pytestmark = pytest.mark.timeout(240)
RICH = CloudEvent(
    type="order.made",
    source="/shop/%C3%A4?q=1",
    id="é 100%41",
    subject='"quoted" 日本',
    time="2026-01-31T09:30:00.123456789Z",
    data=b"\x00\xff{not json",
    datacontenttype="application/octet-stream",
    partitionkey="kunde ü",
    correlationid="c-1",
    level=7,
)


def made(rabbit: Rabbit, **options: Any) -> RabbitmqSink:
    given: dict[str, Any] = {"url": rabbit.url} | options
    return RabbitmqSink(**given)


def numbered(target: str, n: int, first: int = 0, size: int = 0) -> list[Outgoing]:
    return [Outgoing(target, numbered_event(number, size)) for number in range(first, first + n)]


def numbered_event(number: int, size: int = 0) -> CloudEvent:
    return CloudEvent(type="t", source="/s", id=str(number), data=b"%d" % number + b" " * size)


async def taken(rabbit: Rabbit, queue: str) -> list[Any]:
    """All that is ready, and removed."""
    found = []
    async with rabbit.channel() as channel:
        while (message := await channel.basic_get(queue, no_ack=True)).delivery_tag is not None:
            found.append(message)
    return found


async def ids(rabbit: Rabbit, queue: str) -> list[int]:
    return [int(message.header.properties.message_id) for message in await taken(rabbit, queue)]


async def bound(rabbit: Rabbit, exchange: str, kind: str, *bindings: str) -> None:
    """Each binding is a routing key and the name of a queue."""
    async with rabbit.channel() as channel:
        await channel.exchange_delete(exchange)
        await channel.exchange_declare(exchange, exchange_type=kind, durable=True)
        for key in bindings:
            await channel.queue_bind(key, exchange, key)


# --- what arrives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
async def test_what_is_confirmed_is_in_the_queue_in_its_order(rabbitmq: Rabbit, kind: str) -> None:
    await rabbitmq.declare("s.order", kind=kind)
    async with made(rabbitmq).open() as sink:
        for first in (0, 700, 1400):
            assert await sink.send(numbered("s.order", 700, first, 300)) == [None] * 700

            if kind != "stream":
                assert await rabbitmq.ready("s.order") == first + 700
        assert await sink.send([]) == []
    if kind != "stream":
        assert await ids(rabbitmq, "s.order") == list(range(2100))


@pytest.mark.parametrize("format", ["binary", "structured"])
async def test_an_event_is_read_as_it_was_with_its_key_as_a_header(rabbitmq: Rabbit, format: str) -> None:
    empty = CloudEvent(type="t", source="/s", id="2")
    large = CloudEvent(type="t", source="/s", id="3", data=bytes(range(256)) * 4096)  # nine frames
    async with rabbitmq_system(rabbitmq) as system, system.sink(format=format).open() as sink:
        assert await sink.send([Outgoing("orders.done", one) for one in (RICH, empty, large)]) == [None] * 3
        received = await system.received("orders.done", 3)

    assert [key for key, _ in received] == ["kunde ü", None, None]
    assert [event.attributes for _, event in received] == [RICH.attributes, empty.attributes, large.attributes]
    assert [event.data or b"" for _, event in received] == [RICH.data, b"", large.data]


@pytest.mark.parametrize("options", [{}, {"format": "structured"}])
async def test_another_client_and_the_cloudevents_sdk_read_what_was_sent(rabbitmq: Rabbit, options: dict[str, Any]) -> None:
    """aio-pika alone, as a consumer of theirs would."""
    json = CloudEvent(type="t", source="/s", id="j", data={"n": 1, "ä": ["ü"]}, partitionkey="k")
    await rabbitmq.declare("s.interop")
    async with made(rabbitmq, **options).open() as sink:
        assert await sink.send([Outgoing("s.interop", RICH), Outgoing("s.interop", json)]) == [None, None]
    async with await aio_pika.connect(rabbitmq.url) as theirs:
        queue = await (await theirs.channel()).get_queue("s.interop")
        messages = [await queue.get(no_ack=True), await queue.get(no_ack=True)]
    first, second = [
        from_rabbitmq_event(RabbitMQMessage({name: str(value) for name, value in one.headers.items()}, one.content_type, one.body))
        for one in messages
    ]

    assert first.get_data() == RICH.data
    assert (first.get_id(), first.get_source(), first.get_subject()) == (RICH.id, RICH.source, RICH.subject)
    assert (first.get_extension("partitionkey"), first.get_extension("level")) == ("kunde ü", "7")
    assert first.get_datacontenttype() == "application/octet-stream"
    assert (second.get_data(), second.get_datacontenttype()) == ({"n": 1, "ä": ["ü"]}, "application/json")
    about = messages[0]
    assert (about.message_id, about.correlation_id, about.type) == (RICH.id, "c-1", "order.made")
    assert about.timestamp is not None
    assert (about.delivery_mode, int(about.timestamp.timestamp())) == (2, 1769851800)


async def test_the_spelling_of_headers_can_be_chosen(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("s.spelling")
    for prefix in ("ce-", "ce_", "cloudEvents_", "cloudEvents:"):
        async with made(rabbitmq, prefix=prefix).open() as sink:
            assert await sink.send([Outgoing("s.spelling", RICH)]) == [None]
        [message] = await taken(rabbitmq, "s.spelling")

        headers = message.header.properties.headers
        assert {name.removeprefix(prefix) for name in headers} == RICH.attributes.keys() - {"datacontenttype"}
        if prefix.startswith("cloud"):  # as the SDK reads from AMQP 1.0, where headers are application properties
            read = from_amqp_event(AMQPMessage({"content-type": message.header.properties.content_type}, headers, message.body))
            assert (read.get_id(), read.get_extension("partitionkey"), read.get_data()) == (RICH.id, "kunde ü", RICH.data)


async def test_what_is_too_long_for_its_property_is_in_its_header(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("s.long")
    long = CloudEvent(type="t" * 300, source="/s", id="ü" * 200, correlationid="c" * 300, time="1969-12-31T23:59:59Z")
    async with made(rabbitmq).open() as sink:
        assert await sink.send([Outgoing("s.long", long)]) == [None]
    [message] = await taken(rabbitmq, "s.long")
    properties = message.header.properties

    assert (properties.message_id, properties.message_type, properties.correlation_id, properties.timestamp) == (None, None, None, None)
    assert properties.headers["ce-id"] == "ü" * 200


# --- what does not ------------------------------------------------------------------------------------------


async def test_what_no_queue_gets_is_not_delivered_and_its_neighbours_are(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("s.bound")
    await bound(rabbitmq, "s.exchange", "direct", "s.bound")
    events = [Outgoing("s.nowhere" if n % 3 == 0 else "s.bound", numbered_event(n)) for n in range(300)]
    async with made(rabbitmq, exchange="s.exchange").open() as sink:
        outcomes = await sink.send(events)

    assert [n for n, outcome in enumerate(outcomes) if outcome] == list(range(0, 300, 3))
    assert {(outcome.again, outcome.after) for outcome in outcomes if outcome} == {(True, None)}
    assert outcomes[0] is not None
    assert "exchange 's.exchange' with routing key 's.nowhere'" in outcomes[0].reason
    assert "bind one" in outcomes[0].reason
    assert await ids(rabbitmq, "s.bound") == [n for n in range(300) if n % 3]
    async with made(rabbitmq).open() as sink:
        [lost] = await sink.send(numbered("s.nowhere", 1))

    assert lost is not None
    assert "there is no queue 's.nowhere'" in lost.reason


async def test_events_of_one_id_that_return_are_told_apart(rabbitmq: Rabbit) -> None:
    """By source, which is in their headers, and by what the exchange looks at."""
    await rabbitmq.declare("s.by-header")
    async with rabbitmq.channel() as channel:
        await channel.exchange_delete("s.headers")
        await channel.exchange_declare("s.headers", exchange_type="headers", durable=True)
        await channel.queue_bind("s.by-header", "s.headers", "", arguments={"x-match": "all", "ce-source": "/b"})
    events = [Outgoing("s.k", CloudEvent(type="t", source=source, id="same", data=b"x")) for source in ("/a", "/b", "/c", "/b", "/a")]
    async with made(rabbitmq, exchange="s.headers").open() as sink:
        outcomes = await sink.send(events)

    assert [outcome is None for outcome in outcomes] == [False, True, False, True, False]


async def test_a_full_queue_refuses_and_takes_again_when_it_has_room(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("s.other")
    async with rabbitmq.channel() as channel:
        await channel.queue_delete("s.full")
        await channel.queue_declare("s.full", durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
    async with made(rabbitmq).open() as sink:
        assert await sink.send(numbered("s.full", 10)) == [None] * 10
        outcomes = await sink.send([*numbered("s.full", 2, 10), *numbered("s.other", 2, 20)])

        assert [outcome is None for outcome in outcomes] == [False, False, True, True]
        assert outcomes[0] is not None
        assert outcomes[0].again
        assert "a queue is full" in outcomes[0].reason
        assert await ids(rabbitmq, "s.full") == list(range(10))
        assert await sink.send(numbered("s.full", 2, 10)) == [None, None]
    assert await ids(rabbitmq, "s.other") == [20, 21]


async def test_what_is_too_large_for_the_broker_takes_no_neighbour_along(own_rabbitmq: Rabbit) -> None:
    await own_rabbitmq.declare("s.sizes")
    await own_rabbitmq.ctl("eval", "application:set_env(rabbit, max_message_size, 10000).")
    events = [Outgoing("s.sizes", numbered_event(n, 20_000 if n in (7, 8, 30) else 10)) for n in range(50)]
    async with made(own_rabbitmq).open() as sink:
        outcomes = await sink.send(events)
        again = await sink.send(events[6:9])
    stored = await ids(own_rabbitmq, "s.sizes")

    assert [n for n, outcome in enumerate(outcomes) if outcome] == [7, 8, 30]
    assert outcomes[7] is not None
    assert outcomes[7].reason == "a message of 20,001 bytes, and this broker takes 10,000 (max_message_size)"
    assert not outcomes[7].again
    assert [outcome is None for outcome in again] == [True, False, True] or [outcome is None for outcome in again] == [True, False, False]
    assert set(stored) == set(range(50)) - {7, 8, 30}


async def test_what_closes_the_channel_and_does_not_say_why_is_found(own_rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_faas.connectors.sinks.rabbitmq.blamed", lambda closed, flight: [])
    await own_rabbitmq.declare("s.sizes")
    await own_rabbitmq.ctl("eval", "application:set_env(rabbit, max_message_size, 10000).")
    events = [Outgoing("s.sizes", numbered_event(n, 20_000 if n in (3, 11) else 10)) for n in range(20)]
    async with made(own_rabbitmq).open() as sink:
        outcomes = await sink.send(events)

    assert [n for n, outcome in enumerate(outcomes) if outcome] == [3, 11]
    assert set(await ids(own_rabbitmq, "s.sizes")) == set(range(20)) - {3, 11}


async def test_what_amqp_has_no_room_for_is_refused_for_good_and_its_neighbours_are_delivered(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("s.room")
    odd = [
        CloudEvent(type="t", source="/s", id="x", **{f"a{n}": "x" * 900 for n in range(200)}),
        CloudEvent(type="t", source="/s", id="x", data=b"", datacontenttype="text/plain;a=" + "x" * 300),
        CloudEvent(type="t", source="/s", id="x", **{"a" * 253: "x"}),
    ]
    good = numbered_event(1)
    async with made(rabbitmq).open() as sink:
        outcomes = await sink.send([Outgoing("s.room", one) for one in (good, *odd, good)] + [Outgoing("k" * 256, good)])

    assert [outcome is None for outcome in outcomes] == [True, False, False, False, True, False]
    assert not any(outcome.again for outcome in outcomes if outcome)
    assert "frame_max" in str(outcomes[1])
    assert len(await taken(rabbitmq, "s.room")) == 2
    async with made(rabbitmq, format="structured").open() as sink:
        assert await sink.send([Outgoing("s.room", one) for one in odd]) == [None] * 3


async def test_an_exchange_that_is_not_there_is_refused_and_one_that_goes_is_named(rabbitmq: Rabbit) -> None:
    with pytest.raises(SinkRefused, match=r"no exchange 's\.none'.*make the exchange first"):
        async with made(rabbitmq, exchange="s.none").open():
            pass
    await rabbitmq.declare("s.q")
    await bound(rabbitmq, "s.goes", "fanout", "s.q")
    async with made(rabbitmq, exchange="s.goes").open() as sink:
        assert await sink.send(numbered("k", 3)) == [None] * 3
        async with rabbitmq.channel() as channel:
            await channel.exchange_delete("s.goes")
        gone = await sink.send(numbered("k", 700))
        await bound(rabbitmq, "s.goes", "fanout", "s.q")
        back = await sink.send(numbered("k", 3))

    assert all(outcome and outcome.again for outcome in gone)
    assert "no exchange 's.goes'" in str(gone[0])
    assert back == [None] * 3


async def test_what_this_login_may_not_write_to_says_so(own_rabbitmq: Rabbit) -> None:
    await own_rabbitmq.declare("s.q")
    await bound(own_rabbitmq, "s.closed", "direct", "s.q")
    await bound(own_rabbitmq, "s.topics", "topic", "s.q")
    await own_rabbitmq.ctl("add_user", "shop", "a-secret")
    await own_rabbitmq.ctl("set_permissions", "shop", ".*", "s[.]topics", ".*")
    await own_rabbitmq.ctl("set_topic_permissions", "shop", "s.topics", "^s[.]q$", ".*")
    url = own_rabbitmq.url.replace("guest:guest", "shop:a-secret")
    async with made(own_rabbitmq, url=url, exchange="s.closed").open() as sink:
        closed = await sink.send(numbered("s.q", 300))
    async with made(own_rabbitmq, url=url, exchange="s.topics").open() as sink:
        events = [Outgoing("s.x" if n % 10 == 5 else "s.q", numbered_event(n)) for n in range(100)]
        topics = await sink.send(events)

    assert all(outcome and outcome.again and "allow this login to write to exchange 's.closed'" in outcome.reason for outcome in closed)
    assert [n for n, outcome in enumerate(topics) if outcome] == list(range(5, 100, 10))
    assert "'s.x'" in str(topics[5])
    assert set(await ids(own_rabbitmq, "s.q")) == {n for n in range(100) if n % 10 != 5}


async def test_what_cannot_be_opened_says_so(rabbitmq: Rabbit) -> None:
    wrong = rabbitmq.url.replace("guest:guest", "guest:wrong-secret")
    for sink, error, text in [
        (RabbitmqSink(url=wrong), SinkRefused, "ACCESS_REFUSED"),
        (RabbitmqSink(url=rabbitmq.url.rpartition("/")[0] + "/nowhere"), SinkRefused, "no such vhost"),
        (RabbitmqSink(url="amqp://u:secret@127.0.0.1:9"), SinkUnavailable, "9"),
        (RabbitmqSink(url="amqps://u:secret@127.0.0.1:9", ca="/nowhere.pem"), SinkRefused, "cannot be read"),
    ]:
        with pytest.raises(error, match=text) as raised:
            async with sink.open():
                pass

        assert "secret" not in str(raised.value) + repr(sink)


# --- faults -------------------------------------------------------------------------------------------------


async def delivered(sink: Sink, events: Sequence[Outgoing]) -> None:
    assert await sink.send(events) == [None] * len(events)


async def test_a_killed_server_loses_nothing_that_was_confirmed(own_rabbitmq: Rabbit) -> None:
    """And with the one that comes back, open() works again."""
    await own_rabbitmq.declare("s.classic")
    await own_rabbitmq.declare("s.quorum", kind="quorum")
    await own_rabbitmq.stop()  # a quorum queue of RabbitMQ 3.10 that is killed in its first second never has a leader again
    await own_rabbitmq.start()
    confirmed: dict[str, set[int]] = {"s.classic": set(), "s.quorum": set()}
    sent = 0

    async def flood(sink: Sink) -> None:
        nonlocal sent
        while True:
            events = [Outgoing(queue, numbered_event(n)) for n in range(sent, sent + 100) for queue in confirmed]
            sent += 100
            for out, outcome in zip(events, await sink.send(events), strict=True):
                if outcome is None:
                    confirmed[out.target].add(int(out.event.id))

    async with made(own_rabbitmq).open() as sink:
        flooding = asyncio.ensure_future(flood(sink))
        await eventually(lambda: len(confirmed["s.quorum"]) >= 1000, 60)
        await own_rabbitmq.kill()
        with pytest.raises(SinkUnavailable):
            await flooding
        with pytest.raises(SinkUnavailable):
            await sink.send(numbered("s.classic", 1))
    with pytest.raises(SinkUnavailable):
        async with made(own_rabbitmq).open():
            pass
    await own_rabbitmq.start()

    async def again() -> bool:
        try:
            async with made(own_rabbitmq).open() as sink:
                await delivered(sink, [*numbered("s.classic", 1, sent), *numbered("s.quorum", 1, sent)])
        except SinkUnavailable as error:
            raise AssertionError(str(error)) from None
        return True

    await eventually(again, 60)
    for queue, numbers in confirmed.items():
        stored = await ids(own_rabbitmq, queue)

        assert numbers - set(stored) == set()
        assert [number for number in stored if number < sent] == sorted(set(stored) - {sent})


async def test_a_connection_that_ends_in_the_middle_of_a_batch_is_unavailable(own_rabbitmq: Rabbit) -> None:
    await own_rabbitmq.declare("s.cut")
    async with Proxy(urlsplit(own_rabbitmq.url).port or 5672).open() as proxy:
        for end in (proxy.cut, lambda: own_rabbitmq.ctl("close_all_connections", "a test")):
            async with made(own_rabbitmq, url=proxy.url(own_rabbitmq.url)).open() as sink:
                await delivered(sink, numbered("s.cut", 1))
                proxy.deaf = True
                sending = asyncio.ensure_future(sink.send(numbered("s.cut", 1000)))
                await eventually(lambda: proxy.lost)
                if (ending := end()) is not None:
                    await ending
                with pytest.raises(SinkUnavailable, match="lost"):
                    await sending
                proxy.deaf = False
        async with made(own_rabbitmq, url=proxy.url(own_rabbitmq.url)).open() as sink:
            await delivered(sink, numbered("s.cut", 10))
            await own_rabbitmq.ctl("close_all_connections", "a test")

            async def told() -> bool:
                try:
                    await delivered(sink, numbered("s.cut", 1))
                except SinkUnavailable as error:
                    return "CONNECTION_FORCED" in str(error)
                return False

            assert await eventually(told, 30)


async def test_a_broker_without_memory_is_unavailable_and_stores_little_of_it_twice(
    own_rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "PATIENCE", 1.0)
    await own_rabbitmq.declare("s.memory")
    async with made(own_rabbitmq).open() as known:
        await delivered(known, numbered("s.memory", 10))
        await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
        for _ in range(3):
            async with made(own_rabbitmq).open() as sink:
                with pytest.raises(SinkUnavailable, match=r"takes no messages: .*memory"):
                    await sink.send(numbered("s.memory", 100, 10))
        await own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")
        await delivered(known, numbered("s.memory", 1, 110))
    async with made(own_rabbitmq).open() as sink:
        await delivered(sink, numbered("s.memory", 100, 10))
    stored = Counter(await ids(own_rabbitmq, "s.memory"))

    assert set(stored) == set(range(111))
    assert stored.total() - len(stored) <= 3


async def test_a_dead_link_is_unavailable(rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PATIENCE", 3.0)
    monkeypatch.setattr(publisher, "HEARTBEAT", 2)
    await rabbitmq.declare("s.dead-link")
    async with Proxy(urlsplit(rabbitmq.url).port or 5672).open() as proxy, made(rabbitmq, url=proxy.url(rabbitmq.url)).open() as sink:
        await delivered(sink, numbered("s.dead-link", 1))
        proxy.freeze()
        with pytest.raises(SinkUnavailable, match="nothing was heard"):
            await sink.send(numbered("s.dead-link", 10))
        proxy.cut()


async def test_a_connection_lives_while_there_is_nothing_to_send_and_while_there_is_nothing_else(
    rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiormq hears no confirms, and gives up a connection on which it hears nothing for six seconds here."""
    monkeypatch.setattr(connection, "HEARTBEAT", 1)
    await rabbitmq.declare("s.lives")
    async with made(rabbitmq).open() as sink:
        await delivered(sink, numbered("s.lives", 1))
        await asyncio.sleep(8)
        until = asyncio.get_running_loop().time() + 8
        while asyncio.get_running_loop().time() < until:
            await delivered(sink, numbered("s.lives", 20))


async def test_what_is_in_flight_has_a_bound(rabbitmq: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WINDOW", 1 << 20)
    await rabbitmq.declare("s.window")
    held = []
    real = publisher.Publisher.publish

    async def seen(self: publisher.Publisher, sent: publisher.Sent) -> None:
        await real(self, sent)
        held.append(self._held)

    monkeypatch.setattr(publisher.Publisher, "publish", seen)
    async with made(rabbitmq, format="structured").open() as sink:
        await delivered(sink, numbered("s.window", 100, size=100_000))

    assert max(held) <= 1 << 20
    assert await ids(rabbitmq, "s.window") == list(range(100))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://x"}, "url must look like"),
        ({"url": "amqp://rabbit.example"}, "another machine"),
        ({"exchange": "a\nb"}, "exchange must be"),
        ({"cert": "a.pem"}, "belong together"),
        ({"ca": "a.pem"}, "amqps"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RabbitmqSink(**{"url": "amqp://127.0.0.1:5672"} | options)
