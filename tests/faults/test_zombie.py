"""A connector that stands still until others have its partitions, and the bus has forgotten its ids: what it does when it wakes."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
import pytest_asyncio

from broker_faas import layout
from broker_faas.buses import store
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.layout import EVENTS
from tests.helpers import eventually
from tests.systems.kafka import Topic, topic_on
from tests.terminal import Faas, Running, project

from .process import state
from .space import HOOK, ROOT

LONG = 60.0
WINDOW = 3.0  # seconds that the bus remembers ids; it takes two minutes as shipped
PATCH = ("broker_faas.layout", "DUPLICATE_WINDOW = 120.0", f"DUPLICATE_WINDOW = {WINDOW}")
CONNECTOR = """
[[connector]]
name = "orders"
type = "kafka"
servers = "{topic.servers}"
topics = ["{topic.name}"]
group = "{topic.group}"
to = "orders"
session_timeout = 6.0
heartbeat_interval = 0.5
rebalance_timeout = 6.0
"""


@pytest_asyncio.fixture
async def topic(kafka: str) -> Topic:
    return await topic_on(kafka, 2)


@pytest_asyncio.fixture
async def bus(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JetStreamBus]:
    monkeypatch.setattr(layout, "DUPLICATE_WINDOW", WINDOW)
    async with NatsBus(bus_url).open() as bus:
        yield bus


class Replicas:
    """Processes of one connector."""

    def __init__(self, folder: Path, url: str, topic: Topic, stack: AsyncExitStack) -> None:
        self._folder = project(folder / "shop", "", toml=CONNECTOR.format(topic=topic))
        self._stack = stack
        patches = folder / "patches.json"
        before = os.environ.get("PYTHON_FAULTS_PATCHES")  # of a mutant
        patches.write_text(json.dumps([PATCH, *(json.loads(Path(before).read_text()) if before else ())]))
        self._faas = Faas(self._folder, NATS_URL=url)
        self._faas.environment |= {"PYTHONPATH": f"{ROOT}:{HOOK}", "PYTHON_FAULTS_PATCHES": str(patches)}

    def start(self, **environment: str) -> Running:
        faas = Faas(self._faas.folder)
        faas.environment = self._faas.environment | environment
        return self._stack.enter_context(faas.running("connect"))

    def stopping(self, point: str, n: int) -> Running:
        """It stops itself, as SIGSTOP does, when it is at that line for the n-th time."""
        crashed = str(self._folder / "stopped")
        return self.start(PYTHON_FAULTS_CRASH_AT=f"{point}:{n}", PYTHON_FAULTS_SIGNAL="SIGSTOP", PYTHON_FAULTS_CRASHED=crashed)


async def stored(bus: JetStreamBus, pattern: str) -> list[bytes]:
    """The data of what lies there, in order."""
    found, seq = [], 1
    while one := await store.stored(bus, EVENTS, next_by_subj=pattern, seq=seq):
        found.append(one.data)
        seq = one.seq + 1
    return found


async def count(bus: JetStreamBus) -> int:
    return sum((await store.subjects(bus, EVENTS, "ev.>")).values())


async def forgotten(bus_url: str, bus: JetStreamBus) -> None:
    """Until the bus has no id any more of what it holds."""
    last = (await store.info(bus, EVENTS))["state"]["last_seq"]
    one = await store.stored(bus, EVENTS, seq=last)
    assert one
    id = dict(layout.header_lines(one.headers))["nats-msg-id"]
    client = await nats.connect(bus_url)

    async def unknown() -> bool:
        # Told to be what no stream permits, it is stored by none, and known to be a duplicate or not.
        said = await client.request("ev.none.-.-", b"", headers={"Nats-Msg-Id": id, "Nats-Rollup": "none"})
        return b'"duplicate"' not in said.data

    await eventually(unknown, 10 * WINDOW)
    await client.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("few", [3, 200])
@pytest.mark.parametrize("where", ["batch-before-write", "pump-read"])
async def test_a_connector_that_stood_still_stores_nothing_twice_sets_nothing_back_and_goes_on(
    topic: Topic, bus: JetStreamBus, bus_url: str, tmp_path: Path, where: str, few: int
) -> None:
    """Its batch is read, and on its way to the bus or about to be, when it stops; it wakes when everything has moved on."""
    async with AsyncExitStack() as stack:
        replicas = Replicas(tmp_path, bus_url, topic, stack)
        zombie = replicas.stopping(where, 2)
        sent = 0

        async def send(n: int) -> None:
            nonlocal sent
            for partition in (0, 1):
                await topic.send([b"%d" % number for number in range(sent + partition, sent + 2 * n, 2)], partition)
            sent += 2 * n

        async def all_there() -> bool:
            return await count(bus) >= sent

        async def noticed() -> bool:
            return "another has stored pos.orders." in zombie.said or await count(bus) > sent

        await send(few)
        await eventually(lambda: count(bus), LONG)
        await send(few)
        await eventually(lambda: state(zombie.process.pid) == "T", LONG)
        other = replicas.start()
        await eventually(all_there, LONG)  # the group has given up on the one that stands still
        await send(few)
        await eventually(all_there, LONG)
        await forgotten(bus_url, bus)

        zombie.process.send_signal(signal.SIGCONT)
        await eventually(noticed, LONG)
        await send(few)
        await eventually(all_there, LONG)
        assert other.stop(signal.SIGTERM) == 0
        await send(few)
        await eventually(all_there, LONG)  # by itself
        assert zombie.stop(signal.SIGTERM) == 0
    events = [int(data) for data in await stored(bus, "ev.>")]
    positions = [[int(data) for data in await stored(bus, f"pos.orders.{topic.name}=2F{partition}")] for partition in (0, 1)]

    assert [] == [number for number, times in Counter(events).items() if times > 1]
    assert sorted(events) == list(range(sent))
    for partition in (0, 1):
        assert positions[partition] == sorted(positions[partition])
        assert positions[partition][-1] == sent // 2 - 1
        assert [number for number in events if number % 2 == partition] == list(range(partition, sent, 2))
