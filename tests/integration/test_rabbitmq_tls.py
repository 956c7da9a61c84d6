"""RabbitMQ over TLS, with a login and a certificate: against a real broker, with what the docs say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests import secured
from tests.certificates import PASSWORD, Certificates
from tests.kafka_server import free_ports
from tests.rabbitmq_server import Rabbit, rabbit_node

pytestmark = pytest.mark.timeout(240)  # a broker takes its time to start


class Broker(NamedTuple):
    rabbit: Rabbit
    tls_port: int
    certificates: Certificates

    def url(self, host: str = "localhost", port: int = 0, password: str = PASSWORD) -> str:
        return f"amqps://shop:{password}@{host}:{port or self.tls_port}/%2F"

    @property
    def mutual(self) -> dict[str, Any]:
        files = {"ca": self.certificates.ca, "cert": self.certificates.client, "cert_key": self.certificates.client_key}
        return {"type": "rabbitmq", "url": self.url()} | files


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """It asks clients for a certificate, and for a login."""
    folder = tmp_path_factory.mktemp("rabbitmq-tls")
    certificates = Certificates(folder / "certificates")
    [port] = free_ports(1)
    tls = {"cacertfile": certificates.ca, "certfile": certificates.server, "keyfile": certificates.server_key, "verify": "verify_peer"}
    settings = [f"ssl_options.{name} = {value}" for name, value in tls.items()]
    settings += ["ssl_options.fail_if_no_peer_cert = true", f"listeners.ssl.1 = 127.0.0.1:{port}"]
    made = rabbit_node(folder / "node", *settings, f"default_user = shop\ndefault_pass = {PASSWORD}")
    made.url = made.url.replace("guest:guest", f"shop:{PASSWORD}")
    try:
        await made.start()
        await made.declare("orders", "returns", secured.TARGET)
        async with made.channel() as channel:
            await channel.exchange_declare("orders", exchange_type="direct", durable=True)
            await channel.queue_bind(secured.TARGET, "orders", secured.TARGET)
        yield Broker(made, port, certificates)
    finally:
        await made.stop()


SOURCE = {"queue": "orders"}


async def test_what_the_docs_say_reads_and_writes(broker: Broker, bus_url: str, tmp_path: Path) -> None:
    await broker.rabbit.send("orders", [b"{}"])
    own = "".join(f'{name} = "{broker.mutual[name]}"\n' for name in ("ca", "cert", "cert_key"))
    tables = secured.documented("rabbitmq.md", "connector") + own + secured.documented("rabbitmq.md", "sink") + own
    await secured.runs(tmp_path / "shop", bus_url, tables, AMQP_URL=broker.url())

    assert await broker.rabbit.ready(secured.TARGET) == 1


def wrongly(broker: Broker, what: str) -> dict[str, Any]:
    files = broker.certificates
    return {
        "not trusted": {**broker.mutual, "ca": files.stranger},
        "wrong name": {**broker.mutual, "url": broker.url("127.0.0.1")},
        "wrong password": {**broker.mutual, "url": broker.url(password=secured.WRONG)},
        "no TLS there": {**broker.mutual, "url": broker.url(port=int(broker.rabbit.url.rpartition(":")[2].partition("/")[0]))},
        "TLS there": {"type": "rabbitmq", "url": broker.url().replace("amqps", "amqp")},
        "no certificate": {"type": "rabbitmq", "url": broker.url(), "ca": files.ca},
        "a stranger's certificate": {**broker.mutual, "cert": files.stranger, "cert_key": files.stranger_key},
        "no file": {**broker.mutual, "ca": "/nowhere.pem"},
        "a key with a password": {**broker.mutual, "cert_key": files.locked_key},
    }[what]


WANTS = "are amqp:// or amqps://, cert and cert_key what this port wants?"


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("not trusted", 78, r"RabbitMQ at localhost:\d+: its certificate is not trusted: .*: ca has to name who signed it"),
        ("wrong name", 78, r"RabbitMQ at 127.0.0.1:\d+: .*is not valid for '127.0.0.1': connect by a name that it has"),
        ("wrong password", 78, r"RabbitMQ at localhost:\d+: ACCESS_REFUSED .*: check user and password in url"),
        ("no TLS there", 78, r"RabbitMQ at localhost:\d+: it speaks no TLS at this port"),
        ("TLS there", 75, rf"RabbitMQ at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("no certificate", 75, rf"RabbitMQ at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("a stranger's certificate", 75, rf"RabbitMQ at localhost:\d+: .*: {re.escape(WANTS)}"),
        ("no file", 78, r"the certificates cannot be read .*: '/nowhere.pem'"),
        ("a key with a password", 78, "the key has a password"),
    ],
)
async def test_what_keeps_it_out_is_told_in_a_line(broker: Broker, tmp_path: Path, what: str, code: int, says: str) -> None:
    options = wrongly(broker, what)

    assert re.search(says, secured.source_says(tmp_path / "shop", code, {**options, **SOURCE}))
    assert re.search(says, await secured.sink_says(tmp_path / "shop", code, options))


@pytest.mark.parametrize("kind", ["connector", "sink"])
def test_a_wrong_password_ends_the_process(broker: Broker, bus_url: str, tmp_path: Path, kind: str) -> None:
    options = wrongly(broker, "wrong password") | (SOURCE if kind == "connector" else {})
    said = secured.ends(tmp_path / "shop", bus_url, kind, options)

    assert re.match(rf"faas: {kind} orders-{kind}: RabbitMQ at localhost:\d+: ACCESS_REFUSED ", said)


async def test_a_port_that_wants_tls_is_tried_again_and_shown(broker: Broker, bus_url: str, tmp_path: Path) -> None:
    clear = wrongly(broker, "TLS there")
    said = await secured.waits(tmp_path / "shop", bus_url, {**clear, **SOURCE}, clear)

    assert [WANTS in one for one in said] == [True, True]
