"""Kafka over TLS, with a login or a certificate: against a real broker, with what the docs say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from aiokafka.admin import NewTopic

from tests import secured
from tests.certificates import PASSWORD, Certificates
from tests.conftest import kafka_jars
from tests.kafka_server import OwnKafka, running
from tests.systems.kafka import Topic, admin, records

pytestmark = pytest.mark.timeout(240)  # a broker takes its time to start


class Broker(NamedTuple):
    own: OwnKafka
    certificates: Certificates

    @property
    def login(self) -> dict[str, Any]:
        """By SCRAM."""
        options = {"servers": f"localhost:{self.own.sasl_ssl_port}", "security_protocol": "SASL_SSL", "ca_file": self.certificates.ca}
        return options | {"username": "shop", "password": PASSWORD, "type": "kafka"}

    @property
    def mutual(self) -> dict[str, Any]:
        """By certificate."""
        files = {"ca_file": self.certificates.ca, "cert_file": self.certificates.client, "key_file": self.certificates.client_key}
        return {"servers": f"localhost:{self.own.ssl_port}", "security_protocol": "SSL", "type": "kafka"} | files


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    kafka_jars()
    folder = tmp_path_factory.mktemp("kafka-tls")
    certificates = Certificates(folder / "certificates")
    async with running(folder / "broker", certificates=certificates) as own:
        async with admin(own.servers) as client:
            await client.create_topics([NewTopic(name, 1, 1) for name in ("orders", "returns", secured.TARGET)])
        yield Broker(own, certificates)


SOURCE = {"group": "shop", "topics": ["orders"]}


async def test_with_a_login_what_the_docs_say_reads_and_writes(broker: Broker, bus_url: str, tmp_path: Path) -> None:
    ca = f'ca_file = "{broker.certificates.ca}"\n'
    tables = secured.documented("kafka.md", "connector") + ca + secured.documented("kafka.md", "sink") + ca
    tables = re.sub(r'(servers = ").*"', rf'\1localhost:{broker.own.sasl_ssl_port}"', tables)
    await runs(broker, tmp_path, bus_url, tables)


async def test_with_a_certificate_it_reads_and_writes(broker: Broker, bus_url: str, tmp_path: Path) -> None:
    source = {**broker.mutual, **SOURCE, "group": "mutual", "to": "shop.orders"}
    await runs(broker, tmp_path, bus_url, secured.table("connector", source) + secured.table("sink", broker.mutual))


async def runs(broker: Broker, folder: Path, bus_url: str, tables: str) -> None:
    await Topic(broker.own.servers, "orders").send([b"{}"])
    before = len(await records(broker.own.servers, secured.TARGET, 0))
    await secured.runs(folder / "shop", bus_url, tables, KAFKA_PASSWORD=PASSWORD)

    assert len(await records(broker.own.servers, secured.TARGET, before + 1)) == before + 1


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
async def test_other_mechanisms(broker: Broker, tmp_path: Path, mechanism: str) -> None:
    await Topic(broker.own.servers, "returns").send([b"{}"])
    options = {**broker.login, "sasl_mechanism": mechanism}

    assert '"id": "returns/0/0"' in secured.peeks(tmp_path / "shop", {**options, "group": "g", "topics": ["returns"]})
    await secured.delivers(tmp_path / "shop", options)


def wrongly(broker: Broker, what: str) -> dict[str, Any]:
    files = broker.certificates
    stranger = {"cert_file": files.stranger, "key_file": files.stranger_key}
    return {
        "not trusted": {**broker.login, "ca_file": files.stranger},
        "wrong name": {**broker.login, "servers": f"127.0.0.1:{broker.own.sasl_ssl_port}"},
        "wrong password": {**broker.login, "password": secured.WRONG},
        "wrong password, PLAIN": {**broker.login, "password": secured.WRONG, "sasl_mechanism": "PLAIN"},
        "no TLS there": {**broker.login, "servers": broker.own.servers},
        "TLS there": {"type": "kafka", "servers": f"localhost:{broker.own.ssl_port}"},
        "no certificate": {**broker.login, "servers": f"localhost:{broker.own.ssl_port}"},
        "a stranger's certificate": {**broker.mutual, **stranger},
        "no file": {**broker.mutual, "ca_file": "/nowhere.pem"},
        "another key": {**broker.mutual, "key_file": files.server_key},
        "a key with a password": {**broker.mutual, "key_file": files.locked_key},
    }[what]


WANTS = "are security_protocol, cert_file and key_file what this port wants?"


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("not trusted", 78, r"Kafka at localhost:\d+: its certificate is not trusted: .*: ca_file has to name who signed it"),
        ("wrong name", 78, r"Kafka at 127.0.0.1:\d+: .*is not valid for '127.0.0.1': connect by a name that it has"),
        ("wrong password", 78, r"Kafka at localhost:\d+ refuses shop: .*: check username, password and sasl_mechanism"),
        ("wrong password, PLAIN", 78, r"Kafka at localhost:\d+ refuses shop: .*: check username, password and sasl_mechanism"),
        ("no TLS there", 75, rf"Kafka at 127.0.0.1:\d+: .*: {re.escape(WANTS)}"),
        ("TLS there", 75, rf"Kafka at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("no certificate", 75, rf"Kafka at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("a stranger's certificate", 75, rf"Kafka at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("no file", 78, r"the certificates cannot be read .*: '/nowhere.pem'"),
        ("another key", 78, r"the certificates cannot be read .*key values mismatch"),
        ("a key with a password", 78, "the key has a password"),
    ],
)
async def test_what_keeps_it_out_is_told_in_a_line(broker: Broker, tmp_path: Path, what: str, code: int, says: str) -> None:
    options = wrongly(broker, what)

    assert re.search(says, secured.source_says(tmp_path / "shop", code, {**options, **SOURCE}))
    assert re.search(says, await secured.sink_says(tmp_path / "shop", code, options))


@pytest.mark.parametrize("kind", ["connector", "sink"])
def test_a_wrong_password_ends_the_process(broker: Broker, bus_url: str, tmp_path: Path, kind: str) -> None:
    options = {**broker.login, "password": secured.WRONG} | (SOURCE if kind == "connector" else {})
    said = secured.ends(tmp_path / "shop", bus_url, kind, options)

    assert re.match(rf"faas: {kind} orders-{kind}: Kafka at localhost:\d+ refuses shop: ", said)


async def test_a_port_that_wants_tls_is_tried_again_and_shown(broker: Broker, bus_url: str, tmp_path: Path) -> None:
    clear = wrongly(broker, "TLS there")
    said = await secured.waits(tmp_path / "shop", bus_url, {**clear, **SOURCE}, clear)

    assert [WANTS in one for one in said] == [True, True]
