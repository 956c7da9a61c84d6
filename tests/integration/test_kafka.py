"""connectors/kafka.py against a real Kafka and the real bus: nothing lost, nothing reordered, nothing committed that is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import OffsetAndMetadata

from broker_faas.buses import store
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.connectors.batch import Refused, Route
from broker_faas.connectors.kafka import KafkaConnector
from broker_faas.connectors.kafka_parts.offsets import OURS
from broker_faas.connectors.pump import Pump
from broker_faas.errors import SourceRefused, SourceUnavailable
from broker_faas.event import CloudEvent
from broker_faas.kafka_binding import to_kafka
from broker_faas.layout import EVENTS, faas_headers
from tests.helpers import OwnNats, eventually
from tests.kafka_server import OwnKafka
from tests.systems.kafka import Topic, admin, topic_on

pytestmark = pytest.mark.timeout(240)  # a broker takes its time to start, and a group to hand out partitions

LONG = 60.0
OwnServer = Callable[..., Awaitable[OwnNats]]


@pytest_asyncio.fixture
async def topic(kafka: str) -> Topic:
    return await topic_on(kafka)


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[JetStreamBus]:
    async with NatsBus(bus_url).open() as bus:
        yield bus


def pump_of(options: KafkaConnector, bus: JetStreamBus) -> Pump:
    return Pump(options, Route(name="c", source="/p/c", to="t"), bus, partial(store.position, bus, "c"))


@asynccontextmanager
async def running(options: KafkaConnector, bus: JetStreamBus) -> AsyncIterator[Pump]:
    pump = pump_of(options, bus)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pump.run(stop))
        try:
            yield pump
        finally:
            stop.set()
            await task


async def stored(bus: JetStreamBus, pattern: str = "ev.>") -> list[CloudEvent]:
    """Everything on the bus, in its order."""
    return [CloudEvent.from_headers(one.headers, one.data) for one in await records(bus, EVENTS, pattern)]


async def records(bus: JetStreamBus, stream: str, pattern: str) -> list[Any]:
    found = []
    seq = 1
    while one := await store.stored(bus, stream, next_by_subj=pattern, seq=seq):
        found.append(one)
        seq = one.seq + 1
    return found


async def count(bus: JetStreamBus) -> int:
    return sum((await store.subjects(bus, EVENTS, "ev.>")).values())


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last)]


async def until_stored(bus: JetStreamBus, expected: int) -> None:
    async def enough() -> bool:
        return await count(bus) >= expected

    await eventually(enough, LONG)


# --- order, acknowledgements, restarts ----------------------------------------------------------------------


async def test_what_a_topic_has_is_stored_in_each_partitions_order_and_then_committed(kafka: str, bus: JetStreamBus) -> None:
    topic = await topic_on(kafka, 3)
    for partition in range(3):
        await topic.send(numbers(0, 100), partition, key=b"k%d" % partition)
    async with running(topic.options(batch=50), bus) as pump:
        await eventually(lambda: pump.status.stored == 300, LONG)
    events = await stored(bus)

    for partition in range(3):
        own = [event for event in events if event.id.startswith(f"{topic.name}/{partition}/")]
        assert [event.data for event in own] == numbers(0, 100)
        assert {event.partitionkey for event in own} == {f"k{partition}"}
    assert await topic.committed() == {partition: OffsetAndMetadata(100, OURS) for partition in range(3)}


async def test_every_partition_has_its_turn(kafka: str) -> None:
    """aiokafka gives what one partition has fetched before it looks at the next."""
    topic = await topic_on(kafka, 4)
    for partition in range(4):
        await topic.send(numbers(0, 400), partition)
    order: list[str] = []

    async with topic.options(batch=20).open("/p/c", nothing) as source:
        await asyncio.sleep(0)
        async for batch in source:
            order += batch.positions
            if len(order) >= 40:
                break
    last = {partition: [n for n, name in enumerate(order) if name == partition] for partition in set(order)}

    assert len(last) == 4
    assert all(b - a <= 8 for places in last.values() for a, b in pairwise(places))


async def nothing(partition: str) -> str | None:
    return None


async def test_nothing_is_committed_before_it_is_stored(topic: Topic, own_nats: OwnServer) -> None:
    """The bus goes away; the source waits; when it is back, everything is there."""
    own = await own_nats()
    async with NatsBus(own.url, patience=0.5, try_timeout=0.5).open() as bus:
        await topic.send(numbers(0, 10))
        async with running(topic.options(batch=10), bus) as pump:
            await eventually(lambda: pump.status.stored == 10, LONG)
            await own.kill()
            await topic.send(numbers(10, 100))
            await eventually(lambda: pump.status.state == "waiting for the bus", LONG)

            assert (await topic.committed())[0].offset == 10
            await own.start()
            await eventually(lambda: pump.status.stored == 100, LONG)
        events = await stored(bus)

    assert [event.data for event in events] == numbers(0, 100)


async def test_a_restart_skips_what_is_stored_though_it_was_not_committed(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send(numbers(0, 20))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 20, LONG)
    await _commit_as_ours(topic, 5)  # as after a crash between storing and committing
    await topic.send(numbers(20, 30))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 10, LONG)

    assert pump.status.repeated == 0
    assert [event.data for event in await stored(bus)] == numbers(0, 30)


async def test_a_groups_offset_that_is_behind_what_is_stored_is_mended_without_a_new_record(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send(numbers(0, 5))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 5, LONG)
    await _commit_as_ours(topic, 3)
    async with running(topic.options(), bus):

        async def mended() -> bool:
            return bool((await topic.committed())[0].offset == 5)

        await eventually(mended, LONG)

    assert await count(bus) == 5


async def test_a_bus_that_has_less_than_was_committed_gets_it_again(topic: Topic, bus: JetStreamBus) -> None:
    """It was restored from an old copy."""
    await topic.send(numbers(0, 10))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 10, LONG)
    await _commit_as_ours(topic, 20)
    await topic.send(numbers(10, 30))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 20, LONG)

    assert [event.data for event in await stored(bus)] == numbers(0, 30)


async def _commit_as_ours(topic: Topic, offset: int) -> None:
    await topic.commit((offset, OURS))  # type: ignore[arg-type]


async def test_offsets_that_an_operator_set_are_honoured_once(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send(numbers(0, 20))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 20, LONG)
    await topic.commit(15)
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 5, LONG)
        await topic.send(numbers(20, 21))
        await eventually(lambda: pump.status.stored == 6, LONG)

    assert (await topic.committed())[0] == OffsetAndMetadata(21, OURS)


@pytest.mark.parametrize(("start", "expected"), [("earliest", [b"0", b"1"]), ("latest", [b"1"])])
async def test_the_first_start_is_resolved_and_committed(topic: Topic, bus: JetStreamBus, start: Any, expected: list[bytes]) -> None:
    await topic.send([b"0"])
    async with topic.options(start=start).open("/p/c", nothing) as source:
        reading = asyncio.ensure_future(anext(aiter(source)))  # stops before anything is stored
        await eventually(topic.committed, LONG)
        reading.cancel()
    await topic.send([b"1"])
    async with running(topic.options(start=start), bus):
        await until_stored(bus, len(expected))

    assert [event.data for event in await stored(bus)] == expected


async def test_a_first_start_may_take_its_time(topic: Topic) -> None:
    """A partition without an offset is an error of aiokafka's, until it was told where to begin."""
    await topic.send([b"0"])

    async def slowly(partition: str) -> str | None:
        await asyncio.sleep(2.5)
        return None

    async with asyncio.timeout(LONG), topic.options().open("/p/c", slowly) as source:
        batch = await anext(aiter(source))

    assert len(batch.items) == 1


