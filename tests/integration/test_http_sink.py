"""The HTTP sink against a real server in a process of its own: what arrives, in what order, and what becomes of what does not."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from broker_faas.codec import STRUCTURED
from broker_faas.connectors.sink import Outgoing, Undelivered
from broker_faas.connectors.sinks.http import HttpSink
from broker_faas.errors import SinkRefused, SinkUnavailable
from broker_faas.event import CloudEvent

from ..helpers import eventually
from ..strategies import events
from ..systems.http import HttpSystem, http_system

ODD = CloudEvent(
    type="com.acme.order",
    source="/shop/%C3%BC?a=b",
    id='1 "é" 100% 😀',
    subject="Grüße, 世界",
    time="2026-01-31T09:30:00.123456Z",
    datacontenttype="application/octet-stream",
    data=bytes(range(256)),
    partitionkey="Käse",
    acme="ünï",
    number=7,
)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpSystem]:
    """The server that the tests here share. Do not kill it: take `own_http`."""
    with http_system(tmp_path_factory.mktemp("http")) as system:
        yield system


@pytest.fixture
def own_http(tmp_path: Path) -> Iterator[HttpSystem]:
    with http_system(tmp_path / "http") as system:
        yield system


@pytest.fixture
def target() -> str:
    return f"orders.t{secrets.token_hex(4)}"


def made(n: int = 1, key: str | None = None, **attributes: Any) -> list[CloudEvent]:
    return [
        CloudEvent(**{"type": "t", "source": "/s", "id": f"{key}-{i}", "data": {"n": i}, "partitionkey": key} | attributes)
        for i in range(n)
    ]


def to(target: str, *events: CloudEvent) -> list[Outgoing]:
    return [Outgoing(target, event) for event in events]


async def sent(system: HttpSystem, outgoing: list[Outgoing], **options: Any) -> list[Undelivered | None]:
    async with system.sink(**options).open() as sink:
        return list(await sink.send(outgoing))


# --- what arrives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["binary", "structured"])
async def test_an_event_arrives_as_it_is(http: HttpSystem, target: str, format: str) -> None:
    assert [None] == await sent(http, to(target, ODD), format=format)
    assert [("Käse", ODD)] == await http.received(target, 1)

    [request] = http.requests(target)
    assert request.path == f"/hook/{target}"
    assert request.headers["user-agent"].startswith("broker-faas/")
    assert request.headers["content-type"] == (STRUCTURED if format == "structured" else "application/octet-stream")


@pytest.mark.parametrize("format", ["binary", "structured"])
async def test_the_sdk_of_cloudevents_reads_what_arrives(http: HttpSystem, target: str, format: str) -> None:
    await sent(http, to(target, ODD), format=format)
    [request] = http.requests(target)
    read = from_http_event(HTTPMessage(request.headers, request.body))

    assert read.get_data() == ODD.data
    assert read.get_time() == ODD.timestamp
    seen = {name: str(value) for name, value in read.get_attributes().items() if name != "time"}
    assert seen == {name: value for name, value in ODD.attributes.items() if name != "time"}


@hypothesis_settings(max_examples=15)
@given(st.lists(events(), min_size=1, max_size=8), st.sampled_from(["binary", "structured"]))
def test_whatever_the_event_it_arrives_as_it_is(http: HttpSystem, some: list[CloudEvent], format: str) -> None:
    target = f"t{secrets.token_hex(4)}"
    outgoing = [Outgoing(f"{target}-{n}", event) for n, event in enumerate(some)]

    assert [None] * len(some) == asyncio.run(sent(http, outgoing, format=format))
    assert some == [http.requests(f"{target}-{n}")[0].event for n in range(len(some))]


async def test_an_event_that_holds_an_event_goes_in_an_envelope(http: HttpSystem, target: str) -> None:
    inner = b'{"specversion": "1.0", "id": "inner", "source": "/", "type": "t"}'
    outer = CloudEvent(type="t", source="/s", id="outer", data=inner, datacontenttype="application/cloudevents+json")
    await sent(http, to(target, outer))

    assert [outer] == [request.event for request in http.requests(target)]


async def test_the_largest_events_arrive(http: HttpSystem, target: str) -> None:
    large = CloudEvent(type="t", source="/s", id="1", data=b"\xff" * (1 << 20))

    assert [None, None] == await sent(http, to(target, large) * 2, format="structured", timeout=30)
    assert [large] * 2 == [request.event for request in http.requests(target)]


async def test_headers_and_token_are_sent(http: HttpSystem, target: str) -> None:
    await sent(http, to(target, *made()), token="hunter2", headers={"X-Shop": "a b", "User-Agent": "shop"})
    [request] = http.requests(target)

    assert {"authorization": "Bearer hunter2", "x-shop": "a b", "user-agent": "shop"}.items() <= request.headers.items()


async def test_a_url_without_target_is_for_all(http: HttpSystem, target: str) -> None:
    url = f"http://127.0.0.1:{http.port}/{target}?a=%2F&b=c+d"
    await sent(http, to("orders.a", *made()) + to("orders.b", *made()), url=url)

    assert ["a=%2F&b=c+d"] * 2 == [request.query for request in http.requests(target)]


async def test_a_target_may_stand_in_the_query(http: HttpSystem, target: str) -> None:
    await sent(http, to("orders.a", *made()), url=f"http://127.0.0.1:{http.port}/{target}?to={{target}}&again={{target}}")

    assert ["to=orders.a&again=orders.a"] == [request.query for request in http.requests(target)]


@pytest.mark.parametrize("bad", ["..", ".", "", "a..b", "../x", "a/b", "a//b", "a?b", "a#b", "a%2fb", "a\\b", "a b", "@h", "a\r\nb", "é"])
async def test_a_target_that_is_none_is_not_sent(http: HttpSystem, target: str, bad: str) -> None:
    """Nobody can send one; if somebody could, it would change no path and no host."""
    url = f"http://127.0.0.1:{http.port}/{{target}}/{target}"
    [refused, delivered] = await sent(http, to(bad, *made()) + to("good", *made()), url=url)

    assert refused is not None
    assert not refused.again
    assert delivered is None
    assert [f"/good/{target}"] == [request.path for request in http.requests(target)]


async def test_a_signature_is_one_of_standard_webhooks(http: HttpSystem, target: str) -> None:
    new, old = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "QUJD" * 10)
    outgoing = to(target, *made(2))
    await sent(http, outgoing, secret=(new, old))
    await sent(http, outgoing[:1], secret=new, format="structured")
    requests = http.requests(target)

    for request in requests[:2]:
        for secret in (new, old):
            assert request.event.json() == Webhook(secret).verify(request.body, request.headers)
    assert "0" == str(Webhook(new).verify(requests[2].body, requests[2].headers)["data"]["n"])
    ids = [request.headers["webhook-id"] for request in sorted(requests, key=lambda request: request.event.id)]
    assert ids[0] == ids[1] != ids[2]


# --- order, and what goes side by side ----------------------------------------------------------------------


async def test_events_of_a_key_keep_their_order_and_others_go_side_by_side(http: HttpSystem, target: str) -> None:
    keyed = [made(12, key=f"k{k}") for k in range(5)]
    mixed = [event for row in zip(*keyed, strict=True) for event in row] + made(40)
    http.behave(target, delay=0.005)

    assert [None] * 100 == await sent(http, to(target, *mixed), concurrency=8)
    requests = http.requests(target)
    for events_ in keyed:
        key = events_[0].partitionkey
        of_key = [request for request in requests if request.headers.get("ce-partitionkey") == key]
        assert events_ == [request.event for request in of_key]
        assert {1} == {request.in_hand_of_key for request in of_key}
    assert 8 == max(request.in_hand for request in requests)


async def test_one_that_is_refused_holds_back_nobody_not_even_of_its_key(http: HttpSystem, target: str) -> None:
    http.behave(f"{target}-bad", status=400, body="no such order")
    outgoing = to(target, *made(3, key="k"))
    outgoing[1] = Outgoing(f"{target}-bad", outgoing[1].event)

    [first, second, third] = await sent(http, outgoing)

    assert (first, third) == (None, None)
    assert second == Undelivered("it answered 400 Bad Request: no such order", again=False)
    assert ["k-0", "k-2"] == [event.id for _, event in await http.received(target, 2)]


async def test_connections_are_used_again_and_closed_in_the_end(http: HttpSystem, target: str) -> None:
    async with http.sink(concurrency=4).open() as sink:
        for _ in range(5):
            assert [None] * 20 == list(await sink.send(to(target, *made(20))))
        before = established(http.port)

    assert len({request.client for request in http.requests(target)}) <= 4
    assert 1 <= before <= 4
    await eventually(lambda: established(http.port) == 0)


def established(port: int) -> int:
    """Connections to it from here."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].rpartition(":")[2], 16) == port and row[3] == "01" for row in rows)


