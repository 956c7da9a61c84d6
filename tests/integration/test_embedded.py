"""The embedded server: private, durable, one a folder, and gone with its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nats
import nats.js.errors
import pytest

from broker_faas.embedded import EmbeddedNats, Server, find_running
from broker_faas.errors import BusUnavailable, ConfigError
from tests.helpers import OwnNats, eventually

pytestmark = pytest.mark.usefixtures("nats_binary")
StartNats = Callable[..., Awaitable[OwnNats]]

PARENT = """
import asyncio, sys
from pathlib import Path
from broker_faas.embedded import EmbeddedNats

async def main():
    async with EmbeddedNats(Path(sys.argv[1])).open() as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def start_parent(folder: Path) -> tuple[asyncio.subprocess.Process, int]:
    """A process that runs a server on `folder`; and the server's pid."""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(folder), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    return parent, int(await parent.stdout.readline())


def monitor(server: Server, page: str) -> Any:
    with urllib.request.urlopen(f"{server.monitor_url}/{page}") as answer:
        return json.load(answer)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# --- what it is ---------------------------------------------------------------------------------------------


async def test_server_syncs_every_write_and_takes_what_an_event_may_weigh(own_nats: StartNats) -> None:
    own = await own_nats(max_bytes=1 << 30)
    config, limits = monitor(own.server, "jsz")["config"], monitor(own.server, "varz")

    assert config["sync_always"] is True
    assert config["max_storage"] == own.server.max_bytes == 1 << 30
    assert limits["max_payload"] == 1_180_000


async def test_whatever_it_writes_is_the_owners_alone(own_nats: StartNats) -> None:
    before = os.umask(0)
    try:
        own = await own_nats()
    finally:
        os.umask(before)
    await store(own.url)
    folder = own.options.folder
    open_to_others = [path for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]

    assert open_to_others == []
    assert {"nats.conf", "identity.json", "server.json", "server.log", "js"} <= {path.name for path in folder.iterdir()}


async def test_it_listens_on_loopback_only_and_wants_the_password(own_nats: StartNats) -> None:
    own = await own_nats()
    inodes = {os.readlink(link) for link in Path(f"/proc/{own.server.pid}/fd").iterdir()}
    table = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {row[1].split(":")[0] for row in table if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}

    assert listening == {f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}"}
    reader, writer = await asyncio.open_connection("127.0.0.1", own.server.port)
    writer.write(b"CONNECT {}\r\nPING\r\n")
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b"-ERR 'Authorization Violation'" in said


async def test_accounts_do_not_see_each_other(own_nats: StartNats) -> None:
    own = await own_nats(accounts=2)
    one, two = own.server.urls
    await store(one)

    assert (await stored(one), await stored(two)) == (1, None)


async def test_store_leaves_30_percent_of_the_volume_and_keeps_its_size_while_it_fills(
    tmp_path: Path, own_nats: StartNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(size: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size))

    free(1 << 30)
    own = await own_nats()
    sizes = [own.server.max_bytes]
    await own.stop()
    free(100 << 20)
    await own.start()
    sizes.append(own.server.max_bytes)

    assert sizes == [int((1 << 30) * 0.7)] * 2
    free(50 << 20)
    with pytest.raises(ConfigError, match="Free some space"):
        await own_nats(folder=tmp_path / "full")


# --- its life -----------------------------------------------------------------------------------------------


async def test_restart_keeps_data_url_and_size(own_nats: StartNats) -> None:
    own = await own_nats()
    await store(own.url)
    before = own.server
    await own.stop()
    await own.start()

    assert (own.url, own.server.max_bytes) == (before.url, before.max_bytes)
    assert await stored(own.url) == 1


async def test_killed_server_is_noticed_and_comes_back_with_its_data(own_nats: StartNats) -> None:
    own = await own_nats()
    await store(own.url)
    os.kill(own.server.pid, signal.SIGKILL)

    assert await own.server.exited() == -signal.SIGKILL
    assert find_running(own.options.folder) is None
    await own.stop()
    await own.start()
    assert await stored(own.url) == 1


