"""Events in AMQP 0-9-1 messages, as RabbitMQ carries them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.amqp_binding import from_amqp, to_amqp
from broker_faas.errors import EventInvalid
from broker_faas.event import CloudEvent
from tests.strategies import events

CORE = {"specversion": "1.0", "type": "orders.created", "source": "/shop", "id": "1"}


def headers(prefix: str = "ce-", **more: Any) -> dict[str, Any]:
    return {prefix + name: value for name, value in (CORE | more).items()}


@given(events(), st.booleans())
def test_an_event_survives_a_message(made: CloudEvent, structured: bool) -> None:
    read = from_amqp(*to_amqp(made, structured))

    assert read is not None
    assert read.attributes == made.attributes or structured  # JSON says its own type of data
    assert (read.data or b"") == (made.data or b"")


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_", "cloudEvents:", "CE-", "cloudevents:"])
def test_four_spellings_are_read(prefix: str) -> None:
    read = from_amqp(headers(prefix, subject="é 100%41"), "text/plain", b"x")

    assert read == CloudEvent(**CORE, subject="é 100%41", datacontenttype="text/plain", data=b"x")


def test_headers_are_written_with_a_dash_and_nothing_is_percent_encoded() -> None:
    event = CloudEvent(type="t", source="/s", id="é 1", data={"a": 1})

    assert to_amqp(event) == (
        {"ce-specversion": "1.0", "ce-id": "é 1", "ce-source": "/s", "ce-type": "t"},
        "application/json",
        b'{"a":1}',
    )
    assert to_amqp(event, structured=True)[1] == "application/cloudevents+json; charset=UTF-8"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (b"bytes", "bytes"),
        (bytearray(b"\xff"), "/w=="),
        (7, "7"),
        (-(2**31), "-2147483648"),
        (True, "true"),
        (7.0, "7"),
        (datetime(2026, 1, 31, 9, 30, tzinfo=UTC), "2026-01-31T09:30:00Z"),
        (datetime(2026, 1, 31, 9, 30), "2026-01-31T09:30:00Z"),
        (None, None),
    ],
)
def test_typed_values_become_canonical_strings(value: Any, text: str | None) -> None:
    read = from_amqp(headers(extra=value), None, b"")

    assert read is not None
    assert read.get("extra") == text


@pytest.mark.parametrize("value", [2**31, 0.5, float("nan"), float("inf"), {"a": 1}, [1], Decimal("1.5"), b"\xff", "\x00", "\ud800"])
def test_values_that_no_attribute_may_have_are_refused(value: Any) -> None:
    with pytest.raises(EventInvalid, match="'extra'"):
        from_amqp(headers(extra=value), None, b"")


def test_the_content_type_wins_over_headers() -> None:
    body = json.dumps(CORE | {"id": "of the body"}).encode()
    read = from_amqp(headers(), "Application/CloudEvents+JSON; charset=utf-8", body)

    assert read is not None
    assert read.id == "of the body"


def test_a_batch_and_other_formats_are_refused() -> None:
    with pytest.raises(EventInvalid, match="batch"):
        from_amqp(headers(), "application/cloudevents-batch+json", b"[]")
    with pytest.raises(EventInvalid, match="only JSON"):
        from_amqp(headers(), "application/cloudevents+avro", b"")


@pytest.mark.parametrize("foreign", [{}, {"ce_id": "1"}, {"x": 1}, {"ce-": "1.0"}, {"ce-specversion": None}, {"force-specversion": "1.0"}])
def test_a_message_without_specversion_is_no_event(foreign: dict[str, Any]) -> None:
    assert from_amqp(foreign, "application/json", b"{}") is None


def test_what_says_it_is_an_event_and_breaks_a_rule_is_refused() -> None:
    with pytest.raises(EventInvalid, match="'id' is missing"):
        from_amqp({"ce-specversion": "1.0"}, None, b"")
    with pytest.raises(EventInvalid, match="not allowed"):
        from_amqp(headers(**{"a b": "x"}), None, b"")
    with pytest.raises(EventInvalid, match="given twice"):
        from_amqp(headers() | {"cloudEvents:id": "2"}, None, b"")
    with pytest.raises(EventInvalid, match=r"only '1\.0'"):
        from_amqp(headers(specversion=2), None, b"")


def test_the_same_attribute_in_two_spellings_is_read_once() -> None:
    assert from_amqp(headers("ce-") | headers("cloudEvents_"), None, b"") == CloudEvent(**CORE)


def test_a_name_that_no_header_has_room_for_is_refused() -> None:
    with pytest.raises(EventInvalid, match="has room for 252"):
        to_amqp(CloudEvent(**CORE, **{"a" * 253: "x"}))


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_", "cloudEvents:"])
@given(made=events())
def test_an_event_survives_in_any_spelling(made: CloudEvent, prefix: str) -> None:
    written, content_type, body = to_amqp(made, prefix=prefix)
    read = from_amqp(written, content_type, body)

    assert all(name.startswith(prefix) for name in written)
    assert read is not None
    assert read.attributes == made.attributes


def test_a_structured_message_has_its_key_where_exchanges_see_it() -> None:
    assert to_amqp(CloudEvent(**CORE, partitionkey="é"), structured=True)[0] == {"ce-partitionkey": "é"}


def test_a_content_type_that_amqp_has_no_room_for_is_refused() -> None:
    with pytest.raises(EventInvalid, match="has room for 255"):
        to_amqp(CloudEvent(**CORE, datacontenttype="a/b;c=" + "x" * 250))