async def test_an_offset_out_of_range_ends_it_and_says_what_to_do(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send(numbers(0, 10))
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 10, LONG)
    await topic.send(numbers(10, 30))
    async with admin(topic.servers) as client:
        await client.delete_records({TopicPartition(topic.name, 0): RecordsToDelete(before_offset=25)})
    with pytest.raises(SourceRefused, match=r"offset 10 of t\w+/0 is out of range.*15 records were deleted unread.*--reset-offsets"):
        await pump_of(topic.options(), bus).run(asyncio.Event())
    await topic.commit(25)
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 5, LONG)

    assert [event.data for event in await stored(bus)] == numbers(0, 10) + numbers(25, 30)


async def test_two_of_a_group_lose_and_reorder_nothing_when_the_second_comes_and_goes(kafka: str, bus: JetStreamBus) -> None:
    topic = await topic_on(kafka, 4)
    total = 0

    async def send() -> None:
        nonlocal total
        for partition in range(4):
            await topic.send(numbers(total, total + 200), partition)
        total += 200

    await send()
    async with running(topic.options(batch=20), bus) as one:
        await eventually(lambda: one.status.stored >= 100, LONG)
        async with running(topic.options(batch=20), bus) as two:
            await eventually(lambda: two.status.state == "reading", LONG)
            await send()

            async def both() -> bool:
                await send()
                return two.status.stored > 0 and one.status.stored > 0

            await eventually(both, LONG)
        await send()
        await until_stored(bus, 4 * total)
    events = await stored(bus)

    for partition in range(4):
        prefix = f"{topic.name}/{partition}/"
        assert [event.data for event in events if event.id.startswith(prefix)] == numbers(0, total)


