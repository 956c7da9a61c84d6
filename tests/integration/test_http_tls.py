"""Webhooks over HTTPS with a private authority and a certificate of ours: against a real receiver, with what the docs say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import secured
from tests.certificates import Certificates
from tests.systems.http import HttpSystem, http_system

TOKEN, SECRET = "t0ken-of-shop", "whsec_" + "c2VjcmV0" * 4


class Receiver(NamedTuple):
    system: HttpSystem
    certificates: Certificates

    @property
    def mutual(self) -> dict[str, Any]:
        files = {"ca_file": self.certificates.ca, "cert_file": self.certificates.client, "key_file": self.certificates.client_key}
        return {"type": "http", "url": f"https://localhost:{self.system.port}/events/{{target}}"} | files


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """It asks clients for a certificate."""
    folder = tmp_path_factory.mktemp("http-tls")
    certificates = Certificates(folder / "certificates")
    with http_system(folder / "receiver", certificates.server, certificates.server_key, certificates.ca) as system:
        yield Receiver(system, certificates)


async def test_what_the_docs_say_delivers(receiver: Receiver, bus_url: str, tmp_path: Path) -> None:
    table = secured.documented("http.md", "sink").replace("shop.example.com", f"localhost:{receiver.system.port}")
    table += "".join(f'{name} = "{receiver.mutual[name]}"\n' for name in ("ca_file", "cert_file", "key_file"))
    await secured.runs(tmp_path / "shop", bus_url, table, SHOP_TOKEN=TOKEN, SHOP_WEBHOOK_SECRET=SECRET)
    [request] = receiver.system.requests(secured.TARGET)

    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "webhook-signature" in request.headers


def wrongly(receiver: Receiver, what: str) -> dict[str, Any]:
    files, url = receiver.certificates, receiver.mutual["url"]
    return {
        "not trusted": {**receiver.mutual, "ca_file": files.stranger},
        "wrong name": {**receiver.mutual, "url": url.replace("localhost", "127.0.0.1")},
        "TLS there": {"type": "http", "url": url.replace("https", "http")},
        "no certificate": {"type": "http", "url": url, "ca_file": files.ca},
        "a stranger's certificate": {**receiver.mutual, "cert_file": files.stranger, "key_file": files.stranger_key},
        "no file": {**receiver.mutual, "ca_file": "/nowhere.pem"},
        "a key with a password": {**receiver.mutual, "key_file": files.locked_key},
    }[what]


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("not trusted", 78, r"localhost:\d+ cannot be connected to: its certificate is not trusted: .*: ca_file has to name who signed it"),
        ("wrong name", 78, r"127.0.0.1:\d+ cannot be connected to: .*is not valid for '127.0.0.1': connect by a name that it has"),
        ("TLS there", 75, r"localhost:\d+ did not answer: .*: are http or https, and cert_file, what this port wants\?"),
        ("no certificate", 75, r"localhost:\d+ did not answer: .*: are http or https, and cert_file, what this port wants\?"),
        ("a stranger's certificate", 75, r"localhost:\d+ did not answer: .*: are http or https, and cert_file, what this port wants\?"),
        ("no file", 78, r"the certificates cannot be read .*: '/nowhere.pem'"),
        ("a key with a password", 78, "the key has a password"),
    ],
)
async def test_what_keeps_it_out_is_told_in_a_line(receiver: Receiver, tmp_path: Path, what: str, code: int, says: str) -> None:
    said = await secured.sink_says(tmp_path / "shop", code, wrongly(receiver, what))

    assert re.search(says, said)


def test_a_certificate_that_is_not_trusted_ends_the_process(receiver: Receiver, bus_url: str, tmp_path: Path) -> None:
    said = secured.ends(tmp_path / "shop", bus_url, "sink", {**wrongly(receiver, "not trusted"), "token": TOKEN, "secret": SECRET})

    assert said.startswith("faas: sink orders-sink: localhost:")
    assert TOKEN not in said
    assert SECRET not in said