def test_on_uvloop(http: HttpSystem, target: str) -> None:
    got = uvloop.run(sent(http, to(target, *made(50)) + to("..", *made())))

    assert [None] * 50 == got[:50]
    assert 50 == len(http.requests(target))


async def test_no_event_needs_no_answer(http: HttpSystem) -> None:
    assert [] == await sent(http, [])


# --- what does not arrive -----------------------------------------------------------------------------------


async def test_each_answer_says_what_becomes_of_its_event(http: HttpSystem, target: str) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    answers: list[dict[str, Any]] = [
        {"status": 202, "body": "taken"},
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"status": 503, "headers": {"Retry-After": in_an_hour}, "body": "\x1b[2Jlater\n"},
        {"status": 500, "body": "x" * 1_000_000},
        {"status": 404},
        {"status": 307, "headers": {"Location": f"/hook/{target}-0"}},
    ]
    for n, answer in enumerate(answers):
        http.behave(f"{target}-{n}", **answer)
    got = await sent(http, [Outgoing(f"{target}-{n}", made()[0]) for n in range(len(answers))])

    assert got[:2] == [None, Undelivered("it answered 429 Too Many Requests", True, 7.0)]
    assert got[2] is not None
    assert got[2].reason == "it answered 503 Service Unavailable: [2Jlater"
    assert 3590 < (got[2].after or 0) <= 3600
    assert got[3] == Undelivered("it answered 500 Internal Server Error: " + "x" * 199 + "…")
    assert got[4] == Undelivered("it answered 404 Not Found", again=False)
    assert got[5] is not None
    assert not got[5].again
    assert 1 == len(http.requests(f"{target}-0"))  # nobody followed


