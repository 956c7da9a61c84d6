"""Where input enters, for tests/unit/test_corpus.py: each door takes what a case gives and returns facts of what came of it, or raises."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from broker_faas import function
from broker_faas.bus import Delivery, Queue, Record
from broker_faas.buses.wire import Cutter
from broker_faas.codec import batch_from_json, from_http, from_json, to_json
from broker_faas.config import load
from broker_faas.decide import DONE, decide
from broker_faas.errors import ConfigError, EventError, ProtocolError, Reject
from broker_faas.event import CloudEvent
from broker_faas.invoke import classify
from broker_faas.layout import back_record, dead_record, event_record, event_subject, replay_record, retry_record
from broker_faas.retry import RetryPolicy
from broker_faas.topics import check_pattern, check_topic
from broker_faas.workers.dispatch import Pool
from broker_faas.workers.feed import Feed
from broker_faas.workers.frames import Outcome, Splitter, decode_for_executor, decode_for_worker
from broker_faas.workers.settle import _outputs, _unstored

Facts = Mapping[str, Any]
BASE = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
HEADERS = b"ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n"
HEAD = b"project = 'shop'\nmodules = ['shop.orders']\n"
QUEUE = Queue("shop--reserve", ("orders.created",))


class Dead(Exception):
    """The event would be a dead letter now."""


def facts(event: CloudEvent) -> Facts:
    return {**event.attributes, "size": len(event.data or b"")}


# --- events -------------------------------------------------------------------------------------------------


def json_text(given: Any) -> bytes:
    match given:
        case str():
            return given.encode("utf-8", "surrogatepass")
        case bytes():
            return given
        case {"raw": str(more)}:
            return json.dumps(BASE)[:-1].encode() + more.encode() + b"}"
        case {"numbered": str(members), "times": int(times)}:
            more = ",".join(members.replace("%d", str(n)) for n in range(times))
            return json.dumps(BASE)[:-1].encode() + b"," + more.encode() + b"}"
        case {"data": str(members), "times": int(times)}:
            more = ",".join(members.replace("%d", str(n)) for n in range(times))
            return json.dumps(BASE)[:-1].encode() + b',"data":{' + more.encode() + b"}}"
    changed: dict[str, Any] = BASE | given.get("event", {})
    return json.dumps({name: value for name, value in changed.items() if name not in given.get("without", ())}).encode()


def read_json(text: bytes) -> Facts:
    return facts(from_json(text))


def read_batch(text: bytes) -> Facts:
    return {"events": len(batch_from_json(text))}


def read_http(given: Any) -> Facts:
    return facts(from_http(given["headers"], given["body"].encode()))


def read_record(given: Any) -> Facts:
    """As an executor reads what it was handed."""
    try:
        return facts(CloudEvent.from_headers(given["headers"].encode(), given.get("data", "").encode()))
    except EventError as error:
        failure = classify(error)
        decision = decide(failure.status, failure.reason, failure.after, 1, RetryPolicy(max_attempts=1000))
        assert decision.fate == "dead"
        raise Dead(decision.reason) from None


def build(given: Any) -> Facts:
    return facts(CloudEvent(**({"id": "1", "source": "/s", "type": "t"} | given)))


def build_huge(digits: int) -> Facts:
    return build({"x": 10**digits if digits > 0 else -(10**-digits)})


def store(given: Any) -> Facts:
    record = event_record("a", CloudEvent(**({"id": "1", "source": "/s", "type": "t"} | given)))
    return {"size": len(record.headers)}


def through_unread(given: Any) -> Facts:
    """Data goes through the bus and through JSON as the bytes that came."""
    data = given["data"].encode() if isinstance(given["data"], str) else given["data"]
    event = CloudEvent(type="t", source="/s", id="1", data=data, datacontenttype=given.get("datacontenttype"))
    assert CloudEvent.from_headers(event.headers(), data).data == data
    assert from_json(to_json(event)).data == data
    return facts(event)


def decoded(given: Any) -> Facts:
    return {"value": CloudEvent(type="t", source="/s", id="1", data=given["data"].encode()).json()}


def decoded_text(given: Any) -> Facts:
    data, kind = given["data"].encode(), given["datacontenttype"]
    return {"value": CloudEvent(type="t", source="/s", id="1", data=data, datacontenttype=kind).text()}


def encoded(given: Any) -> Facts:
    """Headers are lines of visible ASCII, and say the same afterwards."""
    event = CloudEvent(type="t", source="/s", id="1", **given)
    lines = event.headers().split(b"\r\n")
    assert all(33 <= byte < 127 for line in lines for byte in line.replace(b": ", b":", 1))
    assert CloudEvent.from_headers(event.headers(), b"") == event
    return facts(event)


def foreign_headers(given: Mapping[str, str]) -> Facts:
    """All that we make of a record with such headers is as if it had none, and so is the event, over HTTP too."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items()).encode()
    assert copies(lines + HEADERS) == copies(HEADERS + lines) == copies(HEADERS)
    assert CloudEvent.from_headers(lines + HEADERS, b"") == CloudEvent.from_headers(HEADERS, b"")
    http = dict(line.split(": ") for line in HEADERS.decode().splitlines())
    assert from_http({**http, **given}, b"") == from_http(http, b"")
    return {}


