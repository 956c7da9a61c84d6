"""connectors/sinks/kafka.py against a real Kafka: what is confirmed is there, in the order of its key, and what is refused says why."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from broker_faas.connectors.kafka_parts import sending
from broker_faas.connectors.sink import Outgoing, Undelivered
from broker_faas.connectors.sinks.kafka import KafkaSink
from broker_faas.errors import SinkRefused, SinkUnavailable
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.kafka_server import OwnKafka
from tests.systems.kafka import Topic, admin, event_of, kafka_system, key_of, records, topic_on
from tests.systems.kafka_acls import allow

pytestmark = pytest.mark.timeout(240)  # a broker takes its time to start

LARGE = b"x" * 1_100_000  # more than a topic takes by default


def event(id: object, key: str | None = None, data: bytes | None = b"{}", **attributes: Any) -> CloudEvent:
    return CloudEvent(type="orders.done", source="/p/f", id=str(id), partitionkey=key, data=data, **attributes)


def to(topic: Topic, *events: CloudEvent) -> list[Outgoing]:
    return [Outgoing(topic.name, one) for one in events]


def sink(servers: str, **options: Any) -> KafkaSink:
    return KafkaSink(servers=servers, **options)


async def ids(topic: Topic, n: int) -> list[str]:
    return [event_of(one).id for one in await records(topic.servers, topic.name, n)]


# --- what is written ----------------------------------------------------------------------------------------


async def test_what_is_confirmed_is_there_and_each_key_has_its_order(kafka: str) -> None:
    topic = await topic_on(kafka, 3)
    events = [event(n, f"k{n % 7}" if n % 2 else None) for n in range(1000)]
    async with sink(kafka).open() as open_sink:
        assert await open_sink.send(to(topic, *events)) == [None] * 1000
    found = await records(kafka, topic.name, 1000)
    of_key = defaultdict(list)
    for one in found:
        of_key[key_of(one)].append((one.partition, event_of(one)))

    assert {event.id for event in events} == {event_of(one).id for one in found}
    assert {key: [one for one in events if one.partitionkey == key] for key in of_key if key} == {
        key: [event for _, event in places] for key, places in of_key.items() if key
    }
    assert all(len({partition for partition, _ in places}) == 1 for key, places in of_key.items() if key)


@pytest.mark.parametrize("format", ["binary", "structured"])
@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "snappy", "zstd"])
async def test_events_are_written_as_they_are(kafka: str, format: Any, compression: Any) -> None:
    topic = await topic_on(kafka)
    events = [
        event("é 1%", "ключ", b'{"b": 1,  "a":2}', datacontenttype="application/json", subject="naïve", n=7),
        event(2, None, b"\x00\xff", datacontenttype="application/octet-stream"),
        event(3, "k", None),
        event(4, None, None),
    ]
    async with sink(kafka, format=format, compression=compression).open() as open_sink:
        assert await open_sink.send(to(topic, *events)) == [None] * 4
    found = await records(kafka, topic.name, 4)

    assert [event_of(one) for one in found] == events
    assert [key_of(one) for one in found] == ["ключ", None, "k", None]


async def test_an_event_without_data_is_a_tombstone_where_its_attributes_are_headers(kafka: str) -> None:
    topic = await topic_on(kafka, cleanup_policy="compact")
    async with sink(kafka).open() as open_sink:
        assert await open_sink.send(to(topic, event(1, "k", None))) == [None]
    [found] = await records(kafka, topic.name, 1)

    assert (found.key, found.value) == (b"k", None)


async def test_events_without_a_key_take_turns_among_the_partitions(kafka: str) -> None:
    topic = await topic_on(kafka, 3)
    async with sink(kafka).open() as open_sink:
        for n in range(3):
            await open_sink.send(to(topic, event(n)))

    assert {one.partition for one in await records(kafka, topic.name, 3)} == {0, 1, 2}


# --- what is refused ----------------------------------------------------------------------------------------


async def test_a_topic_that_is_not_there_is_not_made_and_its_neighbours_are_sent(kafka: str) -> None:
    topic = await topic_on(kafka)
    absent = Topic(kafka, f"{topic.name}.done")
    async with sink(kafka).open() as open_sink:
        async with asyncio.timeout(5):
            [refused, done] = await open_sink.send([*to(absent, event(1)), *to(topic, event(2))])
        async with admin(kafka) as client:
            there = await client.list_topics()

        assert refused == Undelivered(
            f"there is no topic '{absent.name}' in Kafka, or this user may not see it: make it, or let this user write to it"
        )
        assert done is None
        assert absent.name not in there
        await made(absent)
        assert await open_sink.send(to(absent, event(1))) == [None]


async def made(topic: Topic) -> None:
    async with admin(topic.servers) as client:
        await client.create_topics([NewTopic(topic.name, 1, 1)])


async def test_a_topic_that_is_deleted_meanwhile_is_missed_and_not_made_again(kafka: str) -> None:
    topic, other = await topic_on(kafka), await topic_on(kafka)
    async with sink(kafka, timeout=4.0).open() as open_sink:
        await open_sink.send(to(topic, event(1)))
        await deleted(topic)
        [refused, done] = await open_sink.send([*to(topic, event(2)), *to(other, event(3))])

        assert refused is not None
        assert "there is no topic" in refused.reason
        assert done is None
        async with admin(kafka) as client:
            assert topic.name not in await client.list_topics()
        assert await open_sink.send(to(other, event(4))) == [None]
    assert await ids(other, 2) == ["3", "4"]


async def deleted(topic: Topic) -> None:
    async with admin(topic.servers) as client:
        await client.delete_topics([topic.name])


@pytest.mark.parametrize("name", ["x" * 250, "__consumer_offsets"])
async def test_what_can_be_no_topic_is_a_dead_letter_at_once(kafka: str, name: str) -> None:
    topic = await topic_on(kafka)
    await topic.commit(0)  # which makes __consumer_offsets
    async with sink(kafka).open() as open_sink:
        [refused, done] = await open_sink.send([*to(Topic(kafka, name), event(1)), *to(topic, event(2))])

    assert refused is not None
    assert not refused.again
    assert done is None


async def test_a_record_that_is_too_large_is_refused_alone(kafka: str) -> None:
    topic = await topic_on(kafka)
    events = [event(1, "a"), event(2, "a", LARGE), event(3, "a"), event(4, "b", LARGE), event(5, "b")]
    async with sink(kafka).open() as open_sink:
        answers = await open_sink.send(to(topic, *events))
        later = await open_sink.send(to(topic, event(6, "a")))

    assert [bool(one) for one in answers] == [False, True, False, True, False]
    assert answers[1] is not None
    assert not answers[1].again
    assert f"bytes is larger than topic '{topic.name}' takes" in answers[1].reason
    assert later == [None]
    assert await ids(topic, 4) == ["1", "3", "5", "6"]


async def test_a_topic_that_takes_only_small_batches_gets_small_ones(kafka: str) -> None:
    topic = await topic_on(kafka, max_message_bytes=10_000)
    events = [event(n, f"k{n % 3}", b"x" * 1000) for n in range(300)]
    async with sink(kafka).open() as open_sink:
        assert await open_sink.send(to(topic, *events)) == [None] * 300
        assert await open_sink.send(to(topic, *events)) == [None] * 300

    assert await ids(topic, 600) == [str(n) for n in range(300)] * 2


async def test_what_a_compacted_topic_does_not_take_is_found_among_its_neighbours(kafka: str) -> None:
    topic = await topic_on(kafka, cleanup_policy="compact")
    events = [event(n, None if n == 5 else f"k{n}") for n in range(20)]
    async with sink(kafka).open() as open_sink:
        answers = await open_sink.send(to(topic, *events))

    assert [n for n, one in enumerate(answers) if one] == [5]
    assert answers[5] is not None
    assert "if it is compacted, the event needs a partitionkey" in answers[5].reason
    assert await ids(topic, 19) == [str(n) for n in range(20) if n != 5]


async def test_behind_an_event_that_comes_again_its_key_waits_and_others_do_not(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large is the refusal of one record that a broker can be brought to; here it counts as one that may be mended."""
    monkeypatch.setattr(sending, "of_a_record", lambda *_: Undelivered("not now"))
    topic = await topic_on(kafka)
    events = [event(1, "a"), event(2, "b", LARGE), event(3, "a"), event(4, "b"), event(5)]
    async with sink(kafka).open() as open_sink:
        answers = await open_sink.send(to(topic, *events))

    assert answers == [None, Undelivered("not now"), None, Undelivered("an earlier event of its key is not delivered yet"), None]
    assert sorted(await ids(topic, 3)) == ["1", "3", "5"]


