"""Another NATS over TLS with a login: against a real server, with what the docs say. Where TLS was asked for, no password goes without."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
import pytest_asyncio

from broker_faas.buses.access import Access
from broker_faas.buses.connection import connect
from broker_faas.errors import BusRefused
from tests import secured
from tests.certificates import PASSWORD, Certificates
from tests.systems.nats_tls import nats_tls
from tests.terminal import Faas, project


class Server(NamedTuple):
    port: int
    certificates: Certificates

    def url(self, host: str = "localhost", password: str = PASSWORD) -> str:
        return f"tls://shop:{password}@{host}:{self.port}"

    @property
    def login(self) -> dict[str, Any]:
        return {"type": "nats", "url": self.url(), "ca": self.certificates.ca}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(nats_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("nats-tls")
    certificates = Certificates(folder / "certificates")
    async with nats_tls(folder / "server", certificates) as port:
        yield Server(port, certificates)


SOURCE = {"stream": "ORDERS", "consumer": "faas", "create": True}


async def test_what_the_docs_say_reads_and_writes(server: Server, bus_url: str, tmp_path: Path) -> None:
    client = await nats.connect(server.url(), tls=ssl.create_default_context(cafile=server.certificates.ca))
    jetstream = client.jetstream()
    await jetstream.add_stream(name="ORDERS", subjects=["orders.>"])
    await jetstream.publish("orders.made", b"{}")
    ca = f'ca = "{server.certificates.ca}"\n'
    tables = secured.documented("nats.md", "connector") + ca + secured.documented("nats.md", "sink") + ca
    await secured.runs(
        tmp_path / "shop", bus_url, tables.replace("nats.example.com:4222", f"localhost:{server.port}"), ORDERS_PASSWORD=PASSWORD
    )
    delivered = await jetstream.get_last_msg("ORDERS", secured.TARGET)
    client._transport._io_writer.transport.get_protocol()._over_ssl = True  # type: ignore[union-attr]  # nats-py's own leaving warns
    await client.close()

    assert delivered.data == b"{}"


def wrongly(server: Server, plain_url: str, what: str) -> dict[str, Any]:
    return {
        "not trusted": {**server.login, "ca": server.certificates.stranger},
        "wrong name": {**server.login, "url": server.url("127.0.0.1")},
        "wrong password": {**server.login, "url": server.url(password=secured.WRONG)},
        "no TLS there": {**server.login, "url": plain_url.replace("nats://", "tls://")},
        "TLS there": {"type": "nats", "url": server.url().replace("tls://", "nats://")},
        "no file": {**server.login, "ca": "/nowhere.pem"},
    }[what]


CASES = [
    ("not trusted", r"NATS at localhost:\d+: its certificate is not trusted: .*: ca \(or SSL_CERT_FILE\) has to name who signed it"),
    ("wrong name", r"NATS at 127.0.0.1:\d+: .*is not valid for '127.0.0.1': connect by a name that it has"),
    ("wrong password", r"NATS refuses these credentials; check user, password, token or the .creds file"),
    ("no TLS there", r"NATS at 127.0.0.1:\d+: it speaks no TLS, which tls:// asks for"),
    ("TLS there", r"NATS at localhost:\d+: its certificate is not trusted: .*: ca \(or SSL_CERT_FILE\) has to name who signed it"),
    ("no file", r"the certificates cannot be read .*: '/nowhere.pem'"),
]


@pytest.mark.parametrize(("what", "says"), CASES)
async def test_what_keeps_it_out_is_told_in_a_line(server: Server, bus_url: str, tmp_path: Path, what: str, says: str) -> None:
    options = wrongly(server, bus_url, what)

    assert re.search(says, secured.source_says(tmp_path / "shop", 78, {**options, **SOURCE}))
    assert re.search(says, await secured.sink_says(tmp_path / "shop", 78, options))


def test_the_bus_itself_is_trusted_by_the_authorities_of_its_environment(server: Server, tmp_path: Path) -> None:
    folder = project(tmp_path / "shop", "")
    distrusted = Faas(folder, NATS_URL=server.url())("lag", code=78).stderr

    assert re.match(rf"faas: {CASES[0][1]}\n$", distrusted)
    Faas(folder, NATS_URL=server.url(), SSL_CERT_FILE=server.certificates.ca)("lag")


@pytest.mark.parametrize("kind", ["connector", "sink"])
def test_a_wrong_password_ends_the_process(server: Server, bus_url: str, tmp_path: Path, kind: str) -> None:
    options = wrongly(server, bus_url, "wrong password") | (SOURCE if kind == "connector" else {})
    said = secured.ends(tmp_path / "shop", bus_url, kind, options)

    assert said.startswith(f"faas: {kind} orders-{kind}: NATS refuses these credentials")


async def test_a_server_that_offers_no_tls_is_told_nothing() -> None:
    """Who sits in between could say so, too."""
    heard: list[bytes] = []

    async def without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","proto":1,"max_payload":1048576,"auth_required":true}\r\n')
        heard.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(without_tls, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(BusRefused, match="it speaks no TLS, which tls:// asks for"):
            async with connect([f"tls://shop:{PASSWORD}@127.0.0.1:{port}"], "test", Access(), 5):
                pass
        async with asyncio.timeout(10):
            while not heard:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    assert heard == [b""]


async def test_a_server_that_only_offers_tls_is_taken_at_its_word(server: Server, tmp_path: Path) -> None:
    async with nats_tls(tmp_path / "optional", server.certificates, optional=True) as port:
        access = Access(user="shop", password=PASSWORD, ca=server.certificates.ca)
        for scheme, secure in (("tls", True), ("nats", False)):
            async with connect([f"{scheme}://localhost:{port}"], "test", access, 5) as connection:
                writer: asyncio.StreamWriter = connection.client._transport._io_writer  # type: ignore[union-attr]

                assert (writer.get_extra_info("ssl_object") is not None) is secure


async def test_a_server_of_a_cluster_that_is_not_trusted_keeps_nobody_from_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nats.aio.client.shuffle", lambda _: None)
    access = Access(ca=server.certificates.ca)
    async with connect([server.url("127.0.0.1"), server.url()], "test", access, 10) as connection:
        assert await connection.flush()