async def test_server_dies_with_a_killed_parent_and_the_next_one_starts(tmp_path: Path) -> None:
    folder = tmp_path / ".faas"
    parent, pid = await start_parent(folder)

    assert find_running(folder)
    parent.kill()
    await parent.wait()
    await eventually(lambda: is_gone(pid) and find_running(folder) is None, timeout=2)
    async with EmbeddedNats(folder).open() as server:
        assert find_running(folder) == server.url


async def test_ctrl_c_reaches_the_parent_alone(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole foreground group; the worker still needs its bus for draining."""
    parent, pid = await start_parent(tmp_path / ".faas")
    groups = os.getpgid(parent.pid), os.getpgid(pid)
    parent.kill()
    await parent.wait()

    assert groups[0] != groups[1]


async def test_second_start_on_a_folder_is_refused_and_the_first_is_found(own_nats: StartNats) -> None:
    own = await own_nats()

    with pytest.raises(ConfigError, match="already running"):
        async with EmbeddedNats(own.options.folder).open():
            pass
    assert find_running(own.options.folder) == own.url


async def test_nothing_runs_or_is_found_after_leaving(own_nats: StartNats) -> None:
    own = await own_nats()
    await own.stop()

    assert is_gone(own.server.pid)
    assert find_running(own.options.folder) is None
    assert find_running(own.options.folder / "missing") is None


async def test_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    async def start() -> None:
        async with EmbeddedNats(tmp_path / ".faas").open():
            raise AssertionError("was to be cancelled before")

    def children() -> list[str]:
        found = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in path.read_bytes()]
        return [path.name for path in found if not is_gone(int(path.name))]

    starting = asyncio.ensure_future(start())
    await eventually(children)
    starting.cancel()
    await asyncio.wait([starting])

    assert starting.cancelled()
    assert children() == []


# --- what goes wrong ----------------------------------------------------------------------------------------


async def test_port_in_use_is_reported_with_the_servers_own_words(own_nats: StartNats, tmp_path: Path) -> None:
    own = await own_nats()

    with pytest.raises(BusUnavailable, match="address already in use"):
        async with EmbeddedNats(tmp_path / "second", port=own.server.port).open():
            pass


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'nats-server: v2.9.10'", "v2.9.10"), ("echo 'nats-server: v2.15.0'", "v2.15.0"), ("echo hello", "hello"), ("exit 3", "''")],
)
async def test_binary_that_is_no_recent_nats_server_is_refused(tmp_path: Path, script: str, said: str) -> None:
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)

    with pytest.raises(ConfigError, match=f"{said}.*2.15.1 or later is needed"):
        async with EmbeddedNats(tmp_path / ".faas", binary=binary).open():
            pass


async def test_binary_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    for binary in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="cannot be run"):
            async with EmbeddedNats(tmp_path / ".faas", binary=binary).open():
                pass


async def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/faas")):
        with pytest.raises(ConfigError, match="cannot be the server's data folder"):
            async with EmbeddedNats(folder).open():
                pass


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"accounts": 1}'])
async def test_damaged_identity_is_reported(own_nats: StartNats, text: str) -> None:
    own = await own_nats()
    await own.stop()
    (own.options.folder / "identity.json").write_text(text)

    with pytest.raises(ConfigError, match=r"identity\.json is damaged"):
        await own.start()


async def test_a_stream_that_cannot_be_loaded_is_reported(own_nats: StartNats) -> None:
    """Else the next client would make it anew, and its consumers with it: at new events."""
    own = await own_nats()
    await store(own.url)
    await own.stop()
    [meta] = own.options.folder.glob("js/jetstream/*/streams/events/meta.inf")
    whole = meta.read_bytes()
    meta.write_bytes(whole.replace(b"ev.", b"ew."))

    with pytest.raises(ConfigError, match=r"stream 'faas > events' could not be recovered: .*meta\.inf is damaged"):
        await own.start()
    meta.write_bytes(whole)
    await own.start()
    assert await stored(own.url) == 1


async def store(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="events", subjects=["ev.>"])
    await client.jetstream().publish("ev.a", b"kept")
    await client.close()


async def stored(url: str) -> int | None:
    """Messages in the stream; None if there is none."""
    client = await nats.connect(url)
    try:
        return (await client.jetstream().stream_info("events")).state.messages
    except nats.js.errors.NotFoundError:
        return None
    finally:
        await client.close()
