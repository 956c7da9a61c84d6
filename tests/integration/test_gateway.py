"""Events over HTTP, on a real bus: what is stored, what is refused, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from broker_faas.codec import BATCH, STRUCTURED, batch_to_json, to_json
from broker_faas.errors import ConfigError
from broker_faas.event import CloudEvent
from broker_faas.gateway import app

from ..gateways import EVENT, Answer, gateway, stored
from ..helpers import OwnNats, eventually


def event(n: int, **attributes: Any) -> CloudEvent:
    return CloudEvent(**{"type": "order", "source": "/shop", "id": f"{n}", "data": {"n": n}} | attributes)


def is_problem(answer: Answer, status: int, says: str) -> None:
    assert status == answer.status, answer
    assert "application/problem+json" == answer.headers["content-type"]
    assert status == answer.json["status"]
    assert says in answer.json["detail"]


# --- what is stored -----------------------------------------------------------------------------------------


async def test_an_event_is_on_the_bus_when_200_is_said(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("orders.created", b'{"n": 1}')

        assert 200 == answer.status
        [event] = await stored(bus_url)
        assert ("orders.created", b'{"n": 1}') == (event.topic, event.data)
        said = {"topic": "orders.created", "stream": "events", "events": 1, "duplicates": 0, "ids": ["1"], "sequences": [event.seq]}
        assert said == answer.json


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_what_the_sdk_sends_arrives_byte_for_byte(mode: str, bus_url: str, tmp_path: Path) -> None:
    attributes = {
        "type": "größe",
        "source": "/shop/%C3%BC",
        "id": "ß 1",
        "subject": 'Zürich "1" 100 %',
        "datacontenttype": "application/json",
    }
    attributes |= {"specversion": "1.0", "greek": "αβγ 😀"}
    made = SdkEvent(attributes=dict(attributes), data={"name": "Łódź", "n": [1, 2.5, None]})
    message = to_binary(made, JSONFormat()) if mode == "binary" else to_structured(made, JSONFormat())
    body = message.body
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("sdk", body, message.headers)

    (one,) = await stored(bus_url)
    block = "".join(f"{name}: {value}\r\n" for name, value in one.headers.items() if name.startswith("ce-"))
    arrived = CloudEvent.from_headers(block.encode(), one.data)

    assert 200 == answer.status, answer
    assert attributes == {name: value for name, value in arrived.attributes.items() if name != "time"}
    assert {"name": "Łódź", "n": [1, 2.5, None]} == arrived.json()
    assert mode == "structured" or body == one.data


async def test_a_structured_event_keeps_the_bytes_of_its_data(bus_url: str, tmp_path: Path) -> None:
    body = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data": {"a" : 1.0,  "a": 2e400}}'
    async with gateway(tmp_path, bus_url) as http:
        await http.post("t", body, {"content-type": STRUCTURED})

    assert [b'{"a" : 1.0,  "a": 2e400}'] == [one.data for one in await stored(bus_url)]


async def test_a_batch_keeps_its_order(bus_url: str, tmp_path: Path) -> None:
    batch = [event(n, partitionkey=f"k{n % 3}") for n in range(100)]
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("orders", batch_to_json(batch), {"content-type": BATCH})
        empty = await http.post("orders", b"[]", {"content-type": BATCH})

    assert [f"{n}" for n in range(100)] == answer.json["ids"]
    events = await stored(bus_url)
    assert [f"{n}" for n in range(100)] == [one.headers["ce-id"] for one in events]
    assert [one.seq for one in events] == answer.json["sequences"]
    assert (200, 0) == (empty.status, empty.json["events"])


async def test_nothing_of_a_batch_with_a_bad_event_is_stored(bus_url: str, tmp_path: Path) -> None:
    body = b"[" + to_json(event(1)) + b',{"specversion":"1.0","id":"2","source":"/s"}]'
    async with gateway(tmp_path, bus_url) as http:
        is_problem(await http.post("orders", body, {"content-type": BATCH}), 400, "event 2 of 2 in the batch: attribute 'type' is missing")

    assert [] == await stored(bus_url)


async def test_a_plain_body_becomes_an_event_of_the_topics_type(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, 'source = "/edge"') as http:
        first, second = [await http.post("mails.sent", b"hello", {"content-type": "text/plain"}) for _ in range(2)]

    one, two = await stored(bus_url)

    assert ("mails.sent", "/edge", "text/plain") == tuple(one.headers[name] for name in ("ce-type", "ce-source", "ce-datacontenttype"))
    assert b"hello" == one.data
    assert [one.headers["ce-id"], two.headers["ce-id"]] == [first.json["ids"][0], second.json["ids"][0]]
    assert one.headers["ce-id"] != two.headers["ce-id"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((b"a", {"content-type": "text/plain"}), (b"a", {"content-type": "text/plain"})),
        ((b"{}", EVENT), (b"{}", EVENT | {"ce-id": "another"})),
        ((batch_to_json([event(1), event(2)]), {"content-type": BATCH}), (batch_to_json([event(3), event(4)]), {"content-type": BATCH})),
    ],
    ids=["plain", "binary", "batch"],
)
async def test_what_comes_again_with_its_idempotency_key_is_stored_once(first: Any, second: Any, bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        answers = [await http.post("t", body, headers | {"Idempotency-Key": "k-1"}) for body, headers in (first, second)]
        elsewhere = await http.post("u", first[0], first[1] | {"Idempotency-Key": "k-1"})

    events = answers[0].json["events"]

    assert [0, events] == [answer.json["duplicates"] for answer in answers]
    assert answers[0].json["sequences"] == answers[1].json["sequences"], "where the first lies"
    assert 0 == elsewhere.json["duplicates"]
    assert ["t"] * events + ["u"] * events == [one.topic for one in await stored(bus_url)]


async def test_the_id_of_a_plain_body_is_its_idempotency_key(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.post("t", b"a", {"Idempotency-Key": '"order 7"'})

    assert ["order 7"] == answer.json["ids"]


async def test_headers_of_the_bus_never_reach_it(bus_url: str, tmp_path: Path) -> None:
    reserved = {"Nats-Msg-Id": "victim", "nats-rollup": "all", "Nats-Expected-Last-Sequence": "99", "Nats-Expected-Stream": "OTHER"}
    reserved |= {"Nats-TTL": "1s", "Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "ev.x", "Nats-Batch-Id": "b", "faas-attempts": "9"}
    async with gateway(tmp_path, bus_url) as http:
        answers = [await http.post("t", headers=EVENT | {"ce-id": f"{n}"} | reserved) for n in range(2)]

    assert [200, 200] == [answer.status for answer in answers]
    ours = {"Nats-Msg-Id"}
    assert [ours, ours] == [{name for name in one.headers if not name.startswith("ce-")} for one in await stored(bus_url)]
    assert "victim" not in str(await stored(bus_url))


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "says"),
    [
        ("POST", "/topics/t", {"ce-id": "1"}, b"", 400, "attribute 'source' is missing"),
        ("POST", "/topics/t", EVENT | {"ce-type": "a%0d%0aNats-Rollup:%20all"}, b"", 400, "attribute 'type' has U+000D"),
        ("POST", "/topics/t", EVENT | {"ce-type": "%ff"}, b"", 400, "attribute 'type' is not UTF-8"),
        ("POST", "/topics/t", EVENT | {"ce-subject": "\xe9"}, b"", 400, "'ce-subject' is not ASCII"),
        ("POST", "/topics/t", EVENT | {"ce-specversion": "0.3"}, b"", 400, "only '1.0' is supported"),
        ("POST", "/topics/t", EVENT | {"CE-ID": "2"}, b"", 400, "'ce-id' is given twice"),
        ("POST", "/topics/t", {"content-type": STRUCTURED}, b'{"id":"1","id":"2"}', 400, "'id' is given twice"),
        ("POST", "/topics/t", {"content-type": STRUCTURED}, b"[" * 100_000, 400, "no CloudEvent in JSON"),
        ("POST", "/topics/t", {"Idempotency-Key": ""}, b"", 400, "1 to 200"),
        ("POST", "/topics/t", {"Idempotency-Key": "k" * 201}, b"", 400, "1 to 200"),
        ("POST", "/topics/a..b", EVENT, b"", 400, "empty part"),
        ("POST", "/topics/*", EVENT, b"", 400, "wildcard"),
        ("POST", "/topics/$JS.API.STREAM.DELETE.events", EVENT, b"", 400, "'$'"),
        ("POST", "/topics/a%0d%0aPUB%20x", EVENT, b"", 400, "topic"),
        ("POST", "/topics/%2e%2e", EVENT, b"", 400, "empty part"),
        ("POST", "/topics/" + "a" * 201, EVENT, b"", 400, "the limit is 200"),
        ("POST", "/topics/a%2fb", EVENT, b"", 404, "nothing at this path"),
        ("POST", "/topics/a/", EVENT, b"", 404, "nothing at this path"),
        ("POST", "//topics/a", EVENT, b"", 404, "nothing at this path"),
        ("POST", "/livez/../topics/a", EVENT, b"", 404, "nothing at this path"),
        ("POST", "/topics", EVENT, b"", 404, "nothing at this path"),
        ("GET", "/admin", {}, b"", 404, "nothing at this path"),
        ("GET", "/topics/t", {"X-HTTP-Method-Override": "POST"}, b"", 405, "Method Not Allowed"),
        ("DELETE", "/topics/t", {}, b"", 405, "Method Not Allowed"),
        ("POST", "/livez", {}, b"", 405, "Method Not Allowed"),
        ("POST", "/topics/t", EVENT, b"x" * 2_000_000, 413, "more than 1,093,632 bytes"),
        ("POST", "/topics/t", EVENT, b"x" * 1_050_000, 413, "exceeds the bus limit"),
        ("POST", "/topics/t", EVENT | {"ce-id": "i" * 50_000}, b"", 413, "attributes of"),
        ("POST", "/topics/t", EVENT | {"content-encoding": "gzip"}, b"\x1f\x8b", 415, "without Content-Encoding"),
        ("POST", "/topics/t", EVENT | {"content-encoding": "identity, gzip"}, b"", 415, "without Content-Encoding"),
        ("POST", "/topics/t", {"content-type": "application/cloudevents+avro"}, b"", 415, "only JSON is supported"),
        ("POST", "/topics/t", EVENT | {"Origin": "https://evil.example"}, b"{}", 403, "Browsers may not publish"),
        ("OPTIONS", "/topics/t", {"WebHook-Request-Origin": "a b\x7f"}, b"", 400, "WebHook-Request-Origin"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_the_reason(
    method: str, path: str, headers: dict[str, str], body: bytes, status: int, says: str, bus_url: str, tmp_path: Path
) -> None:
    async with gateway(tmp_path, bus_url) as http:
        is_problem(await http.ask(method, path, body, headers), status, says)

        assert 200 == (await http.ask("GET", "/readyz")).status
    assert [] == await stored(bus_url)


async def test_405_names_what_is_allowed(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        answer = await http.ask("PUT", "/topics/t")

    assert {"POST", "OPTIONS"} == set(answer.headers["allow"].split(", "))


async def test_a_body_in_chunks_without_end_is_cut_off(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        head = b"POST /topics/t HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        said = await http.raw(head + b"100000\r\n" + b"x" * 0x100000 + b"\r\n100000\r\n" + b"x" * 0x100000)

    assert said == b"" or b" 413 " in said.split(b"\r\n")[0]  # who is still sending may see the end before the answer
    assert [] == await stored(bus_url)


async def test_a_body_without_a_length_is_asked_for_one(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        said = await http.raw(b"POST /topics/t HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b" 411 " in said.split(b"\r\n")[0]


# --- webhooks, documents ------------------------------------------------------------------------------------


async def test_a_webhook_sender_that_asks_may_send(bus_url: str, tmp_path: Path) -> None:
    ask = {"WebHook-Request-Origin": "events.example.com", "WebHook-Request-Rate": "120"}
    ask |= {"WebHook-Request-Callback": "http://169.254.169.254/"}
    async with gateway(tmp_path, bus_url) as http:
        answer, plain = await http.ask("OPTIONS", "/topics/t", headers=ask), await http.ask("OPTIONS", "/topics/t")

    assert (200, "events.example.com", "*") == (
        answer.status,
        answer.headers["webhook-allowed-origin"],
        answer.headers["webhook-allowed-rate"],
    )
    assert (204, False) == (plain.status, "webhook-allowed-origin" in plain.headers)


async def test_it_describes_itself(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        document, page, live = [await http.ask("GET", path) for path in ("/openapi.json", "/docs", "/livez")]

    assert {"post", "options"} <= document.json["paths"]["/topics/{topic}"].keys()
    assert "3.1.0" == document.json["openapi"]
    assert b"POST /topics/{topic}" in page.body
    assert b"<script" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 200 == live.status


# --- keys ---------------------------------------------------------------------------------------------------


def bearer(key: str) -> dict[str, str]:
    return EVENT | {"Authorization": f"Bearer {key}"}


async def test_with_a_keys_file_every_post_needs_a_key_that_covers_its_topic(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        assert 200 == (await http.post("orders.created")).status

        key = http.keys.add("shop", ("orders.*",))
        without, wrong = await http.post("orders.created"), await http.post("orders.created", headers=bearer(key[:-1]))
        basic = await http.post("orders.created", headers=EVENT | {"Authorization": f"Basic {key}"})
        right, elsewhere = await http.post("orders.created", headers=bearer(key)), await http.post("mails", headers=bearer(key))
        handshake = await http.ask("OPTIONS", "/topics/mails", headers={"WebHook-Request-Origin": "x"})
        alive = await http.ask("GET", "/readyz")

    for answer in (without, wrong, basic, handshake):
        is_problem(answer, 401, "key")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    is_problem(elsewhere, 403, "'shop' may not publish to 'mails'")
    assert [200, 200] == [right.status, alive.status]


async def test_a_revoked_key_is_refused_at_once(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        key = http.keys.add("shop")
        before = await http.post("t", headers=bearer(key))
        http.keys.revoke("shop")
        after = await http.post("t", headers=bearer(key))
        os.unlink(http.keys.path)
        without_file = await http.post("t", headers=bearer(key))

    assert [200, 401, 401] == [before.status, after.status, without_file.status]


async def test_a_damaged_keys_file_lets_nobody_in(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url) as http:
        key = http.keys.add("shop")
        http.keys.path.write_text("[")
        is_problem(await http.post("t", headers=bearer(key)), 503, "keys cannot be read")

    assert [] == await stored(bus_url)


async def test_a_key_is_in_no_log_and_no_answer(bus_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with gateway(tmp_path, bus_url) as http:
        key = http.keys.add("shop", ("a",))
        answers = [await http.post(topic, headers=bearer(key)) for topic in ("a", "b", "..")]
        answers.append(await http.post("a", headers=bearer(key + "x")))

    assert [200, 403, 400, 401] == [answer.status for answer in answers]
    assert key not in caplog.text + str(answers)
    assert key not in http.keys.path.read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example.com"])
async def test_a_host_that_others_reach_needs_tls_and_keys(host: str, bus_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other machines: it needs TLS and keys"):
        async with gateway(tmp_path, bus_url, f'host = "{host}"'):
            pass
    with pytest.raises(ConfigError, match="there are no keys: anybody could publish"):
        async with gateway(tmp_path, bus_url, f'host = "{host}"\ntls_cert = "a.pem"\ntls_key = "b.pem"'):
            pass


async def test_insecure_allows_it(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, 'host = "0.0.0.0"\ninsecure = true') as http:
        http.host = "127.0.0.1"
        answer = await http.post("t")

    assert 200 == answer.status


# --- the bus ------------------------------------------------------------------------------------------------

Start = Callable[..., Awaitable[OwnNats]]


async def test_while_the_bus_is_away_nothing_is_accepted_and_what_was_is_there_afterwards(own_nats: Start, tmp_path: Path) -> None:
    own = await own_nats()
    accepted: list[str] = []
    statuses: set[int] = set()
    async with gateway(tmp_path, own.url) as http:

        async def post(n: int) -> int:
            answer = await http.post("t", headers=EVENT | {"ce-id": f"{n}"})
            statuses.add(answer.status)
            if answer.status == 200:
                accepted.append(f"{n}")
            return answer.status

        await asyncio.gather(*[post(n) for n in range(20)])
        async with asyncio.TaskGroup() as tasks:
            for n in range(20, 60):
                tasks.create_task(post(n))
            await own.kill()
        await eventually(lambda: not http.bus.connected)
        away = await http.post("t", headers=EVENT | {"ce-id": "away"})
        ready = await http.ask("GET", "/readyz")
        await own.start()
        await eventually(lambda: http.bus.connected, timeout=20)
        assert 200 == await post(60)

    is_problem(away, 503, "nothing was stored")
    assert "1" == away.headers["retry-after"]
    assert 503 == ready.status
    assert statuses <= {200, 503}
    assert set(accepted) <= {one.headers["ce-id"] for one in await stored(own.url)}


async def test_a_bus_that_does_not_answer_is_503_in_time(own_nats: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PATIENCE", 0.5)
    own = await own_nats()
    async with gateway(tmp_path, own.url) as http:
        os.kill(own.server.pid, signal.SIGSTOP)
        try:
            is_problem(await http.post("t"), 503, "may or may not be stored")
        finally:
            os.kill(own.server.pid, signal.SIGCONT)
        again = await eventually(lambda: _accepted(http))

    assert 200 == again.status
    assert ["1"] == [one.headers["ce-id"] for one in await stored(own.url)]


async def _accepted(http: Any) -> Answer | None:
    answer: Answer = await http.post("t")
    return answer if answer.status == 200 else None


async def test_a_full_bus_is_503(bus_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, bus_url, max_bytes=2 << 20, dead_bytes=1 << 20) as http:
        answers = [await http.post("t", b"x" * 1_000_000, EVENT | {"ce-id": f"{n}"}) for n in range(4)]

    assert 200 == answers[0].status
    is_problem(answers[-1], 503, "no room")
    assert "5" == answers[-1].headers["retry-after"]
    assert json.dumps("2,097,152") not in str(answers[-1])
