"""Real servers for tests: one that all share, each test in an account of its own; and private ones to break."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio

from broker_faas.embedded import EmbeddedNats, Server, wheel_binary
from broker_faas.errors import ConfigError

from . import kafka_server
from .helpers import OwnNats
from .rabbitmq_server import own_rabbitmq as own_rabbitmq
from .rabbitmq_server import rabbitmq as rabbitmq

ACCOUNTS = 100


@pytest.fixture(scope="session", autouse=True)
def _can_be_interrupted() -> None:
    """A shell's background job has SIGINT ignored, and so would every process that a test starts and then interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nats_binary() -> Path:
    """The real nats-server. Missing: a skip at home, a failure in CI."""
    try:
        return wheel_binary()
    except ConfigError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"NO REAL SERVER, NOT TESTED: {error}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_server(nats_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """The server that all tests share. Do not kill it: take `own_nats`."""
    folder = tmp_path_factory.mktemp("nats") / ".faas"
    async with EmbeddedNats(folder, accounts=ACCOUNTS, max_bytes=100 << 30).open() as server:
        yield server


@pytest.fixture(scope="session")
def _accounts(nats_server: Server) -> Iterator[str]:
    return cycle(nats_server.urls)


@pytest_asyncio.fixture
async def bus_url(_accounts: Iterator[str]) -> AsyncIterator[str]:
    """The url of an empty account on the shared server: streams have fixed names, and no test sees another's."""
    url = next(_accounts)
    yield url
    client = await nats.connect(url)
    jetstream = client.jetstream()
    for name in [stream.config.name for stream in await jetstream.streams_info()]:
        await jetstream.delete_stream(str(name))
    await client.close()


@pytest_asyncio.fixture
async def own_nats(nats_binary: Path, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[OwnNats]]]:
    """`await own_nats(**options of EmbeddedNats)` -> a started OwnNats; any number of them; all are stopped after the test."""
    started: list[OwnNats] = []

    async def start(**options: Any) -> OwnNats:
        own = OwnNats(EmbeddedNats(**({"folder": tmp_path / f"nats-{len(started)}"} | options)))
        started.append(own)
        await own.start()
        return own

    try:
        yield start
    finally:
        for own in started:
            await own.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """`host:port` of the Kafka that all tests share; each names topics and groups of its own. KAFKA_BOOTSTRAP_SERVERS: another one."""
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
        return
    kafka_jars()
    async with kafka_server.running(tmp_path_factory.mktemp("kafka") / "broker") as broker:
        yield broker.servers


@pytest_asyncio.fixture
async def own_kafka(tmp_path: Path) -> AsyncIterator[kafka_server.OwnKafka]:
    """A started broker to break."""
    kafka_jars()
    async with kafka_server.running(tmp_path / "kafka") as broker:
        yield broker


@pytest_asyncio.fixture
async def three_kafkas(tmp_path: Path) -> AsyncIterator[Sequence[kafka_server.OwnKafka]]:
    """A cluster to break."""
    kafka_jars()
    async with kafka_server.three(tmp_path / "kafkas") as brokers:
        yield brokers


@pytest.fixture(scope="session")
def kcat() -> str:
    """Path of a client of Kafka that is not ours."""
    if path := shutil.which("kcat") or shutil.which("kafkacat"):
        return path
    missing = "there is no kcat: tools/test-servers, or apt-get install kcat"
    if os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(f"NO REAL CLIENT, NOT TESTED: {missing}")


def kafka_jars() -> None:
    try:
        kafka_server.jars()
    except kafka_server.Missing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"NO REAL SERVER, NOT TESTED: {error}")
