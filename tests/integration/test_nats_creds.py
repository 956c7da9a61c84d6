"""Another NATS that knows its users by .creds files, as a hosted one does: read from and written to; and whom it refuses."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
import pytest_asyncio

from broker_faas.buses.access import Access
from broker_faas.buses.connection import connect
from broker_faas.errors import ConfigError
from tests import secured
from tests.systems.nats_creds import Operator, nats_with


class Server(NamedTuple):
    url: str
    operator: Operator

    def login(self, credentials: str) -> dict[str, Any]:
        return {"type": "nats", "url": self.url, "credentials": credentials}


@pytest_asyncio.fixture
async def server(nats_binary: Path, tmp_path: Path) -> AsyncIterator[Server]:
    operator = Operator()
    async with nats_with(operator, tmp_path / "server") as url:
        yield Server(url, operator)


SOURCE = {"stream": "ORDERS", "consumer": "faas", "create": True}
REFUSED = "NATS refuses these credentials; check user, password, token or the .creds file"


async def test_a_creds_file_reads_and_writes(server: Server, bus_url: str, tmp_path: Path) -> None:
    login = server.login(server.operator.shop.credentials(tmp_path / "shop.creds"))
    client = await nats.connect(server.url, user_credentials=login["credentials"])
    jetstream = client.jetstream()
    await jetstream.add_stream(name="ORDERS", subjects=["orders.>"])
    await jetstream.publish("orders.made", b"{}")
    await secured.runs(tmp_path / "shop", bus_url, secured.table("connector", {**login, **SOURCE}) + secured.table("sink", login))
    delivered = await jetstream.get_last_msg("ORDERS", secured.TARGET)
    await client.close()

    assert delivered.data == b"{}"


@pytest.mark.parametrize("what", ["of another operator", "expired", "without any"])
async def test_who_may_not_in_is_told_so_in_a_line(server: Server, tmp_path: Path, what: str) -> None:
    file = tmp_path / "one.creds"
    match what:
        case "of another operator":
            login = server.login(Operator().shop.credentials(file))
        case "expired":
            login = server.login(server.operator.shop.credentials(file, expires=int(time.time()) - 60))
        case _:
            login = {"type": "nats", "url": server.url}

    assert re.search(REFUSED, secured.source_says(tmp_path / "shop", 78, {**login, **SOURCE}))
    assert re.search(REFUSED, await secured.sink_says(tmp_path / "shop", 78, login))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("BEGIN NATS USER JWT", "BEGIN", "is no .creds file, which has a user's JWT and the seed of its key"),
        ("BEGIN USER NKEY SEED", "BEGIN", "is no .creds file, which has a user's JWT and the seed of its key"),
        ("\nSU", "\nSUA", "its seed is no seed of a key"),
        ("\nSU", "\n", "its seed is no seed of a key"),
    ],
)
async def test_a_file_that_is_no_creds_file_is_named(server: Server, tmp_path: Path, old: str, new: str, says: str) -> None:
    file = tmp_path / "one.creds"
    login = server.login(server.operator.shop.credentials(file))
    file.write_text(file.read_text().replace(old, new))
    said = secured.source_says(tmp_path / "shop", 78, {**login, **SOURCE})

    assert says in said
    assert str(file) in said
    assert says in await secured.sink_says(tmp_path / "shop", 78, login)


async def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)

    with pytest.raises(ConfigError, match=r"a \.creds file needs nkeys, which is not installed: pip install 'broker-faas\[creds\]'"):
        async with connect(["nats://127.0.0.1:1"], "test", Access(credentials="any.creds"), 1):
            pass
