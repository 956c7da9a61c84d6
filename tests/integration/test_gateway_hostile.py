"""What strangers send: bytes that are no HTTP, heads that mean two things, and connections that want to last."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from broker_faas.codec import BATCH
from broker_faas.errors import ConfigError
from broker_faas.gateway import app, connection
from broker_faas.layout import MAX_RECORD

from ..gateways import EVENT, Client, Gateway, closed, gateway, parsed, stored
from ..helpers import eventually

POST = b"POST /topics/t HTTP/1.1\r\n"
CE = "".join(f"{name}: {value}\r\n" for name, value in EVENT.items()).encode()
HEAD = POST + b"Host: x\r\n" + CE
VICTIM = POST + b"Host: x\r\nContent-Length: 0\r\nConnection: close\r\n" + CE.replace(b"ce-id: 1", b"ce-id: victim") + b"\r\n"


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("H-2 path", b"GET /%2e%2e/admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        ("H-3 host with a path", POST + b"Host: x/admin?\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-3 host with a tab", POST + b"Host: a\tb\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-3 empty host", POST + b"Host:\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-3 two hosts", POST + b"Host: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-3 no host", POST + b"Content-Length: 0\r\n\r\n", 400),
        ("H-4 length and chunks", HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + VICTIM, 400),
        ("H-4 chunks and length", HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + VICTIM, 400),
        ("H-5 two lengths", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + VICTIM, 400),
        ("H-5 two lengths in one", HEAD + b"Content-Length: 5, 6\r\n\r\nhello" + VICTIM, 400),
        ("H-5 a length with a sign", HEAD + b"Content-Length: +5\r\n\r\nhello" + VICTIM, 400),
        ("H-5 a length of many digits", HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        ("H-5 a huge length", HEAD + b"Content-Length: 99999999999\r\nConnection: close\r\n\r\n", 413),
        ("H-6 an encoding with a control character", HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + VICTIM, 400),
        ("H-6 another encoding", HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + VICTIM, 501),
        ("H-6 the encoding twice", HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + VICTIM, 501),
        ("H-6 a space before the colon", HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + VICTIM, 400),
        ("H-7 a huge chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFFF\r\n" + VICTIM, 400),
        ("H-7 a negative chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + VICTIM, 400),
        ("H-7 0x", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + VICTIM, 400),
        ("H-7 no line end after a chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n" + VICTIM, 400),
        ("H-10 NUL", HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-10 latin-1 in an attribute", HEAD + b"ce-subject: \xe9\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 400),
        ("H-10 DEL in an attribute", HEAD + b"ce-subject: a\x7fb\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 400),
        ("H-11 a header of 64 KiB", HEAD + b"X: " + b"x" * (64 << 10) + b"\r\n\r\n", 431),
        ("H-11 ten thousand headers", HEAD + b"a: b\r\n" * 10_000 + b"Content-Length: 0\r\n\r\n", 431),
        ("H-11 a name of 70 KiB", HEAD + b"x" * (70 << 10), 431),
        ("H-12 CRLF in a header", HEAD + b"ce-a: a\r\nce-id: 2\r\nContent-Length: 0\r\n\r\n", 400),
        ("two keys", HEAD + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\nContent-Length: 0\r\n\r\n", 400),
        ("two idempotency keys", HEAD + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-19 HTTP/1.0 without host", b"POST /topics/t HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 400),
        ("H-19 HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("H-19 TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
        ("no HTTP", b"EHLO there\r\n\r\n", 400),
        ("an absolute path", b"POST http://x/topics/t HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 404),
        ("an upgrade", b"GET /topics/t HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n", 405),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_request_or_could_be_two_is_refused_and_nothing_after_it_is_read(
    name: str, data: bytes, status: int, bus_url: str, tmp_path: Path
) -> None:
    async with gateway(tmp_path, bus_url) as http:
        answer = parsed(await http.raw(data))

        assert status == answer.status, name
        assert "application/problem+json" == answer.headers["content-type"]
        assert 1 == answer.body.count(b'"status"')
        assert 200 == (await http.ask("GET", "/readyz")).status
    assert [] == await stored(bus_url)


async def test_what_a_proxy_or_a_browser_adds_is_ignored(bus_url: str, tmp_path: Path) -> None:
    added = {"X-Forwarded-Host": "evil", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Prefix": "/admin", "X-Original-URL": "/admin"}
    added |= {"Range": "bytes=" + ",".join(["0-"] * 10_000), "Accept": "text/html", "X-HTTP-Method-Override": "DELETE"}
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("t", headers=EVENT | added)

    assert 200 == answer.status


async def test_a_body_that_ends_early_is_not_stored(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        for framing in (b"Content-Length: 100\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
            _, writer = await http.connect()
            writer.write(HEAD + framing)
            await writer.drain()
            await eventually(lambda: http.server.in_hand)
            await closed(writer)
            await eventually(lambda: not http.server.connections)

    assert [] == await stored(bus_url)


async def test_bytes_after_a_body_are_the_next_request(bus_url: str, tmp_path: Path) -> None:
    """A length that is too small cannot be told from two requests; what is stored is what was declared."""
    async with gateway(tmp_path, bus_url) as http:
        said = await http.raw(HEAD + b"Content-Length: 5\r\n\r\nhello" + b"rest of it\r\n\r\n")

    assert [b"200", b"400"] == re.findall(rb"HTTP/1.1 (\d+)", said)
    assert [b"hello"] == [one.data for one in await stored(bus_url)]


async def test_requests_in_one_write_are_answered_in_their_order(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        requests = [HEAD.replace(b"ce-id: 1", b"ce-id: %d" % n) + b"Content-Length: 1\r\n\r\nx" for n in range(20)]
        said = await http.raw(b"".join(requests) + VICTIM)

    assert 21 == said.count(b"HTTP/1.1 200 OK")
    assert [*(f"{n}" for n in range(20)), "victim"] == [one.headers["ce-id"] for one in await stored(bus_url)]


@pytest.mark.parametrize("seed", range(3))
async def test_random_damage_ends_no_more_than_its_connection(
    seed: int, bus_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = Random(seed)
    pieces = [b"\r\n", b"\n", b"\0", b"\xff", b" ", b":", b"%00", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
    pieces += [b"Expect: 100-continue\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"HTTP/1.0", b"\r\n\r\n", b"ce-id: 2\r\n"]
    whole = [VICTIM, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"]

    def damaged() -> bytes:
        data = bytearray(b"".join(random.choices(whole, k=random.randint(1, 3))))
        for _ in range(random.randint(1, 5)):
            at = random.randrange(len(data))
            data[at : at + random.choice((0, 1, 30))] = random.choice(pieces)
        return bytes(data)

    async with gateway(tmp_path, bus_url) as http:
        for _ in range(10):
            for data in [damaged() for _ in range(20)]:
                _, writer = await http.connect()
                writer.write(data)
                writer.write_eof()
            await http.close()
        await eventually(lambda: not http.server.connections, timeout=30)

        assert 200 == (await http.post("t", headers=EVENT | {"ce-id": "last"})).status
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_bug_of_ours_is_500_and_in_the_log(
    bus_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "records_of", None)
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("t")

    assert 500 == answer.status
    assert "may or may not be stored" in answer.json["detail"]
    assert ["a request failed: a bug of ours"] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- time, room ---------------------------------------------------------------------------------------------


async def test_a_slow_body_is_408(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, "body_timeout = 0.3") as http:
        said = await http.raw(HEAD + b"Content-Length: 100\r\n\r\nhello")
        expecting = await http.raw(HEAD + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")

    assert 408 == parsed(said).status
    assert expecting.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 408" in expecting
    assert [] == await stored(bus_url)


async def test_a_slow_head_is_408_however_it_trickles(bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.4)
    async with gateway(tmp_path, bus_url) as http:
        reader, writer = await http.connect()
        said = b""
        async with asyncio.timeout(10):
            while not said:
                writer.write(b"x")
                try:
                    async with asyncio.timeout(0.05):
                        said = await reader.read()
                except TimeoutError:
                    pass
        await closed(writer)
        silent = await http.raw(b"")

    # The first bytes that are no method in a request line may be refused sooner.
    assert parsed(said).status in (400, 408)
    assert 408 == parsed(silent).status


async def test_the_rest_of_a_refused_body_does_not_last(bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT", 0.3)
    async with gateway(tmp_path, bus_url) as http:
        said = await http.raw(HEAD + b"Content-Length: 99999999\r\n\r\n" + b"x" * 100_000)

    assert 1 == said.count(b"HTTP/1.1")
    assert 413 == parsed(said).status


async def test_a_client_that_sends_all_before_it_reads_hears_why_it_is_refused(bus_url: str, tmp_path: Path) -> None:
    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            plain.sendall(HEAD + b"Connection: close\r\nContent-Length: 3000000\r\n\r\n")
            select.select([plain], [], [], 20)  # the answer is there, and this client does not look
            for _ in range(30):
                plain.sendall(b"x" * 100_000)
            return plain.recv(1 << 16)

    async with gateway(tmp_path, bus_url) as http:
        said = await asyncio.to_thread(ask, http.port)

    assert 413 == parsed(said).status


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_slow_connections_keep_nobody_out(bus_url: str, tmp_path: Path) -> None:
    most = 0
    async with gateway(tmp_path, bus_url, "max_connections = 100") as http:
        slow = []
        for n in range(1000):
            slow.append(await http.connect())
            slow[-1][1].write(b"POST /topics/t HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            most = max(most, http.server.connections)
            if n % 100 == 99:
                answer = await http.post("t", headers=EVENT | {"ce-id": f"{n}"})

                assert 200 == answer.status
        for _, writer in slow:
            await closed(writer)

    assert most <= 100
    assert 10 == len(await stored(bus_url))


async def test_when_all_connections_have_a_request_in_hand_one_more_is_503(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, "max_connections = 3\nbody_timeout = 1") as http:
        slow = [await http.connect() for _ in range(3)]
        for _, writer in slow:
            writer.write(HEAD + b"Content-Length: 100\r\n\r\nx")
        await eventually(lambda: http.server.in_hand == 3)
        refused = parsed(await http.raw(b""))
        for _, writer in slow:
            await closed(writer)
        accepted = await eventually(lambda: _accepted(http))

    assert 503 == refused.status
    assert accepted


async def _accepted(http: Client) -> bool:
    return (await http.post("t")).status == 200


async def test_too_many_requests_in_hand_are_429(bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_REQUESTS", 2)
    async with gateway(tmp_path, bus_url) as http:
        slow = [await http.connect() for _ in range(2)]
        for _, writer in slow:
            writer.write(HEAD + b"Content-Length: 2\r\n\r\n{")
        await eventually(lambda: http.server.in_hand == 2)
        refused = await http.post("t", headers=EVENT | {"ce-id": "2"})
        for _, writer in slow:
            await closed(writer)
        await eventually(lambda: _accepted(http))

    assert (429, "1") == (refused.status, refused.headers["retry-after"])


async def test_too_many_bytes_in_hand_are_429(bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_BYTES", 1 << 20)
    async with gateway(tmp_path, bus_url) as http:
        both = [await http.connect() for _ in range(2)]
        for _, writer in both:
            writer.write(HEAD + b"Connection: close\r\nContent-Length: 900001\r\n\r\n" + b"x" * 900_000)
        reads = [asyncio.ensure_future(reader.read()) for reader, _ in both]
        (refused,), (waiting,) = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        both[reads.index(waiting)][1].write(b"x")

        assert [429, 200] == [parsed(await said).status for said in (refused, waiting)]


async def test_a_batch_that_takes_long_to_read_keeps_nobody_waiting(bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, read = threading.Event(), app.events_of

    def slowly(*args: Any) -> Any:
        assert go_on.wait(20)
        return read(*args)

    monkeypatch.setattr(app, "events_of", slowly)
    async with gateway(tmp_path, bus_url) as http, asyncio.TaskGroup() as tasks:
        batch = tasks.create_task(http.post("t", b"[]", {"content-type": BATCH}))
        await eventually(lambda: http.server.in_hand)
        other = await http.ask("GET", "/livez")
        go_on.set()

    assert [200, 200] == [other.status, batch.result().status]


async def test_fifteen_thousand_events_in_one_batch_are_stored(bus_url: str, tmp_path: Path) -> None:
    items = (b'{"specversion":"1.0","id":"%d","source":"s","type":"t"}' % n for n in range(15_000))
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("t", b"[" + b",".join(items) + b"]", {"content-type": BATCH})

    assert (200, 15_000, 0) == (answer.status, answer.json["events"], answer.json["duplicates"])


def test_the_largest_event_fits_by_default(tmp_path: Path) -> None:
    from broker_faas.config import GatewayConfig

    assert MAX_RECORD == GatewayConfig().max_body


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "cert.pem"


TLS = 'tls_cert = "cert.pem"\ntls_key = "key.pem"'


async def test_with_a_certificate_it_speaks_https_and_nothing_else(certificate: Path, bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, f"{TLS}\nmax_connections = 20") as http:
        secure = Client(http.server.url, ssl.create_default_context(cafile=str(certificate)))
        half = [await http.connect() for _ in range(60)]  # never begin their handshake
        answer = await secure.post("t")
        plain = await http.raw(VICTIM)
        held = http.server.connections
        for _, writer in half:
            await closed(writer)

    assert 200 == answer.status
    assert b"HTTP" not in plain
    assert held <= 20
    assert 1 == len(await stored(bus_url))


async def test_a_certificate_that_cannot_be_used_is_a_configuration_error(certificate: Path, bus_url: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("none")
    with pytest.raises(ConfigError, match="cannot be used"):
        async with gateway(tmp_path, bus_url, TLS):
            pass
    with pytest.raises(ConfigError, match=r"gateway.tls_cert needs gateway.tls_key"):
        async with gateway(tmp_path, bus_url, 'tls_cert = "cert.pem"'):
            pass


# --- the drain ----------------------------------------------------------------------------------------------


async def test_a_drain_answers_what_is_in_hand_and_accepts_nobody(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        reader, writer = await _begun(http)
        quiet_reader, quiet = await http.connect()
        await eventually(lambda: http.server.connections == 2)
        http.stop.set()
        assert b"" == await quiet_reader.read()
        with pytest.raises(OSError):  # noqa: PT011 - of any kind
            await http.connect()
        writer.write(b"}")
        answer = parsed(await reader.read())
        for one in (writer, quiet):
            await closed(one)

    assert 200 == answer.status
    assert [b"{}"] == [one.data for one in await stored(bus_url)]


async def _begun(http: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await http.connect()
    writer.write(HEAD + b"Content-Length: 2\r\n\r\n{")
    await eventually(lambda: http.server.in_hand)
    return reader, writer
