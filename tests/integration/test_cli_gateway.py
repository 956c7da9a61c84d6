"""`faas gateway` and `faas keys` as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from ..gateways import EVENT, Client, parsed, stored
from ..helpers import eventually
from ..terminal import Faas, Running, project

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def faas(tmp_path: Path, bus_url: str) -> Faas:
    return Faas(project(tmp_path / "shop", "", toml="[gateway]\nport = 0\n"), NATS_URL=bus_url)


def client(process: Running) -> Client:
    process.wait_for("gateway listens")
    return Client(next(json.loads(line)["url"] for line in process.lines if "gateway listens" in line))


async def test_what_was_answered_with_200_survives_a_kill(faas: Faas, bus_url: str) -> None:
    accepted: list[str] = []
    with faas.running("gateway") as process:
        http = await asyncio.to_thread(client, process)

        async def posts(first: int) -> None:
            for n in range(first, first + 1000):
                try:
                    answer = await http.post("t", headers=EVENT | {"ce-id": f"{n}"})
                except OSError:
                    return
                if answer.status != 200:
                    return
                accepted.append(f"{n}")

        async with asyncio.TaskGroup() as tasks:
            for worker in range(8):
                tasks.create_task(posts(worker * 1000))
            await eventually(lambda: len(accepted) > 50, timeout=30)
            process.process.kill()

    assert set(accepted) <= {one.headers["ce-id"] for one in await stored(bus_url)}


async def test_sigterm_drains_and_ends_with_0(faas: Faas, bus_url: str) -> None:
    with faas.running("gateway") as process:
        http = await asyncio.to_thread(client, process)
        reader, writer = await http.connect()
        head = "".join(f"{name}: {value}\r\n" for name, value in EVENT.items())
        writer.write(f"POST /topics/t HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{{".encode())
        assert b"HTTP/1.1 100 \r\n" == (await reader.readline()).replace(b"Continue", b"")
        await reader.readline()
        process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_for, "drain")
        writer.write(b"}")
        answer = parsed(await reader.read())
        writer.close()
        code = await asyncio.to_thread(process.process.wait, 20)

    assert (200, 0) == (answer.status, code), process.said
    assert 1 == len(await stored(bus_url))


async def test_a_second_signal_stops_at_once(faas: Faas, bus_url: str) -> None:
    with faas.running("gateway") as process:
        http = await asyncio.to_thread(client, process)
        reader, writer = await http.connect()
        writer.write(b"POST /topics/t HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        await reader.readline()
        process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_for, "drain")
        process.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.process.wait, 20)
        rest = await reader.read()
        writer.close()

    assert 1 == code
    assert b" 200 " not in rest
    assert "clients whose requests were cut off have to send them again" in process.said
    assert "Traceback" not in process.said
    assert [] == await stored(bus_url)


async def test_a_key_from_the_command_line_opens_a_running_gateway(faas: Faas, bus_url: str) -> None:
    with faas.running("gateway") as process:
        http = await asyncio.to_thread(client, process)
        key = faas("keys", "add", "shop", "--topic", "orders.>").stdout.strip()
        headers = EVENT | {"Authorization": f"Bearer {key}"}
        statuses = [(await http.post("orders.new", headers=one)).status for one in (EVENT, headers)]
        faas("keys", "revoke", "shop")
        statuses.append((await http.post("orders.new", headers=headers)).status)

    assert [401, 200, 401] == statuses
    assert key not in process.said


async def test_few_descriptors_are_no_end(faas: Faas, bus_url: str) -> None:
    import resource

    with faas.running("gateway") as process:
        http = await asyncio.to_thread(client, process)
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        many = [await http.connect() for _ in range(100)]
        answers = [await http.post("t", headers=EVENT | {"ce-id": f"{n}"}) for n in range(5)]
        for _, writer in many:
            writer.close()

    assert [200] * 5 == [answer.status for answer in answers]


def test_a_port_that_is_taken_is_said(faas: Faas) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (faas.folder / "faas.toml").write_text(f'project = "shop"\nmodules = ["functions"]\n[gateway]\nport = {port}\n')
        with faas.running("gateway") as process:
            code = process.process.wait(30)
            process.finish()

    assert 78 == code
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in process.said


def test_what_is_not_installed_is_said(faas: Faas) -> None:
    with patch.dict(sys.modules, {"uvicorn": None}):
        said = faas("gateway", code=78).stderr

    assert "the gateway needs uvicorn, which is not installed: pip install 'broker-faas[http]'" in said


def test_keys_are_listed_without_their_secrets(faas: Faas) -> None:
    secret = faas("keys", "add", "shop", "--topic", "orders.>", "--topic", "mails").stdout.strip()
    faas("keys", "add", "all")
    rows = faas.json("keys", "list")
    table = faas("keys", "list").stdout

    assert [("shop", ["orders.>", "mails"]), ("all", [">"])] == [(row["name"], row["topics"]) for row in rows]
    assert secret.startswith("faas_")
    assert secret not in json.dumps(rows) + table
    assert "orders.>, mails" in table


def test_what_cannot_be_done_with_keys_is_said(faas: Faas) -> None:
    assert "No keys" in faas("keys", "list").stderr
    faas("keys", "add", "shop")

    assert "there is a key 'shop' already" in faas("keys", "add", "shop", code=78).stderr
    assert "is no name of a key" in faas("keys", "add", "a b", code=78).stderr
    assert "'>' before its end" in faas("keys", "add", "b", "--topic", ">.a", code=1).stderr
    assert "there is no key 'mails'" in faas("keys", "revoke", "mails", code=1).stderr
    assert ["shop"] == [row["name"] for row in faas.json("keys", "list")]