def copies(headers: bytes) -> list[Record]:
    """Every record that is ever made of one that is stored: retried, handed back, dead, replayed."""
    delivery = Delivery(event_subject("orders.created", None), headers, b"", 7, 1, 1e9, "events/shop--reserve", "")
    dead = dead_record(QUEUE, delivery, reason="r", detail="", attempts=1, now=1e9, version="v")
    kept = Delivery(dead.subject, dead.headers, b"", 9, 1, 1e9, "dead", "")
    return [retry_record(QUEUE, delivery, 1, 1e9), back_record(QUEUE, delivery, 0, 1e9), dead, replay_record(QUEUE, kept, 0)]


# --- names --------------------------------------------------------------------------------------------------


def topic(given: str) -> Facts:
    assert check_topic(given) == given
    return {}


def pattern(given: str) -> Facts:
    assert check_pattern(given) == given
    return {}


def apart(given: Any) -> Facts:
    event = CloudEvent(type="t", source="/s", id="1")
    topics, keys = given.get("topics", ["a", "a"]), given.get("keys", [None, None])
    records = [event_record(topic, event.replace(partitionkey=key)) for topic, key in zip(topics, keys, strict=True)]
    assert records[0].subject != records[1].subject or "keys" in given
    assert records[0] != records[1]
    assert records[0].msg_id != records[1].msg_id or "keys" in given
    return {}


def function_name(given: str) -> Facts:
    @function(on="a", name=given or None)
    async def handler(event: CloudEvent) -> None: ...

    return {"name": handler.name}


# --- configuration ------------------------------------------------------------------------------------------