async def test_rights_are_missed_by_topic_and_a_login_is_refused_without_being_shown(own_kafka: OwnKafka) -> None:
    open_, closed = await topic_on(own_kafka.servers), await topic_on(own_kafka.servers)
    login: dict[str, Any] = {"servers": own_kafka.sasl_servers, "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
    with pytest.raises(SinkRefused, match="Invalid username or password") as raised:
        async with KafkaSink(**login, username="clerk", password="hunter2").open():
            pass

    assert "hunter2" not in str(raised.value)
    clerk = KafkaSink(**login, username="clerk", password="secret")
    with pytest.raises(SinkRefused, match="ClusterAuthorizationFailed"):
        async with clerk.open():
            pass
    await allow(own_kafka.servers, "clerk", open_.name, "write", "describe")
    await allow(own_kafka.servers, "clerk", closed.name, "describe")
    async with clerk.open() as open_sink:
        answers = await open_sink.send([*to(closed, event(1, "k"), event(2, "k")), *to(open_, event(3))])

        assert answers == [Undelivered(f"clerk may not write to topic '{closed.name}' in Kafka: it needs the right Write")] * 2 + [None]
        await allow(own_kafka.servers, "clerk", closed.name, "write")
        assert await open_sink.send(to(closed, event(1, "k"), event(2, "k"))) == [None] * 2
    assert await ids(Topic(own_kafka.servers, closed.name), 2) == ["1", "2"]


# --- what breaks --------------------------------------------------------------------------------------------


async def test_a_producer_that_lost_count_is_left_for_another(kafka: str) -> None:
    topic = await topic_on(kafka)
    one = sink(kafka)
    async with one.open() as open_sink:
        await open_sink.send(to(topic, event(1)))
        [partition] = open_sink._producer._txn_manager._sequence_numbers
        open_sink._producer._txn_manager.increment_sequence_number(partition, 7)
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="OutOfOrderSequenceNumber"):
                await open_sink.send(to(topic, event(2)))
    async with one.open() as open_sink:
        assert await open_sink.send(to(topic, event(2))) == [None]
    assert await ids(topic, 2) == ["1", "2"]