async def test_topics_that_match_a_pattern_are_read_and_others_not(kafka: str, bus: JetStreamBus) -> None:
    one, other = await topic_on(kafka), await topic_on(kafka)
    await one.send([b"1"])
    await other.send([b"2"])
    async with running(one.options(topics=(), topic_pattern=one.name[:-1] + "."), bus):
        await until_stored(bus, 1)

    assert [event.data for event in await stored(bus)] == [b"1"]


# --- what comes in ------------------------------------------------------------------------------------------


async def test_a_foreign_record_becomes_an_event_that_holds_it(topic: Topic, bus: JetStreamBus) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = [("content-type", b"text/plain"), ("traceparent", trace.encode()), ("x", b"\xff")]
    await topic.send([b"hello"], key=b"\xff", headers=headers, timestamp_ms=1_700_000_000_123)
    await topic.send([None], key="é".encode(), timestamp_ms=1_700_000_000_000)
    async with running(topic.options(event_type="com.acme.line"), bus):
        await until_stored(bus, 2)
    first, tombstone = await stored(bus)

    assert dict(first.attributes) == {
        "specversion": "1.0",
        "id": f"{topic.name}/0/0",
        "source": "/p/c",
        "type": "com.acme.line",
        "datacontenttype": "text/plain",
        "time": "2023-11-14T22:13:20.123Z",
        "partitionkey": "/w==",
        "traceparent": trace,
    }
    assert (first.data, tombstone.data, tombstone.partitionkey) == (b"hello", None, "é")


@pytest.mark.parametrize("structured", [False, True])
async def test_events_are_kept_as_they_are(topic: Topic, bus: JetStreamBus, structured: bool) -> None:
    made = CloudEvent(
        type="a.b", source="urn:x", id="é 1%", data=b'{"b": 1,  "a":2}', datacontenttype="application/json", partitionkey="k", n=7
    )
    key, headers, value = to_kafka(made, structured)
    await topic.send([value], key=key, headers=headers)
    async with running(topic.options(), bus):
        await until_stored(bus, 1)

    assert await stored(bus) == [made]


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
async def test_compressed_records_are_read(topic: Topic, bus: JetStreamBus, compression: str) -> None:
    await topic.send([b"x" * 1000 + b"%d" % n for n in range(50)], compression_type=compression)
    async with running(topic.options(), bus):
        await until_stored(bus, 50)

    assert [event.data[1000:] for event in await stored(bus) if event.data] == numbers(0, 50)


