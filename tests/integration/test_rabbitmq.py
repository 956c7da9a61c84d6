"""From RabbitMQ to the bus: real servers, and what is done to them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from pamqp.commands import Basic

from broker_faas.amqp_binding import to_amqp
from broker_faas.bus import Position
from broker_faas.buses.nats import NatsBus
from broker_faas.buses.store import position, stored, subjects
from broker_faas.connectors import pump as module
from broker_faas.connectors import rabbitmq as driver
from broker_faas.connectors.amqp import connection
from broker_faas.connectors.batch import Batch, Refused, Route
from broker_faas.connectors.pump import Pump
from broker_faas.connectors.rabbitmq import RabbitmqConnector
from broker_faas.errors import SourceRefused, SourceUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import faas_headers
from tests.helpers import OwnNats, eventually
from tests.rabbitmq_server import Rabbit, Raw

pytestmark = pytest.mark.timeout(240)
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 1.0)


@dataclass
class Reader:
    """What lies on one bus. gate: publishing waits for it."""

    bus: Any
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    publishing: int = 0

    async def publish(self, records: Any, *, output: bool = False, last: dict[str, int] | None = None) -> int:
        self.publishing += 1
        await self.gate.wait()
        return int(await self.bus.publish(records, output=output, last=last))

    async def position(self, partition: str) -> Position:
        return await position(self.bus, "c", partition)

    async def all(self, pattern: str = "ev.>", stream: str = "events") -> list[Any]:
        found, seq = [], 1
        while message := await stored(self.bus, stream, seq=seq, next_by_subj=pattern):
            found.append(message)
            seq = message.seq + 1
        return found

    async def events(self) -> list[CloudEvent]:
        return [CloudEvent.from_headers(one.headers, one.data) for one in await self.all()]

    async def bodies(self) -> list[bytes]:
        return [one.data for one in await self.all()]

    async def count(self) -> int:
        return sum((await subjects(self.bus, "events", "ev.>")).values())

    async def has(self, n: int) -> None:
        async def there() -> bool:
            return await self.count() >= n

        await eventually(there, PATIENCE)


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[Reader]:
    async with NatsBus(bus_url).open() as opened:
        reader = Reader(opened)
        reader.gate.set()
        yield reader


def made(rabbit: Rabbit, *queues: str, **options: Any) -> RabbitmqConnector:
    return RabbitmqConnector(url=rabbit.url, queues=queues, insecure=True, **options)


@asynccontextmanager
async def pumping(connector: RabbitmqConnector, bus: Reader, **route: Any) -> AsyncIterator[Pump]:
    pump = Pump(connector, Route(name="c", source="/p/c", **route), bus, bus.position)  # type: ignore[arg-type]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pump.run(stop))
        try:
            yield pump
        except BaseException:
            task.cancel()
            raise
        stop.set()


def numbered(n: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + n)]


async def none(partition: str) -> str | None:
    return None


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
async def test_what_a_queue_has_is_stored_in_its_order_and_acknowledged(rabbitmq: Rabbit, bus: Reader, kind: str) -> None:
    await rabbitmq.declare("q.order", kind=kind)
    await rabbitmq.send("q.order", numbered(1500))
    async with pumping(made(rabbitmq, "q.order", offset="first" if kind == "stream" else None), bus):
        await bus.has(1500)
        await rabbitmq.send("q.order", numbered(100, 1500))
        await bus.has(1600)

    assert await bus.bodies() == numbered(1600)
    assert (await bus.position("q.order")).said == ("1599" if kind == "stream" else None)
    if kind != "stream":
        assert await rabbitmq.ready("q.order") == 0


async def test_several_queues_are_read_each_in_its_order(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.a", "q.b")
    await rabbitmq.send("q.a", numbered(700))
    await rabbitmq.send("q.b", numbered(700))
    async with pumping(made(rabbitmq, "q.a", "q.b"), bus):
        await bus.has(1400)

    assert [one.data for one in await bus.all("ev.q.a.*.*")] == numbered(700)
    assert [one.data for one in await bus.all("ev.q.b.*.*")] == numbered(700)
    assert (await rabbitmq.ready("q.a"), await rabbitmq.ready("q.b")) == (0, 0)


async def test_nothing_is_acknowledged_before_it_is_stored(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.kept", kind="quorum")
    await rabbitmq.send("q.kept", numbered(50))
    bus.gate.clear()
    pump = Pump(made(rabbitmq, "q.kept"), Route(name="c", source="/p/c"), bus, bus.position)  # type: ignore[arg-type]
    task = asyncio.ensure_future(pump.run(asyncio.Event()))
    await eventually(lambda: bus.publishing, PATIENCE)
    task.cancel()
    await asyncio.wait([task])

    async def all_again() -> bool:
        return await rabbitmq.ready("q.kept") == 50

    await eventually(all_again, PATIENCE)
    bus.gate.set()
    async with pumping(made(rabbitmq, "q.kept"), bus):
        await bus.has(50)

    assert await bus.bodies() == numbered(50)
    assert {event.get("redelivered") for event in await bus.events()} == {"true"}


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_", "cloudEvents:"])
async def test_events_keep_what_they_are(rabbitmq: Rabbit, bus: Reader, prefix: str) -> None:
    event = CloudEvent(type="t", source="/else", id="é", subject="s", data={"a": 1}, partitionkey="k")
    headers, content_type, body = to_amqp(event)
    spelt: dict[str, Any] = {prefix + name[3:]: value for name, value in headers.items()}
    await rabbitmq.declare("q.native")
    await rabbitmq.send("q.native", [body], Basic.Properties(headers=spelt, content_type=content_type, message_id="other"))
    async with pumping(made(rabbitmq, "q.native"), bus):
        await bus.has(1)

    assert await bus.events() == [event]


async def test_a_message_of_another_kind_becomes_an_event(rabbitmq: Rabbit, bus: Reader) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    properties = Basic.Properties(
        message_id="m-1",
        message_type="order",
        timestamp=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        content_type="text/plain",
        content_encoding="gzip",
        correlation_id="corr",
        headers={"traceparent": trace, "customer": 7, "x-delivery-count": 3},
    )
    await rabbitmq.declare("q.foreign")
    await rabbitmq.send("q.foreign", [b"\x1f\x8b bomb"], properties)
    async with pumping(made(rabbitmq, "q.foreign", key_header="customer"), bus, to="shop"):
        await bus.has(1)
    [event] = await bus.events()

    assert event.data == b"\x1f\x8b bomb"
    assert dict(event.attributes) == {
        "specversion": "1.0",
        "id": "m-1",
        "source": "/p/c",
        "type": "order",
        "subject": "q.foreign",
        "time": "2026-01-31T09:30:00Z",
        "datacontenttype": "text/plain",
        "contentencoding": "gzip",
        "correlationid": "corr",
        "traceparent": trace,
        "partitionkey": "7",
        "deliverycount": "3",
    }


def table(content: bytes) -> bytes:
    return b"\x20\0" + struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = b"\1aF" + struct.pack(">I", len(content)) + content
    return content


UNREADABLE = [
    table(b"\1tT" + b"\x80" + b"\0" * 7),  # a timestamp of 2**63
    b"\0\x40" + b"\x80" + b"\0" * 7,  # the property, too
    table(b"\1\xff" + b"t\1"),  # a name that is no UTF-8
    table(nested(2000)),
]
READABLE = [
    table(nested(50)),
    table(b"\1ad" + struct.pack(">d", float("nan"))),
    table(b"\1aD\xff\0\0\0\1"),  # a decimal of scale 255
    table(b"\1aS\0\0\0\1\xff"),
    table(b"\1aA\0\0\0\x05F\0\0\0\0"),  # an array of tables
]


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
async def test_no_header_table_stops_the_queue(rabbitmq: Rabbit, bus: Reader, kind: str) -> None:
    await rabbitmq.declare("q.hostile", kind=kind)
    sent = 0
    for block in [*UNREADABLE, *READABLE]:
        try:
            await rabbitmq.send("q.hostile", [b"%d" % sent], Raw(block))
        except Exception:  # the broker itself does not take it
            continue
        sent += 1
    assert sent >= len(UNREADABLE)  # each of which ends the connection of an aiormq that reads them itself
    await rabbitmq.send("q.hostile", [b"", b"end"])
    async with pumping(made(rabbitmq, "q.hostile", dedupe="content", offset="first" if kind == "stream" else None), bus) as pump:
        await eventually(lambda: pump.status.read == sent + 2, PATIENCE)
    quarantined = await bus.all("quarantine.c", "dead")

    assert (await bus.bodies())[-1] == b"end"
    assert len(quarantined) + await bus.count() == sent + 2
    assert all("properties cannot be read" in faas_headers(one.headers)["reason"] for one in quarantined)
    assert pump.status.error == ""


async def test_routing_keys_need_not_be_utf8(rabbitmq: Rabbit, bus: Reader) -> None:
    key = b"\xff\xfe" + b"k" * 200
    read = connection.readable(b"\0\x3c\0\x3c\3tag" + b"\xff" * 8 + b"\1" + b"\1x" + bytes([len(key)]) + key)

    assert read == b"\0\x3c\0\x3c\3tag" + b"\xff" * 8 + b"\1" + b"\1x" + bytes([208]) + b"\\xff\\xfe" + b"k" * 200


async def test_what_breaks_a_rule_of_events_is_quarantined(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.poison")
    bad = Basic.Properties(headers={"ce-specversion": "1.0", "n": Decimal("1.5")}, content_type="application/json")
    await rabbitmq.send("q.poison", [b"bad"], bad)
    await rabbitmq.send("q.poison", [b"[]"], Basic.Properties(content_type="application/cloudevents-batch+json"))
    await rabbitmq.send("q.poison", [b"good"])
    async with pumping(made(rabbitmq, "q.poison"), bus) as pump:
        await eventually(lambda: pump.status.read == 3, PATIENCE)
    quarantined = await bus.all("quarantine.c", "dead")

    assert await bus.bodies() == [b"good"]
    assert [one.data for one in quarantined] == [b"bad", b"[]"]
    assert "'id' is missing" in faas_headers(quarantined[0].headers)["reason"]
    assert await rabbitmq.ready("q.poison") == 0


async def test_a_message_id_is_what_repetitions_are_known_by(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.ids")
    await rabbitmq.send("q.ids", [b"1", b"1"], Basic.Properties(message_id="same"))
    await rabbitmq.send("q.ids", [b"2", b"2"])
    await rabbitmq.send("q.ids", [b"3", b"3"], Basic.Properties(message_id=""))
    async with pumping(made(rabbitmq, "q.ids"), bus) as pump:
        await eventually(lambda: pump.status.read == 6, PATIENCE)

    assert await bus.bodies() == [b"1", b"2", b"2", b"3", b"3"]
    assert pump.status.repeated == 1


@pytest.mark.parametrize(("dedupe", "kept"), [("content", [b"1", b"2"]), ("none", [b"1", b"1", b"2"])])
async def test_what_repetitions_are_known_by_can_be_chosen(rabbitmq: Rabbit, bus: Reader, dedupe: Any, kept: list[bytes]) -> None:
    await rabbitmq.declare("q.dedupe")
    await rabbitmq.send("q.dedupe", [b"1", b"1", b"2"], Basic.Properties(message_id="same" if dedupe == "none" else None))
    async with pumping(made(rabbitmq, "q.dedupe", dedupe=dedupe), bus) as pump:
        await eventually(lambda: pump.status.read == 3, PATIENCE)

    assert await bus.bodies() == kept
    assert {event.get("messageid") for event in await bus.events()} == ({"same"} if dedupe == "none" else {None})


async def test_a_stream_is_read_on_behind_what_is_stored(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.stream", kind="stream")
    await rabbitmq.send("q.stream", numbered(30))
    async with pumping(made(rabbitmq, "q.stream", offset=10), bus):
        await bus.has(20)
    await rabbitmq.send("q.stream", numbered(5, 30))
    async with pumping(made(rabbitmq, "q.stream", offset="first"), bus) as pump:
        await bus.has(25)

    assert await bus.bodies() == numbered(25, 10)
    assert [event.id for event in await bus.events()][-1] == "q.stream/34"
    assert pump.status.read == 5


async def test_a_connection_that_the_broker_closes_is_opened_again(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.closed", kind="quorum")
    await rabbitmq.send("q.closed", numbered(10))
    async with pumping(made(rabbitmq, "q.closed"), bus):
        await bus.has(10)
        await rabbitmq.ctl("close_all_connections", "a test")
        await rabbitmq.send("q.closed", numbered(10, 10))
        await eventually(lambda: bus.count(), 15)
        await bus.has(20)

    assert sorted(set(await bus.bodies()), key=int) == numbered(20)


async def test_a_broker_that_was_killed_has_what_it_confirmed(own_rabbitmq: Rabbit, bus: Reader) -> None:
    # Not a quorum queue: RabbitMQ 3.10 writes who leads one some seconds after it was made, and killed before that never knows again.
    await own_rabbitmq.declare("q.killed")
    bus.gate.clear()
    async with pumping(made(own_rabbitmq, "q.killed"), bus) as pump:
        await own_rabbitmq.send("q.killed", numbered(300))
        await eventually(lambda: bus.publishing, PATIENCE)
        await own_rabbitmq.kill()
        bus.gate.set()
        await eventually(lambda: pump.status.state == "connecting", PATIENCE)
        await own_rabbitmq.start()
        await bus.has(300)

        async def complete() -> bool:
            return set(await bus.bodies()) == set(numbered(300))

        await eventually(complete, PATIENCE)


async def test_a_queue_that_is_deleted_and_made_again_is_read_on(rabbitmq: Rabbit, bus: Reader) -> None:
    await rabbitmq.declare("q.again")
    async with pumping(made(rabbitmq, "q.again"), bus) as pump:
        await rabbitmq.send("q.again", [b"1"])
        await bus.has(1)
        await rabbitmq.declare("q.again")  # deletes the old one
        await rabbitmq.send("q.again", [b"2"])
        await bus.has(2)

    assert await bus.bodies() == [b"1", b"2"]
    assert "ended the consumer of queue 'q.again'" in pump.status.error


async def test_a_tag_of_an_earlier_connection_acknowledges_nothing(rabbitmq: Rabbit) -> None:
    """Else the new connection's messages of these numbers would be gone, and nobody would have stored them."""
    await rabbitmq.declare("q.tags", kind="quorum")
    await rabbitmq.send("q.tags", numbered(50))
    connector = made(rabbitmq, "q.tags")
    async with connector.open("/p/c", none) as old:
        batch = await anext(aiter(old))
    async with connector.open("/p/c", none) as new:
        again: Batch = await anext(aiter(new))
        await old.ack(batch.token)
        await new.ack(batch.token)
        assert again.parts[0][1][0].data == b"0"

    async def all_there() -> bool:
        return await rabbitmq.ready("q.tags") == 50

    await eventually(all_there, PATIENCE)


