"""What is valid, bent a little: every parser takes it or refuses it in the one way it has. FUZZ_EXAMPLES=20000 goes on for longer."""

from __future__ import annotations

import asyncio
import itertools
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_faas import toml
from broker_faas.bus import Delivery, Queue
from broker_faas.buses.durable import fields
from broker_faas.buses.pull import PullSubscription
from broker_faas.buses.records import verdict
from broker_faas.buses.wire import Cutter
from broker_faas.codec import batch_from_json, batch_to_json, from_http_batch, from_json, to_http, to_json
from broker_faas.config import load
from broker_faas.errors import ConfigError, EventError, ProtocolError
from broker_faas.event import CloudEvent
from broker_faas.layout import (
    consumers,
    dead_record,
    event_headers,
    event_record,
    faas_headers,
    header_lines,
    origin,
    replay_record,
    retry_record,
)
from broker_faas.workers.frames import Done, Log, Outcome, Run, Splitter, decode_for_executor, decode_for_worker, encode
from tests.strategies import events

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
QUEUE = Queue("shop--reserve", ("orders.created",))
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b"\x1b[", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"%", b"%0d%0a", b"%zz", b":", b": ", b"ce-", b'"',
    b"CE-ID: x\r\n", b"ce-id: 2\r\n", b"Nats-Rollup: all\r\n", b"Faas-Attempts: -1\r\n", b"content-type: application/cloudevents+json\r\n",
    b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]", b",", b"null", b"1e400", b"-0", b"9" * 400, b"[" * 400, b"-1", b"+1", b"1_0",
    b"${", b"$${", b"${X}", b"=", b"'''", b'"""', b"#", b" " * 50, b".", b"..", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc1", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"MSG a 7 1\r\nx\r\n",
    b"HMSG a 7 12 12\r\nNATS/1.0\r\n\r\n\r\n", "٣".encode(), b"\xef\xbb\xbf",
]  # fmt: skip


