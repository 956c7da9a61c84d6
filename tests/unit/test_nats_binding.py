"""Events in NATS messages; and the official SDK reads them, where it has HTTP's binding for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.errors import EventInvalid
from broker_faas.event import CloudEvent
from broker_faas.nats_binding import from_nats, to_nats
from tests.strategies import events


@given(events(), st.booleans())
def test_an_event_survives_a_message(made: CloudEvent, structured: bool) -> None:
    read = from_nats(*to_nats(made, structured))

    assert read is not None
    assert read.attributes == made.attributes or structured  # JSON says its own type of data
    assert (read.data or b"") == (made.data or b"")


def test_binary_has_all_attributes_in_headers_and_structured_says_so() -> None:
    event = CloudEvent(type="t", source="/s", id="é 1", data={"a": 1})

    assert to_nats(event) == (
        b"ce-specversion: 1.0\r\nce-id: %C3%A9%201\r\nce-source: /s\r\nce-type: t\r\nce-datacontenttype: application/json\r\n",
        b'{"a":1}',
    )
    headers, data = to_nats(event, structured=True)
    assert headers == b"Content-Type: application/cloudevents+json; charset=UTF-8\r\n"
    assert json.loads(data)["data"] == {"a": 1}


def test_a_message_without_headers_is_an_event_if_its_json_says_so() -> None:
    assert from_nats(b"", b'{"specversion":"1.0","id":"1","source":"/","type":"t"}') == CloudEvent(type="t", source="/", id="1")
    for data in (b"", b"x", b'{"a":1}', b'["specversion"]', b'{"specversion"', b'{"specversion":null}'):
        assert from_nats(b"", data) is None


def test_what_says_that_it_is_an_event_and_breaks_a_rule_is_refused() -> None:
    with pytest.raises(EventInvalid):
        from_nats(b"NATS/1.0\r\nce-id: 1\r\n\r\n", b"")
    with pytest.raises(EventInvalid):
        from_nats(b"Content-Type: application/cloudevents-batch+json\r\n", b"[]")