async def test_a_broker_that_does_not_answer_is_not_waited_for_longer_than_asked(kafka: str) -> None:
    """Neither by send() nor by leaving, and nothing goes on behind it."""
    async with kafka_system(kafka) as system:
        topic = Topic(kafka, await system.target())
        before = asyncio.all_tasks()
        loop = asyncio.get_running_loop()
        async with system.sink(timeout=1.0).open() as open_sink:
            assert await open_sink.send(to(topic, event(1))) == [None]
            system._proxy.freeze()
            began = loop.time()
            with pytest.raises(SinkUnavailable, match="Kafka has not confirmed within 1 s"):
                await open_sink.send(to(topic, event(2)))
            assert loop.time() - began < 10
            began = loop.time()
        assert loop.time() - began < 6
        system._proxy.cut()
        system._proxy.thaw()
        async with system.sink(timeout=5.0).open() as open_sink:
            assert await open_sink.send(to(topic, event(2))) == [None]

        async def ended() -> bool:
            return not {task for task in asyncio.all_tasks() - before if "aiokafka" in repr(task)}

        await eventually(ended)


async def test_a_topic_is_not_called_missing_while_nobody_can_be_asked(kafka: str) -> None:
    async with kafka_system(kafka) as system, system.sink(timeout=1.0).open() as open_sink:
        system.away()
        with pytest.raises(SinkUnavailable, match="Kafka does not answer"):
            await open_sink.send(to(Topic(kafka, "not.known"), event(1)))