@st.composite
def bent(draw: st.DrawFn, whole: bytes) -> bytes:
    """Up to four changes: a bit, a cut, a piece twice, a piece elsewhere, something put in."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        one, two = sorted((draw(st.integers(0, len(raw))), draw(st.integers(0, len(raw)))))
        match draw(st.sampled_from(["flip", "cut", "twice", "insert", "move", "end"])):
            case "flip" if one < len(raw):
                raw[one] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del raw[one : one + min(two - one, 30)]
            case "twice":
                raw[one:one] = raw[one : one + min(two - one, 200)]
            case "move":
                piece = raw[one : one + 20]
                raw[two:two] = piece
            case "end":
                del raw[one:]
            case _:
                raw[one:one] = draw(st.sampled_from(TOKENS))
    return bytes(raw)


def cut(data: st.DataObject, raw: bytes) -> list[bytes]:
    """In pieces, anywhere."""
    places = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=8))})
    return [raw[start:end] for start, end in itertools.pairwise(places)]


def tried(error: type[Exception], work: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """(what it made, ""), or (None, what its error says), which is short; any other error is a failure of the test."""
    try:
        return work(*args), ""
    except error as raised:
        said = str(raised)
    assert 0 < len(said) < 1000
    return None, said


# --- events -------------------------------------------------------------------------------------------------


@FUZZ
@given(events(), st.data())
def test_bent_json_is_an_event_that_survives_or_an_event_error(event: CloudEvent, data: st.DataObject) -> None:
    read, said = tried(EventError, from_json, data.draw(bent(to_json(event))))

    assert said or from_json(to_json(read)) == read
    assert said or CloudEvent.from_headers(read.headers(), read.data or b"").attributes == read.attributes


@FUZZ
@given(st.lists(events(), max_size=3), st.data())
def test_a_bent_batch_is_events_or_an_event_error(batch: list[CloudEvent], data: st.DataObject) -> None:
    read, said = tried(EventError, batch_from_json, data.draw(bent(batch_to_json(batch))))

    assert said or batch_from_json(batch_to_json(read)) == read


@FUZZ
@given(events(), st.booleans(), st.data())
def test_a_bent_http_message_is_events_or_an_event_error(event: CloudEvent, structured: bool, data: st.DataObject) -> None:
    headers, body = to_http(event, structured)
    block = "\n".join(f"{name}: {value}" for name, value in headers.items()).encode()
    lines = [line.partition(": ") for line in data.draw(bent(block)).decode("latin-1").split("\n")]
    read, _ = tried(EventError, from_http_batch, {name: value for name, _, value in lines}, data.draw(bent(body)))

    for one in read or []:
        assert from_json(to_json(one)).attributes.items() >= one.attributes.items()


@FUZZ
@given(events(), st.data())
def test_a_bent_header_block_is_an_event_that_survives_or_an_event_error(event: CloudEvent, data: st.DataObject) -> None:
    raw = data.draw(bent(event.headers()))
    read, said = tried(EventError, CloudEvent.from_headers, raw, event.data or b"")

    assert said or CloudEvent.from_headers(read.headers(), read.data or b"").attributes == read.attributes
    assert said or b"\r\nNats-" not in read.headers()


@FUZZ
@given(events(), st.integers(0, 5), st.data())
def test_bent_records_can_be_retried_die_and_be_replayed_and_nothing_of_them_acts(
    event: CloudEvent, kind: int, data: st.DataObject
) -> None:
    plain = event_record("orders.created", event)
    first = Delivery(plain.subject, plain.headers, plain.data, 7, 1, 1e9, "events/q", "")
    retry = retry_record(QUEUE, first, 1, 1e9)
    record = [plain, retry._replace(subject="go.shop--reserve"), retry][kind % 3]
    bent_one = Delivery(record.subject, data.draw(bent(record.headers)), record.data, 7, 2, 1e9, "events/q", "")
    dead = dead_record(QUEUE, bent_one, reason="r", detail="d", attempts=2, now=1e9, version="v")
    kept = Delivery(dead.subject, dead.headers, dead.data, 9, 1, 1e9, "dead", "")
    from_ = origin(bent_one)

    assert from_.attempts >= 0
    for made in (retry_record(QUEUE, bent_one, 2, 1e9), dead, replay_record(QUEUE, kept, 0)):
        acting = [line for line in made.headers.split(b"\r\n") if line.lower().startswith(b"nats-")]
        assert acting == (
            [line for line in retry.headers.split(b"\r\n") if line.startswith(b"Nats-")] if made.subject.startswith("at.") else []
        )
        assert made.subject.isascii()
        assert len(made.subject.split()) == len(made.msg_id.split()) == 1
        assert made.headers.endswith(event_headers(bent_one.headers))


@FUZZ
@given(events(), st.data())
def test_bent_lines_of_headers_are_read_as_some_names_and_values(event: CloudEvent, data: st.DataObject) -> None:
    raw = data.draw(bent(b"NATS/1.0\r\nFaas-Topic: a%20b\r\nNats-Sequence: 5\r\n" + event.headers()))

    assert all(name == name.lower().strip() for name, _ in header_lines(raw))
    assert all(isinstance(value, str) for value in faas_headers(raw).values())
    assert not any(line[:5].lower() in (b"nats-", b"faas-") for line in event_headers(raw).split(b"\r\n"))


# --- executors ----------------------------------------------------------------------------------------------


@FUZZ
@given(events(), st.integers(0, 2**64 - 1), st.data())
def test_bent_frames_are_frames_or_protocol_errors(event: CloudEvent, id: int, data: st.DataObject) -> None:
    outcome = Outcome(id, 0, "r", "d", 1.5, [("t", dict(event.attributes), event.data)])
    frames: list[Any] = [
        Done([1, id], [outcome]),
        Log([(id, "stdout", event.id)]),
        Run([(id, 0, "t", 1, event.headers(), event.data or b"")]),
    ]
    whole = b"".join(bytes(encode(frame)) for frame in frames)
    raw = data.draw(bent(whole))
    at_once, _ = tried(ProtocolError, Splitter(limit=1 << 20).feed, raw)
    splitter = Splitter(limit=1 << 20)
    seen: list[bytes] = []
    for chunk in cut(data, raw):
        bodies, said = tried(ProtocolError, splitter.feed, chunk)
        if said:
            assert "the limit is" in said
            return
        seen += map(bytes, bodies)
        for body in bodies:
            for decode in (decode_for_worker, decode_for_executor):
                frame, said = tried(ProtocolError, decode, body)
                assert said or decode(msgspec.msgpack.encode(frame)) == frame or "nan" in repr(frame)

    assert seen == [bytes(body) for body in at_once]


# --- the bus ------------------------------------------------------------------------------------------------

WIRE = (
    b"INFO {}\r\nPING\r\nHMSG i.0-1 7 $JS.ACK.events.shop--reserve.1.5.5.17.0 12 13\r\nNATS/1.0\r\n\r\nx\r\n"
    b"MSG i.0-1 7 $JS.ACK.events.shop--reserve.2.6.6.17.0 2\r\nhi\r\nHMSG i.0-1 7 28 28\r\nNATS/1.0 408 Timed out\r\n\r\n\r\n\r\n+OK\r\n"
)


@FUZZ
@given(st.data())
def test_a_bent_stream_is_the_same_messages_however_it_is_cut_or_an_error(data: st.DataObject) -> None:
    raw = data.draw(bent(WIRE))
    seen = []
    for chunks in ([raw], cut(data, raw), [bytes([byte]) for byte in raw]):
        messages: list[tuple[bytes, ...]] = []
        lines: list[bytes] = []
        failed = False
        cutter = Cutter({7: lambda *message, into=messages: into.append(message)}, lines.append)
        try:
            for chunk in chunks:
                cutter.feed(chunk)
        except (ValueError, IndexError):
            failed = True
        seen.append((messages, lines, failed))
        for subject, reply, headers, payload in messages:
            assert headers + payload in raw
            assert subject in raw
            assert reply in raw

    assert seen[0] == seen[1] == seen[2]


class NoConnection:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.client = self
        self.afterwards: list[Any] = []

    def fresh_inbox(self) -> str:
        return "i"

    def write(self, raw: bytes) -> bool:
        self.written.append(raw)
        return True


ANSWERS = (
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"",
)


async def _arrive(data: st.DataObject) -> None:
    connection: Any = NoConnection()
    subscription = PullSubscription(connection, QUEUE, consumers(QUEUE), 10, lambda work: work.close())
    durables = {durable.source for durable in subscription._all}
    for _ in range(5):
        subject = data.draw(bent(b"i.0-1"))
        reply = data.draw(
            st.just(b"")
            | bent(b"$JS.ACK.events.shop--reserve.2.6.6.17.0")
            | bent(b"$JS.ACK.domain.hash.retries.shop--reserve.3.6.6.17.0.x")
        )
        subscription._arrived(subject, reply, data.draw(bent(data.draw(st.sampled_from(ANSWERS)))), b"x")
    held = [*subscription._held.values()]
    for one in held:
        assert one.source in durables
        assert one.token.startswith("$JS.ACK.")
        assert one.deliveries >= 0
        if not one.token.startswith(one.consumer.first):
            assert all(isinstance(number, int | float) for number in (one.seq, one.stored_at))
    subscription.settle(held)
    subscription.tick()

    assert all(durable.asked >= 0 for durable in subscription._all)
    assert not any(b"$JS.API" in raw and b"MSG.NEXT" not in raw for raw in connection.written)


@FUZZ
@given(st.data())
def test_bent_answers_to_pull_requests_are_deliveries_statuses_or_nothing(data: st.DataObject) -> None:
    with asyncio.Runner() as runner:
        runner.run(_arrive(data))


@FUZZ
@given(st.text(max_size=60) | st.lists(st.text(max_size=5), max_size=13).map(".".join))
def test_any_reply_subject_is_some_fields(token: str) -> None:
    assert all(isinstance(word, str) for word in fields(token))


@FUZZ
@given(st.data())
def test_a_bent_verdict_of_the_server_is_one_or_no_json(data: st.DataObject) -> None:
    good = b'{"stream":"events","seq":5,"duplicate":true}', b'{"error":{"code":503,"err_code":10077,"description":"x"}}'
    try:
        code, text, duplicate, _ = verdict(b"", data.draw(bent(data.draw(st.sampled_from(good)))))
    except (orjson.JSONDecodeError, AttributeError):
        return  # the connection is left: test_a_server_that_writes_garbage_costs_a_reconnect
    assert (code is not None, text is not None, duplicate is not None) == (True, True, True)


# --- configuration ------------------------------------------------------------------------------------------

CONFIG = b"""# a project
project = "shop"
modules = ["shop.orders", 'shop.mails']
keep = 86_400
[bus]
url = "tls://u:${X}@host:4222,nats://127.0.0.1"
max_bytes = 8_589_934_592
[worker]
grace = 2.5
pass_env = [ "HOME", # c
  "PATH" ]
