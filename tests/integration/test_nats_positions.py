"""Positions that follow the one that is known, on a real server, and on three: what is checked, in which order, and what is stored."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from broker_faas.bus import Position, Record
from broker_faas.buses import store
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.buses.records import DRY, ROLLUP, frame, verdict
from broker_faas.errors import BusError, EventTooLarge, Overtaken
from broker_faas.layout import EVENTS, MAX_STORED
from tests.helpers import eventually

from .test_nats_bus import OwnServer, committed, noted_writes, record

POSITION = "pos.c.orders"


def position(at: int, after: int) -> Record:
    return Record(POSITION, f"{POSITION}:{at}:{after}", b"", b"%d" % at)


async def test_a_dry_run_says_what_is_stored_and_what_would_be_and_stores_nothing(bus_url: str) -> None:
    """The server looks for the duplicate before it refuses what no stream permits; nothing says so but this."""
    async with NatsBus(bus_url).open() as bus:
        await bus.publish([record(1)])
        said = []
        for one in (record(1), record(2), record(2), record(3)._replace(data=b"x" * MAX_STORED)):
            async with bus.connection.expect([one.subject]) as replies:
                bus.connection.write(frame(one, f"{replies.prefix}0", DRY))
                await replies.wait(5)
            assert replies.answers[0]
            said.append(verdict(*replies.answers[0]))
        lying = (await store.info(bus, EVENTS))["state"]["messages"]

        assert [(one.code, one.duplicate, one.sequence) for one in said[:3]] == [(0, True, 1), (ROLLUP, False, 0), (ROLLUP, False, 0)]
        assert said[3].code == 10054
        assert lying == 1


async def test_events_with_a_position_are_one_batch_and_no_other_call_is_cut_into_it(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few or many, and more bytes than other batches have."""
    large = [record(n)._replace(data=b"x" * (1 << 20)) for n in range(2000, 2010)]
    async with NatsBus(bus_url).open() as bus:
        writes = noted_writes(bus, monkeypatch)
        last = {POSITION: 0}
        await bus.publish([record(0), position(0, 0)], last=last)
        await asyncio.gather(
            bus.publish([record(n) for n in range(1, 700)]),
            bus.publish([*(record(n) for n in range(700, 1600)), position(1, last[POSITION])], last=last),
        )
        await bus.publish([*large, position(2, last[POSITION])], last=last)

    assert committed(writes) == [2, 699, 901, 11]


