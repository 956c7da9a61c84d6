"""A gateway that dies, stands still, has no bus or no descriptors; its clients send again, as the docs say. LONG=1: for minutes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from broker_faas.codec import BATCH, batch_to_json
from broker_faas.event import CloudEvent

from ..gateways import Answer, Client, stored
from ..helpers import OwnNats, eventually
from ..terminal import project
from .process import Process, rss
from .space import HOOK, ROOT
from .ticking import LONG

pytestmark = pytest.mark.timeout(600)
Own = Callable[..., Awaitable[OwnNats]]
POINTS = ("records-before-write", "records-written", "records-answered", "gateway-stored")
BACK = 15.0  # seconds after which it works again
ROOM = 64 << 20  # bytes of memory that requests in hand may take beside what it begins with


class Accepted(NamedTuple):
    """What a client was told: where the event of this key lies."""

    key: str
    sequences: list[int]


class Load:
    """Clients that send one thing after the other, each with a key and until it is accepted."""

    def __init__(self, http: Client) -> None:
        self._http = http
        self.accepted: list[Accepted] = []
        self.tries = 0

    @asynccontextmanager
    async def running(self, clients: int = 8) -> AsyncIterator[Load]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for n in range(clients):
                tasks.create_task(self._client(n, stop))
            yield self
            stop.set()

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        n = 0
        while not stop.is_set():
            key = f"{number}-{n}"
            await self.insist(key, batch=n % 3 == 2)
            n += 1
            await asyncio.sleep(0.01)

    async def insist(self, key: str, *, batch: bool = False) -> None:
        async def done() -> bool:
            if (await self.send(key, batch=batch)).status == 200:
                return True
            await asyncio.sleep(0.1)
            return False

        await eventually(done, 150)

    async def send(self, key: str, *, batch: bool = False) -> Answer:
        """Status 0: no answer. Each try has ids of its own: the key alone makes them one. batch: so large that the bus gets it as one."""
        self.tries += 1
        headers, body = {"Idempotency-Key": key, "Content-Type": "text/plain"}, key.encode()
        if batch:
            headers["Content-Type"] = BATCH
            body = batch_to_json([CloudEvent(type="t", source="/s", id=f"{self.tries}-{n}", data=f"{key} {n}") for n in range(12)])
        try:
            answer = await self._http.post("t", body, headers)
        except (OSError, TimeoutError):
            return Answer(0, {}, b"")
        if answer.status == 200:
            self.accepted.append(Accepted(key, answer.json["sequences"]))
        return answer

    async def mismatches(self, url: str) -> list[str]:
        """What the bus has beside what was accepted."""
        there = {one.seq: one.data.decode().strip('"').split(" ")[0] for one in await stored(url)}
        told = dict(self.accepted)
        copies = Counter(there.values())
        wrong = [f"{key} was accepted, and is not at {at}" for key, places in self.accepted for at in places if there.get(at) != key]
        wrong += [f"{key} is there {n} times" for key, n in copies.items() if key in told and n != len(told[key])]
        return wrong + [f"{key} was never accepted" for key in copies.keys() - told.keys()]


@asynccontextmanager
async def gateway(folder: Path, url: str, port: int, **env: str) -> AsyncIterator[tuple[Process, Client]]:
    """A process that is kept running."""
    root = project(folder / "shop", "", toml=f"[gateway]\nport = {port}\n")
    environ = os.environ | {"NATS_URL": url, "PYTHONPATH": f"{ROOT}:{HOOK}"} | env

    async def ready() -> None:
        await eventually(lambda: "gateway listens" in process.said(), 60)

    command = [sys.executable, "-m", "broker_faas.cli.main", "gateway"]
    process = Process("gateway", command, environ, root, folder / "gateway.log", ready)
    http = Client(f"http://127.0.0.1:{port}")
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(process.keep())
        await asyncio.wait_for(process.up.wait(), 60)
        yield process, http
        await http.close()
        keeper.cancel()


async def test_a_gateway_that_dies_at_each_line_that_matters_has_accepted_nothing_that_is_not_there_and_nothing_twice(
    bus_url: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    points = (*POINTS, "batch-before-write", "batch-written", "batch-answered") if LONG else POINTS
    crashed = tmp_path / "crashed"
    at = " ".join(f"{point}:{random.randint(5, 40)}" for point in points)
    crash = {"PYTHON_FAULTS_CRASH_AT": at, "PYTHON_FAULTS_CRASHED": str(crashed)}
    crashes: list[str] = []
    async with gateway(tmp_path, bus_url, unused_tcp_port, **crash) as (process, http), Load(http).running() as load:
        for _ in range(2 if LONG else 1):
            await eventually(lambda: crashed.exists() and len(crashed.read_text().splitlines()) == len(points), 20 * len(points))
            crashes += [line.split()[0] for line in crashed.read_text().splitlines()]
            crashed.unlink()
        await asyncio.wait_for(process.up.wait(), 60)
    print(f"{len(crashes)} crashes, {load.tries} tries, {len(load.accepted)} accepted")

    assert {*points} == {*crashes}
    assert process.exits.count((-signal.SIGKILL, False)) >= len(crashes)
    assert load.tries > len(load.accepted) >= 50
    assert [] == await load.mismatches(bus_url)


async def test_a_gateway_that_stood_still_says_nothing_that_is_no_longer_true(bus_url: str, tmp_path: Path, unused_tcp_port: int) -> None:
    """What waited at its port is stored when it thaws, and what its clients have sent again by then is stored once."""
    async with gateway(tmp_path, bus_url, unused_tcp_port) as (process, http):
        load = Load(http)
        assert (await load.send("first")).status == 200
        assert await process.pause() == "stopped"
        patient = [asyncio.create_task(load.send(f"k{n % 10}")) for n in range(20)]  # each key from two clients
        impatient = Client(f"http://{http.host}:{http.port}")
        gone = [await impatient.connect() for _ in range(10)]
        for n, (_, writer) in enumerate(gone):
            writer.write(f"POST /topics/t HTTP/1.1\r\nHost: x\r\nIdempotency-Key: g{n}\r\nContent-Length: 2\r\n\r\ng{n}".encode())
            await writer.drain()
        await asyncio.sleep(30 if LONG else 2)
        await impatient.close()
        process.resume()
        began = time.monotonic()
        answers = await asyncio.gather(*patient)
        await load.insist("last")
        took = time.monotonic() - began
        keys = [*(f"k{n}" for n in range(10)), *(f"g{n}" for n in range(10))]
        for key in keys:
            await load.insist(key)
    print(f"worked again after {took:.1f} s; those that waited heard {Counter(one.status for one in answers)}")

    assert {"first", "last", *keys} == {one.key for one in load.accepted}
    assert [] == await load.mismatches(bus_url)
    assert took < BACK


async def test_without_a_bus_each_request_is_503_within_two_seconds_and_memory_is_bounded(
    own_nats: Own, tmp_path: Path, unused_tcp_port: int
) -> None:
    server = await own_nats()
    told: list[tuple[float, float, int]] = []  # when it was asked, seconds, status
    async with gateway(tmp_path, server.url, unused_tcp_port) as (process, http), Load(http).running(4) as load:
        await eventually(lambda: len(load.accepted) > 20, 30)
        before = most = rss(process.pid)
        await server.kill()
        gone = time.monotonic()
        number = 0

        async def ask(key: str, began: float) -> None:
            answer = await load.send(key)
            told.append((began, time.monotonic() - began, answer.status))

        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() - gone < (60 if LONG else 4):
                number += 1
                tasks.create_task(ask(f"x{number}", time.monotonic()))
                most = max(most, rss(process.pid))
                await asyncio.sleep(0.02)
        await server.start()
        back = time.monotonic()
        await load.insist("last")
        took = time.monotonic() - back
        assert process.starts == 1
    noticed = [(seconds, status) for began, seconds, status in told if began > gone + 1]
    print(f"{len(told)} asked: {Counter(status for _, _, status in told)}; slowest {max(s for _, s, _ in told):.2f} s")
    print(
        f"a second after the end of the bus: {max(s for s, _ in noticed):.2f} s; {(most - before) / 1e6:.1f} MB more; back in {took:.1f} s"
    )
    wrong = await load.mismatches(server.url)

    assert {503} == {status for _, status in noticed}
    assert max(seconds for seconds, _ in noticed) < 2
    assert len(noticed) > 50
    assert took < BACK
    assert most - before < ROOM
    assert [] == [line for line in wrong if not line.endswith("was never accepted")]  # 503 may be stored, and says so


async def test_with_few_descriptors_and_clients_that_take_all_of_them_it_finds_its_bus_again(
    own_nats: Own, tmp_path: Path, unused_tcp_port: int
) -> None:
    server = await own_nats()
    async with gateway(tmp_path, server.url, unused_tcp_port) as (process, http):
        load = Load(http)
        await load.insist("first")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 64))
        async with asyncio.TaskGroup() as tasks:
            greedy = [tasks.create_task(_takes_a_connection(http)) for _ in range(100)]
            await eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 60)
            await server.kill()
            await eventually(lambda: '"bus connection lost' in process.said(), 20)
            await asyncio.sleep(10 if LONG else 2)
            await server.start()
            back = time.monotonic()
            await load.insist("second")
            took = time.monotonic() - back
            print(f"back {took:.1f} s after the bus; {len(os.listdir(f'/proc/{process.pid}/fd'))} descriptors")
            for one in greedy:
                one.cancel()
        await load.insist("third")
        assert process.starts == 1
    said = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]

    assert took < BACK
    assert [] == [line["message"] for line in said if line["level"] == "error"]


async def _takes_a_connection(http: Client) -> None:
    """And begins a request that it never ends; another one whenever that is taken away."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(http.host, http.port)
            try:
                writer.write(b"POST /topics/t HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                while await reader.read(1000):
                    pass
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.01)