async def test_an_answer_that_is_lost_repeats_nothing(kafka: str) -> None:
    async with kafka_system(kafka) as system:
        topic = Topic(kafka, await system.target())
        async with system.sink(timeout=20.0).open() as open_sink:
            await open_sink.send(to(topic, event(0)))
            for n in range(1, 4):
                system._proxy.deaf = True
                sent = asyncio.ensure_future(open_sink.send(to(topic, event(n))))
                await records(kafka, topic.name, n + 1)  # it is written, and the sink has not heard of it

                assert not sent.done()
                system._proxy.cut()
                system._proxy.deaf = False
                assert await sent == [None]
    assert await ids(topic, 4) == ["0", "1", "2", "3"]


async def test_refusals_and_cut_connections_together_lose_repeat_and_reorder_nothing(kafka: str) -> None:
    """After a refusal the producer counts anew, while batches of other partitions are sent again under their old numbers."""
    topic = await topic_on(kafka, 4, max_message_bytes=20_000)
    large = b"x" * 30_000
    rounds = [[event(f"{n}.{k}", f"k{k % 11}", large if (n * 7 + k) % 19 == 0 else b"{}") for k in range(60)] for n in range(12)]
    answers: list[Any] = []
    async with kafka_system(kafka) as system:

        async def cut() -> None:
            while True:
                await asyncio.sleep(0.15)
                system._proxy.resets += 1
                await asyncio.sleep(0.15)
                system._proxy.cut()

        async with system.sink(timeout=30.0).open() as open_sink, asyncio.TaskGroup() as tasks:
            cutting = tasks.create_task(cut())
            for events in rounds:
                answers += await open_sink.send(to(topic, *events))
            cutting.cancel()
    sent = [one for events in rounds for one in events]
    found = await records(kafka, topic.name, sum(one.data != large for one in sent))

    assert [one is not None for one in answers] == [one.data == large for one in sent]
    for key in range(11):
        expected = [one.id for one in sent if one.partitionkey == f"k{key}" and one.data != large]
        assert [event_of(one).id for one in found if key_of(one) == f"k{key}"] == expected


async def test_no_broker_is_unavailable(unused_port: int) -> None:
    with pytest.raises(SinkUnavailable, match=r"Kafka at 127\.0\.0\.1:\d+: ConnectionRefusedError"):
        async with sink(f"127.0.0.1:{unused_port}").open():
            pass


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_broker_that_is_killed_amid_events_loses_none_that_it_confirmed(own_kafka: OwnKafka) -> None:
    """The key's order is kept, but for what is there again."""
    topic = await topic_on(own_kafka.servers, 2)
    confirmed: list[str] = []
    enough = asyncio.Event()

    async def send() -> None:
        waiting = [event(n, f"k{n % 5}") for n in range(4000)]
        while waiting:
            try:
                async with sink(own_kafka.servers, timeout=3.0).open() as open_sink:
                    while waiting:
                        batch, rest = waiting[:100], waiting[100:]
                        assert await open_sink.send(to(topic, *batch)) == [None] * len(batch)
                        confirmed.extend(one.id for one in batch)
                        waiting = rest
                        if len(confirmed) > 1000:
                            enough.set()
            except SinkUnavailable:
                await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        await enough.wait()
        await own_kafka.kill()
        await own_kafka.start()
    found = await records(own_kafka.servers, topic.name, 4000)

    assert set(confirmed) == {event_of(one).id for one in found} == {str(n) for n in range(4000)}
    for key in range(5):
        mine = dict.fromkeys(int(event_of(one).id) for one in found if key_of(one) == f"k{key}")
        assert list(mine) == sorted(mine)


async def test_it_ends_though_the_broker_is_gone(own_kafka: OwnKafka) -> None:
    topic = await topic_on(own_kafka.servers)
    loop = asyncio.get_running_loop()
    async with sink(own_kafka.servers, timeout=30.0).open() as open_sink:
        await open_sink.send(to(topic, event(1)))
        await own_kafka.kill()
        sent = asyncio.ensure_future(open_sink.send(to(topic, event(2))))
        await asyncio.sleep(0)
        sent.cancel()
        began = loop.time()

    assert loop.time() - began < 6