async def test_one_that_has_no_answer_in_time_is_tried_again_and_takes_nobody_along(http: HttpSystem, target: str) -> None:
    http.behave(f"{target}-hangs", hang=True)
    [delivered, hung] = await sent(http, to(target, *made()) + to(f"{target}-hangs", *made()), timeout=0.5)
    [alone] = await sent(http, to(f"{target}-hangs", *made()), timeout=0.5)

    assert delivered is None
    assert hung == alone == Undelivered(f"127.0.0.1:{http.port} did not answer within 0.5 seconds")


async def test_a_server_that_is_gone_is_unavailable_until_it_is_back(own_http: HttpSystem) -> None:
    async with own_http.sink().open() as sink:
        assert [None] == list(await sink.send(to("a", *made())))
        own_http.stop_server()
        with pytest.raises(SinkUnavailable, match=r"127.0.0.1:\d+ cannot be connected to: Connect"):
            await sink.send(to("a", *made(1000)))
    with pytest.raises(SinkUnavailable, match="cannot be connected to"):
        async with own_http.sink().open():
            pass
    own_http.start_server()

    assert [None] == await sent(own_http, to("a", *made()))


async def test_what_had_no_answer_when_the_server_died_is_not_delivered(own_http: HttpSystem) -> None:
    """And what had one is: it is not sent again."""
    own_http.behave("slow", hang=True)
    async with own_http.sink(concurrency=8).open() as sink, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(sink.send(to("slow", *made(2)) + to("a", *made(50)) + to("slow", *made(4))))
        await eventually(lambda: len(own_http.requests("a")) == 50 and len(own_http.requests("slow")) == 6)
        own_http.stop_server()
    got = list(sending.result())

    assert [None] * 50 == got[2:52]
    assert all(one is not None and one.again for one in got[:2] + got[52:])


async def test_a_host_without_address_is_unavailable() -> None:
    with pytest.raises(SinkUnavailable, match=r"nowhere.invalid:443 cannot be connected to"):
        async with HttpSink(url="https://nowhere.invalid/").open():
            pass


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(certificate, key) of 127.0.0.1, for servers and clients."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_over_tls(certificate: tuple[str, str], tmp_path: Path) -> None:
    cert, key = certificate
    with http_system(tmp_path / "http", cert, key, cert) as system:
        mutual = {"ca_file": cert, "cert_file": cert, "key_file": key}
        assert [None] * 9 == await sent(system, to("a", *made(9)), **mutual)
        with pytest.raises(SinkRefused, match="its certificate is not trusted"):
            await sent(system, [], cert_file=cert, key_file=key)
        with pytest.raises(SinkRefused, match="certificates cannot be read"):
            await sent(system, [], ca_file=key)
        with pytest.raises(SinkRefused, match="certificates cannot be read"):
            await sent(system, [], **mutual | {"key_file": str(tmp_path / "none.pem")})
        with pytest.raises(SinkUnavailable):  # without a certificate of ours
            await sent(system, to("a", *made()), ca_file=cert)

        assert 9 == len(system.requests("a"))


async def test_a_port_that_speaks_no_tls_is_refused(http: HttpSystem) -> None:
    with pytest.raises(SinkRefused, match="it speaks no TLS at this port"):
        await sent(http, [], url=f"https://127.0.0.1:{http.port}/")