async def test_a_repeated_ack_leaves_the_channel_open(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("q.acks")
    await rabbitmq.send("q.acks", numbered(3))
    async with made(rabbitmq, "q.acks").open("/p/c", none) as source:
        batches = aiter(source)
        batch = await anext(batches)
        await source.ack(batch.token)
        await source.ack(batch.token)
        await rabbitmq.send("q.acks", [b"x"])

        assert len((await anext(batches)).parts[0][1]) == 1


async def test_while_the_bus_is_away_the_source_waits(rabbitmq: Rabbit, own_nats: Callable[..., Awaitable[OwnNats]]) -> None:
    own = await own_nats()
    await rabbitmq.declare("q.waits")
    async with NatsBus(own.url, patience=0.5, try_timeout=0.5).open() as opened:
        bus = Reader(opened)
        bus.gate.set()
        async with pumping(made(rabbitmq, "q.waits"), bus) as pump:
            await rabbitmq.send("q.waits", numbered(10))
            await bus.has(10)
            await own.kill()
            await rabbitmq.send("q.waits", numbered(10, 10))
            await eventually(lambda: pump.status.state == "waiting for the bus", PATIENCE)
            await own.start()
            await bus.has(20)

        assert await bus.bodies() == numbered(20)


async def test_peek_leaves_everything_there(rabbitmq: Rabbit) -> None:
    for kind in ("classic", "quorum", "stream"):
        await rabbitmq.declare("q.peek", kind=kind)
        await rabbitmq.send("q.peek", numbered(10))
        connector = made(rabbitmq, "q.peek", offset="first" if kind == "stream" else None)

        async def all_there() -> bool:
            return await rabbitmq.ready("q.peek") == 10

        for _ in range(2):
            peeked = (await connector.peek("/p/c", 4)).items
            assert [(name, item.data) for name, item in peeked] == [("q.peek", body) for body in numbered(4)]
            if kind != "stream":
                await eventually(all_there, PATIENCE)


async def test_lag_is_what_is_not_acknowledged(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("q.lag")
    await rabbitmq.send("q.lag", numbered(10))
    async with made(rabbitmq, "q.lag", prefetch=4).open("/p/c", none) as source:
        batch = await anext(aiter(source))
        assert await source.lag() == 10
        await source.ack(batch.token)

        async def less() -> bool:
            return await source.lag() == 6

        await eventually(less, PATIENCE)


async def test_what_is_held_has_a_bound(rabbitmq: Rabbit, bus: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the socket beyond it, and the connection lives: the reader is told of heartbeats."""
    monkeypatch.setattr(driver, "HELD", 1 << 20)
    monkeypatch.setattr(connection, "HEARTBEAT", 1)
    await rabbitmq.declare("q.flood")
    await rabbitmq.send("q.flood", [b"%4d" % n + b"x" * 100_000 for n in range(200)])
    async with made(rabbitmq, "q.flood").open("/p/c", none) as source:
        batches = aiter(source)
        got: list[Any] = []
        while len(got) < 200:
            await asyncio.sleep(0.2 if got else 6)  # longer than aiormq waits for a frame
            batch = await anext(batches)
            assert source._received - source._done < driver.HELD + (2 << 20)  # and ten frames of 128 KiB that are on their way
            got += batch.parts[0][1]
            await source.ack(batch.token)

    assert [int(item.data[:4]) for item in got] == list(range(200))


async def test_what_cannot_be_read_says_so(rabbitmq: Rabbit) -> None:
    await rabbitmq.declare("q.refused")
    await rabbitmq.declare("q.a-stream", kind="stream")
    await rabbitmq.send("q.refused", [b"x"])
    wrong = rabbitmq.url.replace("guest:guest", "guest:wrong-secret")
    for connector, error, text in [
        (made(rabbitmq, "q.nowhere"), SourceRefused, "make the queue first"),
        (made(rabbitmq, "q.a-stream"), SourceRefused, "needs the option offset"),
        (made(rabbitmq, "q.refused", offset="first"), SourceRefused, "it is no stream"),
        (RabbitmqConnector(url=wrong, queue="q.refused"), SourceRefused, "ACCESS_REFUSED"),
        (RabbitmqConnector(url=rabbitmq.url.rpartition("/")[0] + "/nowhere", queue="q"), SourceRefused, "no such vhost"),
        (RabbitmqConnector(url="amqp://u:secret@127.0.0.1:9", queue="q"), SourceUnavailable, "9"),
    ]:
        with pytest.raises(error, match=text) as raised:
            async with connector.open("/p/c", none) as source:
                await anext(aiter(source))

        assert "secret" not in str(raised.value) + repr(connector)
    assert not isinstance(raised.value, Refused)