class Files:
    """The door for faas.toml: needs a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "faas.toml"

    def prepare(self, given: Any) -> Path:
        path = self._path
        match given:
            case {"add": more}:
                path.write_bytes(HEAD + (more.encode() if isinstance(more, str) else more))
            case {"raw": raw}:
                path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
            case {"file": "fifo"}:
                os.mkfifo(path)
            case {"file": "folder"}:
                path.mkdir()
            case {"file": "socket"}:
                with socket.socket(socket.AF_UNIX) as listening:
                    here = os.getcwd()
                    os.chdir(path.parent)  # a socket's path has 108 bytes
                    listening.bind(path.name)
                    os.chdir(here)
            case {"file": "loop"}:
                path.symlink_to(path)
            case {"file": "link"}:
                (path.parent / "other").write_bytes(HEAD)
                path.symlink_to("other")
            case {"file": "/dev/zero"}:
                path.symlink_to("/dev/zero")
            case {"file": "missing"}:
                pass
        return path

    def __call__(self, path: Path) -> Facts:
        config = load(path, {"TWICE": "${SECRET}", "SECRET": "hunter2"})
        env = {name: value for one in config.functions.values() for name, value in one.env.items()}
        return {**env, "grace": config.worker.grace, **config.origins}


def project_name(given: str) -> bytes:
    return f"project = {json.dumps(given, ensure_ascii=False)}\nmodules = ['a']".encode()


def module_name(given: str) -> bytes:
    return f"project = 'a'\nmodules = [{json.dumps(given, ensure_ascii=False)}]".encode()


# --- what executors and servers write -----------------------------------------------------------------------


def frame(given: str | bytes) -> Facts:
    """Both sides refuse it, whatever way it is cut."""
    body = given.encode() if isinstance(given, str) else given
    stream = len(body).to_bytes(4, "big") + body
    whole = Splitter().feed(stream)
    splitter = Splitter()
    halves = [one for part in (stream[:3], stream[3:5], stream[5:]) for one in splitter.feed(part)]
    assert [bytes(one) for one in whole] == [bytes(one) for one in halves] == [body]
    refused = 0
    for decode in (decode_for_executor, decode_for_worker):
        try:
            decode(whole[0])
        except ProtocolError as error:
            last = error
            refused += 1
    if refused == 2:
        raise last
    return {}


def output(given: Any) -> Facts:
    """What an executor says its call sent, when it is about to be stored."""
    attributes = given.get("attributes", {})
    if not given.get("whole"):
        attributes = {"id": "1", "source": "/s", "type": "t"} | attributes
    feed = Feed(cast(Any, SimpleNamespace(version="v")), QUEUE, cast(Pool, None), 0)
    delivery = Delivery(event_subject("a", None), HEADERS, b"", 7, 1, 1e9, "events/shop--reserve", "t")
    ((held,), _) = feed.take([delivery], count(1))
    sent = [(given.get("topic", "t"), attributes, given.get("data", "x").encode())]
    unstored = _unstored(held, Outcome(1, 0, "", "", None, sent), DONE, _outputs(frozenset()))
    if unstored.decision.fate == "dead":
        assert [record.subject for record in unstored.records] == ["dead.shop--reserve"]
        assert not any(line.lower().startswith(b"nats-") for line in unstored.records[0].headers.split(b"\r\n"))
        raise Dead(unstored.decision.reason)
    return {"records": len(unstored.records)}


def wire(given: str) -> Facts:
    """However it is cut: the same messages for us, the same lines for others."""
    seen = []
    for size in (1 << 30, 4096) if len(given) > 100 else (1 << 30, 1, 3):
        messages: list[tuple[bytes, ...]] = []
        lines: list[bytes] = []
        cutter = Cutter({7: lambda *message, into=messages: into.append(message)}, lines.append)
        for start in range(0, len(given), size):
            cutter.feed(given[start : start + size].encode())
        seen.append((messages, lines))
    assert all(one == seen[0] for one in seen)
    return {"messages": len(seen[0][0])}


def same(given: Any) -> Any:
    return given


Refusal = type[Exception] | tuple[type[Exception], ...]
DOORS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Facts], Refusal]] = {
    # name: (what makes its input of what a case gives, the door, how it refuses)
    "json": (json_text, read_json, EventError),
    "batch": (json_text, read_batch, EventError),
    "http": (same, read_http, EventError),
    "record": (same, read_record, EventError),
    "build": (same, build, EventError),
    "build huge": (same, build_huge, EventError),
    "store": (same, store, EventError),
    "opaque": (same, through_unread, EventError),
    "decoded": (same, decoded, EventError),
    "decoded text": (same, decoded_text, EventError),
    "encoded": (same, encoded, EventError),
    "foreign headers": (same, foreign_headers, EventError),
    "topic": (same, topic, EventError),
    "pattern": (same, pattern, EventError),
    "apart": (same, apart, EventError),
    "function name": (same, function_name, ConfigError),
    "frame": (same, frame, ProtocolError),
    "output": (same, output, (EventError, Reject)),
    "wire": (same, wire, (ValueError, IndexError)),
}