[function.reserve]
timeout = 60
retry = {max_attempts = 3, "min_backoff" = 0.5}
env.A = '''
x'''
[function."f".env]
B = "$${X} \\"${X}"
"""


@FUZZ
@given(data=st.data())
def test_a_bent_configuration_is_one_or_a_config_error_with_its_place(data: st.DataObject, tmp_path: Path) -> None:
    raw = data.draw(bent(CONFIG))
    path = tmp_path / "faas.toml"
    path.write_bytes(raw)
    config, said = tried(ConfigError, load, path, {"X": "hunter2"})
    lines = range(1, raw.count(b"\n") + 2)

    assert "hunter2" not in said
    if said:
        assert any(f"faas.toml:{line}: " in said for line in lines) or said.startswith(f"{path} ")  # about all of it
    else:
        assert config.project
        assert {int(origin.removeprefix("faas.toml:")) for origin in config.origins.values()} <= {*lines}


@FUZZ
@given(st.text(alphabet="ab.=[]{}\"'\\# \n,1", max_size=60))
def test_lines_of_any_text_that_is_toml_are_the_lines_of_its_keys(text: str) -> None:
    found = toml.lines(text)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError):
        return
    for key, value in table.items():
        if "\\" not in text and not isinstance(value, list | dict):
            assert key in text.split("\n")[found[(key,)] - 1]