async def test_what_cannot_become_an_event_is_quarantined_and_the_rest_goes_on(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send([b"0"])
    await topic.send([b"\xff\0"], headers=[("ce_id", b"\xff"), ("ce_source", b"/"), ("ce_type", b"t"), ("ce_specversion", b"1.0")])
    await topic.send([b"{"], headers=[("content-type", b"application/cloudevents+json")])
    await topic.send([b"3"])
    async with running(topic.options(), bus) as pump:
        await until_stored(bus, 2)
        await eventually(lambda: pump.status.quarantined == 2, LONG)
    broken = await records(bus, "dead", "quarantine.c")

    assert [event.data for event in await stored(bus)] == [b"0", b"3"]
    assert [one.data for one in broken] == [b"\xff\0", b"{"]
    assert [faas_headers(one.headers)["position"] for one in broken] == [f"{topic.name}/0/1", f"{topic.name}/0/2"]
    assert "surrogates" in faas_headers(broken[0].headers)["reason"]


class NoText(str):
    def encode(self, *_: object) -> bytes:
        return b"\xff"


async def test_a_header_name_that_is_not_utf8_ends_it_and_says_so(topic: Topic, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Java client writes one; librdkafka would. aiokafka cannot read its batch, and would skip what is in front of it."""
    await topic.send([b"0"])
    with monkeypatch.context() as patch:
        for name in ("message_accumulator", "producer"):  # what aiokafka has in C checks what it writes
            patch.setattr(f"aiokafka.producer.{name}.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
        await topic.send([b"1"], headers=[(NoText("x"), b"1")])
    await topic.send([b"2"])
    for _ in range(2):
        with pytest.raises(SourceRefused, match="a header whose name is not UTF-8"):
            await pump_of(topic.options(batch=2), bus).run(asyncio.Event())

    assert b"2" not in [event.data for event in await stored(bus)]


async def test_only_committed_transactions_are_read_and_their_markers_are_no_lag(topic: Topic, bus: JetStreamBus) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=topic.servers, transactional_id=topic.name)
    await producer.start()
    for data, commits in [(b"a", True), (b"b", False), (b"c", True)]:
        await producer.begin_transaction()
        await producer.send_and_wait(topic.name, data)
        await (producer.commit_transaction() if commits else producer.abort_transaction())
    await producer.stop()
    async with topic.options().open("/p/c", nothing) as source:
        batches = aiter(source)
        first = await anext(batches)
        reading = asyncio.ensure_future(anext(batches))

        async def lag(expected: int) -> bool:
            return await source.lag() == expected

        assert await source.lag() not in (0, None)
        await source.ack(first.token)
        if not await eventually(lambda: lag(0), LONG):
            raise AssertionError
        reading.cancel()
    [(_, items)] = first.parts

    assert [item.data for item in items] in ([b"a", b"c"], [b"a"])


# --- looking, failing ---------------------------------------------------------------------------------------


async def test_peek_shows_what_comes_next_commits_nothing_and_joins_nothing(topic: Topic, bus: JetStreamBus) -> None:
    await topic.send(numbers(0, 5))
    first = (await topic.options().peek("/p/c", 3)).items

    assert await topic.committed() == {}
    assert [item.data for _, item in first] == numbers(0, 3)
    async with running(topic.options(), bus) as pump:
        await eventually(lambda: pump.status.stored == 5, LONG)
        async with admin(topic.servers) as client:
            before = await client.describe_consumer_groups([topic.group])
            beside = (await topic.options().peek("/p/c", 3)).items
            after = await client.describe_consumer_groups([topic.group])
    await topic.send([b"5"], headers=[("ce_id", b"\xff")])
    [(name, refused)] = (await topic.options().peek("/p/c", 3)).items

    assert beside == []
    assert str(before) == str(after)
    assert name == topic.name
    assert isinstance(refused, Refused)


async def test_a_topic_that_is_not_there_is_refused_and_not_made(topic: Topic) -> None:
    name = f"{topic.name}x"
    with pytest.raises(SourceRefused, match=f"there is no topic '{name}' in Kafka"):
        async with topic.options(topics=(name,)).open("/p/c", nothing):
            pass
    async with admin(topic.servers) as client:
        assert name not in await client.list_topics()


async def test_no_broker_is_unavailable(unused_port: int) -> None:
    with pytest.raises(SourceUnavailable, match=r"Kafka at 127\.0\.0\.1:\d+: ConnectionRefusedError"):
        async with KafkaConnector(servers=f"127.0.0.1:{unused_port}", group="g", topics=("t",)).open("/p/c", nothing):
            pass


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_login_is_taken_and_a_wrong_one_is_refused_without_being_shown(own_kafka: OwnKafka) -> None:
    topic = await topic_on(own_kafka.servers)
    await topic.send([b"1"])
    login = {"servers": own_kafka.sasl_servers, "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "shop"}
    [(_, item)] = (await topic.options(**login, password="secret").peek("/p/c", 1)).items

    assert item.data == b"1"
    with pytest.raises(SourceRefused, match="Invalid username or password") as raised:
        await topic.options(**login, password="hunter2").peek("/p/c", 1)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(SourceRefused, match="UnsupportedSaslMechanismError"):
        await topic.options(**login | {"sasl_mechanism": "SCRAM-SHA-256"}, password="secret").peek("/p/c", 1)


async def test_a_broker_that_is_killed_and_comes_back_is_read_on(own_kafka: OwnKafka, bus: JetStreamBus) -> None:
    topic = await topic_on(own_kafka.servers, 2)
    await topic.send(numbers(0, 50))
    async with running(topic.options(batch=10), bus) as pump:
        await eventually(lambda: pump.status.stored == 50, LONG)
        await own_kafka.kill()
        await own_kafka.start()
        await topic.send(numbers(50, 100))
        await until_stored(bus, 100)

    assert [event.data for event in await stored(bus)] == numbers(0, 100)


async def test_it_ends_though_the_broker_is_gone(own_kafka: OwnKafka, bus: JetStreamBus) -> None:
    topic = await topic_on(own_kafka.servers)
    await topic.send(numbers(0, 5))
    async with asyncio.timeout(120):
        async with running(topic.options(), bus) as pump:
            await eventually(lambda: pump.status.stored == 5, LONG)
            await own_kafka.kill()

    assert pump.status.state == "ended"