async def test_a_call_of_more_than_one_batch_that_was_overtaken_stores_no_part(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        await bus.publish([position(0, 0)], last={POSITION: 0})
        with pytest.raises(Overtaken):
            await bus.publish([*(record(n) for n in range(2500)), position(1, 0)], last={POSITION: 0})

        assert (await store.info(bus, EVENTS))["state"]["messages"] == 1


async def test_a_position_is_followed_though_those_before_it_were_freed(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        last = {POSITION: 0}
        for n in range(3):
            await bus.publish([record(n), position(n, last[POSITION])], last=last)
        await store.purge(bus, EVENTS, POSITION, last[POSITION])
        await store.purge(bus, EVENTS, "ev.>")
        await bus.publish([record(3), position(3, last[POSITION])], last=last)

        assert await store.position(bus, "c", "orders") == Position("3", 8)
        await store.purge(bus, EVENTS, POSITION)
        with pytest.raises(Overtaken):
            await bus.publish([record(4), position(4, last[POSITION])], last=last)
        assert await store.position(bus, "c", "orders") == Position(None, 0)
        await bus.publish([record(4), position(4, 0)], last={POSITION: 0})


async def test_a_record_that_is_not_permitted_or_too_large_is_named_though_it_goes_with_a_position(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        config = (await store.info(bus, EVENTS))["config"] | {"max_msg_size": 2000}
        await bus.api(f"STREAM.UPDATE.{EVENTS}", config)
        with pytest.raises(EventTooLarge, match=r"ev\.orders\.created"):
            await bus.publish([record(1), record(2)._replace(data=b"x" * 4000), position(1, 0)], last={POSITION: 0})

        assert (await store.info(bus, EVENTS))["state"]["messages"] == 0


async def test_a_server_that_dies_with_a_position_on_its_way_stores_it_once(own_nats: OwnServer) -> None:
    own = await own_nats()
    async with NatsBus(own.url, try_timeout=0.5).open() as bus:
        last = {POSITION: 0}
        for n in range(5):
            publishing = asyncio.ensure_future(
                bus.publish([*(record(1000 * n + i) for i in range(200)), position(n, last[POSITION])], last=last)
            )
            await asyncio.sleep(0.002 * n)
            await own.kill()
            await own.start()
            await publishing
        state = (await store.info(bus, EVENTS))["state"]

        assert state["messages"] == 5 * 201
        assert await store.position(bus, "c", "orders") == Position("4", last[POSITION])


# --- three servers ------------------------------------------------------------------------------------------


class Three:
    """url: of all of them. leader(): the number of the one that leads the stream of events."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self._clients, self._routes = free_ports(3), free_ports(3)
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self._clients)

    async def start(self, number: int) -> None:
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self._routes)
        config = self._folder / f"{number}.conf"
        config.write_text(
            f"server_name: n{number}\nlisten: 127.0.0.1:{self._clients[number]}\nmax_payload: 1180000\n"
            f'jetstream {{ store_dir: "{self._folder / str(number)}", sync_interval: always }}\n'
            f"cluster {{ name: c, listen: 127.0.0.1:{self._routes[number]}, routes: [{routes}] }}\n"
        )
        with open(self._folder / f"{number}.log", "ab") as log:
            self._processes[number] = await asyncio.create_subprocess_exec(self._binary, "-c", config, stdout=log, stderr=log)

    async def kill(self, number: int) -> None:
        self._processes[number].kill()
        await self._processes.pop(number).wait()

    async def stop(self) -> None:
        for number in [*self._processes]:
            await self.kill(number)

    @staticmethod
    async def leader(bus: JetStreamBus) -> int:
        return int((await store.info(bus, EVENTS))["cluster"]["leader"][1:])


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest_asyncio.fixture
async def three(nats_binary: Path, tmp_path: Path) -> AsyncIterator[Three]:
    cluster = Three(nats_binary, tmp_path)
    try:
        for number in range(3):
            await cluster.start(number)
        yield cluster
    finally:
        await cluster.stop()


@asynccontextmanager
async def opened(three: Three) -> AsyncIterator[JetStreamBus]:
    """When the three have found each other."""
    async with AsyncExitStack() as stack:

        async def there() -> JetStreamBus | None:
            try:
                return await stack.enter_async_context(NatsBus(three.url, replicas=3, max_bytes=1 << 28, try_timeout=1.0).open())
            except BusError:
                return None

        yield await eventually(there, 60)


@pytest.mark.timeout(120)
async def test_three_servers_keep_out_who_was_overtaken_and_know_what_is_their_own(three: Three) -> None:
    async with opened(three) as bus:
        last, behind = {POSITION: 0}, {POSITION: 0}
        outcomes = await asyncio.gather(
            *(bus.publish([*(record(100 * n + i) for i in range(30)), position(n, 0)], last={POSITION: 0}) for n in range(4)),
            return_exceptions=True,
        )
        assert [type(one) for one in outcomes].count(Overtaken) == 3
        last[POSITION] = (await store.position(bus, "c", "orders")).sequence
        await bus.publish([record(1000), record(1001), position(9, last[POSITION])], last=last)
        with pytest.raises(Overtaken):
            await bus.publish([record(1002), position(5, behind[POSITION])], last=behind)
        again = {POSITION: 31}
        assert await bus.publish([record(1000), record(1001), position(9, 31)], last=again) == 3
        assert (last, again) == ({POSITION: 34}, {POSITION: 34})
        assert await bus.publish([record(1001), record(1003), position(10, 34)], last=last) == 1
        assert last == {POSITION: 36}


@pytest.mark.timeout(120)
async def test_three_servers_whose_leader_dies_with_a_position_on_its_way_store_it_once(three: Three) -> None:
    async with opened(three) as bus:
        last = {POSITION: 0}
        for n in range(2):
            leader = await eventually(lambda: led(bus), 30)
            publishing = asyncio.ensure_future(
                bus.publish([*(record(100 * n + i) for i in range(50)), position(n, last[POSITION])], last=last)
            )
            await asyncio.sleep(0.003 * n)
            await three.kill(leader - 1)
            await publishing
            await three.start(leader - 1)
        state = (await store.info(bus, EVENTS))["state"]

        assert state["messages"] == 2 * 51
        assert await store.position(bus, "c", "orders") == Position("1", last[POSITION])


async def led(bus: JetStreamBus) -> int | None:
    """One more than the number of the leader; None: there is none, or nobody tells."""
    try:
        return await Three.leader(bus) + 1
    except (BusError, KeyError):
        return None
