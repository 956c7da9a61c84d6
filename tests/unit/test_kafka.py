"""Options and decisions of connectors/kafka.py; what it does with a broker: tests/integration/test_kafka.py."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from aiokafka.structs import OffsetAndMetadata
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.config import ConnectorConfig
from broker_faas.connectors.batch import Refused
from broker_faas.connectors.driver import driver
from broker_faas.connectors.kafka import KafkaConnector
from broker_faas.connectors.kafka_parts.offsets import OURS, begin
from broker_faas.connectors.kafka_parts.records import item, items
from broker_faas.errors import ConfigError, SourceRefused
from broker_faas.event import CloudEvent

LEAST: dict[str, Any] = {"servers": "localhost:9092", "group": "g", "topics": ["t"]}
REMOTE: dict[str, Any] = {"servers": "10.0.0.1:9092,localhost:9092"}
LOGIN: dict[str, Any] = {"username": "u", "password": "secret!"}


def made(**options: Any) -> KafkaConnector:
    places = dict.fromkeys(["type", *options], "faas.toml:2")
    config = ConnectorConfig(name="c", type="kafka", options=LEAST | options, place="faas.toml:1", places=places)
    one = driver(config)
    assert isinstance(one, KafkaConnector)
    return one


@pytest.mark.parametrize(
    "options",
    [
        {},
        REMOTE | {"insecure": True},
        REMOTE | {"security_protocol": "SSL"},
        REMOTE | LOGIN | {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"},
        {"servers": "[::1]:9092, 127.0.0.1:1"},
    ],
)
def test_options_are_taken(options: dict[str, Any]) -> None:
    assert made(**options).start == "earliest"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (REMOTE, r"another machine \(10.0.0.1\): it needs TLS"),
        (REMOTE | LOGIN | {"security_protocol": "SASL_PLAINTEXT"}, "it needs TLS"),
        *[
            ({"servers": bad}, "servers must look like")
            for bad in ("", "a", "a:", ":1", "a:0", "a:99999", "kafka://a:1", "localhost:1,", "u:p@a:1")
        ],
        ({"topics": []}, "topics or topic_pattern"),
        ({"topic_pattern": "x"}, "topics or topic_pattern"),
        ({"topics": ["a b"]}, "cannot be the name of a topic"),
        ({"topics": ["t", "t"]}, "something twice"),
        ({"topics": [], "topic_pattern": "("}, "no regular expression"),
        ({"group": ""}, "group must not be empty"),
        ({"event_type": "a\nb"}, "event_type must be text"),
        ({"batch": 0}, "batch must lie"),
        ({"start": "first"}, "Invalid enum value"),
        (LOGIN, "only with them"),
        ({"security_protocol": "SASL_SSL"}, "username and password must be given"),
        ({"cert_file": "x"}, "given together"),
        ({"session_timeout": float("nan")}, "session_timeout and rebalance_timeout"),
        ({"heartbeat_interval": 11}, "a third of session_timeout"),
        ({"server": "x"}, "did you mean 'servers'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        made(**options)

    assert "secret!" not in str(raised.value)


def test_the_password_is_in_no_repr() -> None:
    assert "secret!" not in repr(made(security_protocol="SASL_SSL", **LOGIN))


class Absent:
    """A finder of modules: aiokafka is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "aiokafka":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_its_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [name for name in sys.modules if name.startswith(("aiokafka", "broker_faas.connectors.kafka_parts."))]
    for name in ("broker_faas.connectors.kafka", *parts):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])

    with pytest.raises(ConfigError, match=r"needs aiokafka, which is not installed: pip install 'broker-faas\[kafka\]'"):
        made()


@pytest.mark.parametrize(
    ("stored", "committed", "offset"),
    [
        (None, None, None),  # nobody has read it
        (None, OffsetAndMetadata(7, OURS), 7),  # a first start, or a new bus
        (None, OffsetAndMetadata(7, ""), 7),  # a group that others used before
        ("9", None, 10),  # the group's offsets expired
        ("9", OffsetAndMetadata(7, OURS), 10),  # a crash before the commit
        ("9", OffsetAndMetadata(70, OURS), 10),  # a bus restored from an old copy
        ("9", OffsetAndMetadata(7, ""), 7),  # somebody set them
        ("9", OffsetAndMetadata(70, "x"), 70),
    ],
)
def test_where_a_partition_begins(stored: str | None, committed: OffsetAndMetadata | None, offset: int | None) -> None:
    assert begin("t/0", stored, committed) == offset


@pytest.mark.parametrize("stored", ["", "-1", "1_0", "٣", "9" * 5000, "x\n"])
def test_a_position_that_is_no_offset_is_refused(stored: str) -> None:
    with pytest.raises(SourceRefused, match="is no offset") as raised:
        begin("t/0", stored, None)

    assert len(str(raised.value)) < 300


names = st.one_of(st.sampled_from(["ce_id", "ce_type", "ce_specversion", "ce_source", "content-type", "traceparent"]), st.text())
blobs = st.one_of(st.none(), st.binary(), st.sampled_from([b"1.0", b"text/plain", b"application/cloudevents+json", b"a/b; c=\x7f"]))
numbers = st.integers(-(2**63), 2**63 - 1)


@given(numbers, st.lists(st.tuples(names, blobs), max_size=6), blobs, blobs)
def test_any_record_is_an_event_that_the_bus_can_hold_or_refused(
    timestamp: int, headers: list[tuple[str, bytes | None]], key: bytes | None, value: bytes | None
) -> None:
    got = item(ConsumerRecord("t", 0, 5, timestamp, 0, key, value, None, -1, -1, tuple(headers)), "/p/c", "kafka.record")
    if isinstance(got, Refused):
        assert (got.where, got.data) == ("t/0/5", value or b"")
    else:
        assert CloudEvent.from_headers(got.headers(), got.data or b"").attributes == got.attributes
        assert got.headers() == CloudEvent.of(dict(got.attributes), got.data).headers()
        assert got.data == value or got.attributes["id"] != "t/0/5"


@given(
    st.lists(st.tuples(numbers, st.lists(st.tuples(names, blobs), max_size=1), blobs), min_size=1, max_size=8),
    st.sampled_from(["/p/c", "/ü %"]),
)
def test_records_of_one_partition_become_what_each_becomes_alone(many: list[tuple[int, Any, bytes | None]], source: str) -> None:
    records = [ConsumerRecord("t", 3, n, time, 0, key, b"v", None, -1, -1, tuple(headers)) for n, (time, headers, key) in enumerate(many)]

    made = items(records, source, "a ü")

    assert made == [item(record, source, "a ü") for record in records]
    for event in made:
        if isinstance(event, CloudEvent):
            assert event.headers() == CloudEvent.of(dict(event.attributes), event.data).headers()
