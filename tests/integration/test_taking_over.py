"""docs/connectors/coming-from-your-own-consumer.md: what it tells a reader to type, and what it says of RabbitMQ and NATS, is true."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from aiokafka.admin import NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiormq.abc import DeliveredMessage
from nats.js.api import ConsumerConfig

from broker_faas.buses.nats import NatsBus
from broker_faas.buses.reading import read
from broker_faas.buses.store import position
from broker_faas.connectors.batch import Route
from broker_faas.connectors.kafka_parts.offsets import OURS
from broker_faas.connectors.nats import NatsConnector
from broker_faas.connectors.pump import Connector, Pump
from broker_faas.connectors.rabbitmq import RabbitmqConnector
from broker_faas.event import CloudEvent
from tests.helpers import eventually
from tests.markdown import ROOT, Block, blocks
from tests.rabbitmq_server import Rabbit
from tests.systems.kafka import Topic, admin
from tests.typist import Typist

PAGE = ROOT / "docs/connectors/coming-from-your-own-consumer.md"
PARTITIONS = range(4)
LONG = 60.0
pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("nats_binary")]


@pytest_asyncio.fixture
async def orders(kafka: str) -> Topic:
    """The topic and the group of the page."""
    async with admin(kafka) as client:
        if "orders" in await client.list_topics():  # of somebody's own server; its group's offsets go with it
            await client.delete_topics(["orders"])
        await client.create_topics([NewTopic("orders", len(PARTITIONS), 1)])
    topic = Topic(kafka, "orders")
    topic.group = "orders-svc"
    return topic


async def test_a_group_is_taken_over_rolled_back_and_taken_over_again(orders: Topic, bus_url: str, tmp_path: Path) -> None:
    """Offsets of each partition, by who handled them: 0-24 the old consumer, 25-34 the function, 35-44 the old one, 45-54 the function."""
    typist = Typist(tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": orders.servers, "NATS_URL": bus_url, "COLUMNS": "200"})
    await produce(orders, 25)
    with typist.at_work():
        typist.type(section("What you have"))
        await until_committed(orders, 25)
        first = handled(typist.printed(0))
    await produce(orders, 10)
    typist.type(section("The same as a function"))
    typist.type(section("Dry run"))
    with typist.at_work():
        typist.type(section("Take over"))
        await until_committed(orders, 35)
        second = handled(typist.printed(0))
    await produce(orders, 10)
    with typist.at_work():
        typist.type(section("Roll back"))
        await until_committed(orders, 45)
        third = handled(typist.printed(0))
    await produce(orders, 10)
    with typist.at_work():
        typist.type(block for block in section("Take over") if "background" in block.words and block.language == "sh")
        await until_committed(orders, 55)
        await eventually(lambda: len(handled(typist.printed(0))) >= 40, LONG)
        fourth = handled(typist.printed(0))

    assert [offsets(0, 25), offsets(25, 35), offsets(35, 45), offsets(45, 55)] == [sorted(by) for by in (first, second, third, fourth)]


async def test_what_was_handled_and_not_committed_comes_again_and_nothing_else(orders: Topic, bus_url: str, tmp_path: Path) -> None:
    """Both ways: the old consumer was killed before it had committed its last ten, and so was the connector."""
    typist = Typist(tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": orders.servers, "NATS_URL": bus_url})
    files = [block for block in blocks(PAGE) if block.words and block.words[0] in ("faas.toml", "functions.py", "consumer.py")]
    await produce(orders, 25)
    for partition in PARTITIONS:
        await orders.commit(15, partition)  # the old consumer has handled 25
    typist.type([*files, Block("sh", (), "faas functions sync", 0)])
    with typist.at_work():
        typist.type([*background("faas worker"), *background("faas connect")])
        await until_committed(orders, 25)
        await eventually(lambda: len(handled(typist.printed(0))) >= 40, LONG)
        ours = handled(typist.printed(0))
    for partition in PARTITIONS:
        await orders.commit((20, OURS), partition)  # type: ignore[arg-type]  # as when it is killed between storing and committing
    await produce(orders, 5)
    with typist.at_work():
        typist.type(background("python consumer.py"))
        await until_committed(orders, 30)
        theirs = handled(typist.printed(0))

    assert sorted(ours) == offsets(15, 25)
    assert sorted(theirs) == offsets(20, 30)


async def test_a_member_that_hands_out_partitions_in_another_way_keeps_the_connector_out(
    orders: Topic, bus_url: str, tmp_path: Path
) -> None:
    typist = Typist(tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": orders.servers, "NATS_URL": bus_url})
    code = next(block for block in blocks(PAGE) if "consumer.py" in block.words).text
    assert "import AIOKafkaConsumer\n" in code
    ranged = code.replace('group_id="', 'partition_assignment_strategy=[RangePartitionAssignor], group_id="').replace(
        "import AIOKafkaConsumer\n",
        "import AIOKafkaConsumer\nfrom aiokafka.coordinator.assignors.range import RangePartitionAssignor\n",
    )
    await produce(orders, 1)
    files = [block for block in blocks(PAGE) if block.words and block.words[0] in ("faas.toml", "functions.py")]
    with typist.at_work():
        typist.type([Block("python", ("consumer.py",), ranged, 0), *files, *background("python consumer.py")])
        await until_committed(orders, 1)
        said = "code=0; faas connect >said 2>&1 || code=$?; grep '^faas:' said; echo exit code $code"  # among lines of the log
        expected = "faas: connector orders: …InconsistentGroupProtocolError…\nexit code 78\n"
        typist.type([Block("sh", (), said, 0), Block("text", (), expected, 0)])


async def produce(orders: Topic, n: int) -> None:
    for partition in PARTITIONS:
        await orders.send([b'{"item": "apple"}'] * n, partition, key=b"ada")


async def until_committed(orders: Topic, offset: int) -> None:
    async def all_are() -> bool:
        try:
            committed = await orders.committed()
        except GroupCoordinatorNotAvailableError:  # a broker makes its place for groups when the first one comes
            return False
        return dict.fromkeys(PARTITIONS, offset) == {n: one.offset for n, one in committed.items()}

    await eventually(all_are, LONG)


def handled(printed: str) -> list[str]:
    return re.findall(r"handled (orders/\d+/\d+)", printed)


def offsets(first: int, end: int) -> list[str]:
    return sorted(f"orders/{partition}/{offset}" for partition in PARTITIONS for offset in range(first, end))


def section(title: str) -> list[Block]:
    lines = PAGE.read_text().splitlines()
    begin = lines.index(f"## {title}") + 1
    end = next(n for n, line in enumerate([*lines[begin:], "## "], begin) if line.startswith("## "))
    return [block for block in blocks(PAGE) if begin < block.line <= end]


def background(command: str) -> list[Block]:
    return [next(block for block in blocks(PAGE) if (block.text, block.words) == (f"{command}\n", ("background",)))]


# --- RabbitMQ, NATS -----------------------------------------------------------------------------------------


async def test_a_queue_is_shared_with_the_old_consumer_and_what_it_held_comes_to_the_connector(rabbitmq: Rabbit, bus_url: str) -> None:
    await rabbitmq.declare("old-mails")
    got: list[DeliveredMessage] = []
    enough = asyncio.Event()

    async def take(message: DeliveredMessage) -> None:
        got.append(message)
        if len(got) <= 50:
            await message.channel.basic_ack(message.delivery_tag or 0)
        if len(got) == 60:
            enough.set()

    async with rabbitmq.channel() as old:
        await old.basic_qos(prefetch_count=10)
        await old.basic_consume("old-mails", take)
        await rabbitmq.send("old-mails", [b"%d" % n for n in range(60)])
        async with asyncio.timeout(LONG):
            await enough.wait()  # 50 are acknowledged, and 10 in its hands
        async with connecting(RabbitmqConnector(url=rabbitmq.url, queue="old-mails", prefetch=10), bus_url):
            await rabbitmq.send("old-mails", [b"%d" % n for n in range(60, 100)])
            beside = await until_stored(bus_url, 40)
            await old.close()
            stored = await until_stored(bus_url, 50)

    assert sorted(beside) == list(range(60, 100))
    assert sorted(stored) == list(range(50, 100))
    assert [number(one.body) for one in got[50:]] == stored[40:]
    assert len(got) == 60


async def test_a_durable_goes_on_behind_what_the_old_consumer_acknowledged(bus_url: str, mails_url: str) -> None:
    client = await nats.connect(mails_url)
    old = await client.jetstream().pull_subscribe("mails", "old", "MAILS", config=ConsumerConfig(ack_wait=1.0))
    for n, message in enumerate(await old.fetch(50)):
        if n < 40:
            await message.ack_sync()
    await client.close()
    async with connecting(NatsConnector(url=mails_url, stream="MAILS", consumer="old"), bus_url):
        stored = await until_stored(bus_url, 60)

    assert Counter(stored) == Counter(range(40, 100))


@pytest_asyncio.fixture
async def mails_url(_accounts: Iterator[str]) -> AsyncIterator[str]:
    """Another account on the shared server, with a stream `MAILS` of a hundred messages."""
    url = next(_accounts)
    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="MAILS", subjects=["mails"])
    for n in range(100):
        await jetstream.publish("mails", b"%d" % n)
    yield url
    await jetstream.delete_stream("MAILS")
    await client.close()


@asynccontextmanager
async def connecting(connector: Connector, bus_url: str) -> AsyncIterator[None]:
    """The connector runs, to the topic `mails`."""

    stop = asyncio.Event()
    async with NatsBus(bus_url).open() as bus, asyncio.TaskGroup() as tasks:
        pump = Pump(connector, Route(name="mails", source="/shop/mails", to="mails"), bus, partial(position, bus, "mails"))
        tasks.create_task(pump.run(stop))
        try:
            yield
        finally:
            stop.set()


async def until_stored(url: str, n: int) -> list[int]:
    """The numbers that are stored, in their order: `n` of them, and no more."""
    found: list[int] = []

    async def there() -> bool:
        async with NatsBus(url).open() as bus:
            stored = [CloudEvent.from_headers(one.headers, one.data) async for one in read(bus.connection, "events", ["ev.mails.>"])]
        found[:] = numbers(event.data for event in stored)
        return len(found) >= n

    await eventually(there, LONG)
    assert len(found) == n
    return found


def numbers(bodies: Iterable[bytes | None]) -> list[int]:
    return [number(body) for body in bodies]


def number(body: bytes | None) -> int:
    return int(body or b"-1")
