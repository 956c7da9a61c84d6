"""Events as Kafka messages; the CloudEvents SDK as a second opinion, where its binding keeps to the specification."""

from __future__ import annotations

from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, from_structured, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.errors import EventInvalid
from broker_faas.event import CloudEvent
from broker_faas.kafka_binding import from_kafka, to_kafka
from tests.strategies import events, json_values, names, strings
from tests.unit.test_codec import comparable, same, sdk_attributes

CORE: dict[str, Any] = {"type": "orders.created", "source": "/shop", "id": "1"}
HEADERS = [("ce_specversion", b"1.0"), ("ce_type", b"orders.created"), ("ce_source", b"/shop"), ("ce_id", b"1")]
STRUCTURED = ("content-type", b"application/cloudevents+json; charset=UTF-8")
JSON = b'{"specversion":"1.0","type":"orders.created","source":"/shop","id":"1"}'
FORMAT = JSONFormat()


def event(**changes: Any) -> CloudEvent:
    return CloudEvent(**CORE | changes)


@given(events(), st.booleans())
def test_an_event_survives_kafka(made: CloudEvent, structured: bool) -> None:
    key, headers, value = to_kafka(made, structured)

    assert from_kafka(headers, key, value) == made


@given(events())
def test_what_it_reads_is_written_to_the_bus_as_what_it_was(made: CloudEvent) -> None:
    key, headers, value = to_kafka(made)
    read = from_kafka(headers, key, value)

    assert read is not None
    assert CloudEvent.from_headers(read.headers(), read.data or b"").attributes == made.attributes


def test_a_binary_message_has_its_attributes_in_utf8_headers_and_its_type_in_content_type() -> None:
    key, headers, value = to_kafka(event(data="é", datacontenttype="text/plain", subject="é %", partitionkey="k"))

    assert dict(headers) == dict(HEADERS) | {
        "ce_subject": "é %".encode(),
        "ce_partitionkey": b"k",
        "content-type": b"text/plain",
    }
    assert (key, value) == (b"k", "é".encode())


def test_an_event_without_data_is_a_message_without_a_value() -> None:
    assert to_kafka(event())[2] is None
    assert to_kafka(event(data=b""))[2] == b""
    assert from_kafka(HEADERS, None, None) == event()
    assert from_kafka(HEADERS, None, b"") == event(data=b"")


@pytest.mark.parametrize("name", ["content-type", "Content-Type"])
def test_the_content_type_wins_over_binary_headers(name: str) -> None:
    headers = [*HEADERS, ("ce_id", b"2"), (name, b"APPLICATION/CloudEvents+JSON")]

    assert from_kafka(headers[:3] + headers[4:], None, JSON) == event()


@pytest.mark.parametrize(
    "headers",
    [[], [("content-type", b"application/json")], [("traceparent", b"\xff")], [("ce-id", b"1")], [("ce_x", b"1"), ("ce_x", b"\xff")]],
)
def test_a_message_that_does_not_say_it_is_an_event_is_none(headers: list[tuple[str, bytes]]) -> None:
    assert from_kafka(headers, b"k", JSON) is None


@pytest.mark.parametrize(
    ("key", "partitionkey"), [(None, None), (b"", None), ("é".encode(), "é"), (b"\xff", None), (b"\0\0\0\1", None), (b"a\nb", None)]
)
def test_an_event_without_a_partitionkey_gets_the_key_if_that_is_text(key: bytes | None, partitionkey: str | None) -> None:
    for headers, value in ((HEADERS, None), ([STRUCTURED], JSON)):
        read = from_kafka(headers, key, value)

        assert read is not None
        assert read.partitionkey == partitionkey


def test_a_partitionkey_is_not_replaced_by_the_key() -> None:
    read = from_kafka([*HEADERS, ("ce_partitionkey", b"own")], b"other", None)

    assert read is not None
    assert read.partitionkey == "own"


@pytest.mark.parametrize(
    ("headers", "value", "message"),
    [
        *[
            ([one for one in HEADERS if one[0] != f"ce_{name}"], None, f"'ce_{name}' is missing")
            for name in ("id", "source", "type", "specversion")
        ],
        ([*HEADERS[:3], ("ce_id", b"")], None, "'id' is empty"),
        ([*HEADERS[:3], ("ce_id", b"\xff")], None, r"'id' has U\+DCFF"),
        ([*HEADERS[:3], ("ce_id", None)], None, "'ce_id' is missing"),
        ([*HEADERS[:3], ("ce_id", b"a\r\nNats-Rollup: all")], None, r"U\+000D"),
        ([*HEADERS, ("ce_id", b"2")], None, "'ce_id' is given twice"),
        ([*HEADERS, ("ce_My-Ext", b"2")], None, "is not allowed"),
        ([*HEADERS, ("ce_", b"2")], None, "is not allowed"),
        ([*HEADERS, ("ce_data", b"2")], None, "is not allowed"),
        ([*HEADERS, ("ce_time", b"now")], None, "'time' is no time"),
        ([*HEADERS, ("content-type", b"json")], None, "no media type"),
        ([*HEADERS, ("content-type", b"\xff")], None, r"'datacontenttype' has U\+DCFF"),
        ([STRUCTURED], None, "there is no value to hold the event"),
        ([STRUCTURED], b"{", "no CloudEvent in JSON"),
        ([("content-type", b"application/cloudevents-batch+json")], b"[]", "a batch of events"),
        ([("content-type", b"application/cloudevents+avro")], b"x", "only JSON is supported"),
    ],
)
def test_messages_that_say_they_are_an_event_and_are_none_are_invalid(
    headers: list[tuple[str, bytes | None]], value: bytes | None, message: str
) -> None:
    with pytest.raises(EventInvalid, match=message):
        from_kafka(headers, None, value)


header_names = st.one_of(
    st.sampled_from(["ce_id", "ce_type", "ce_source", "ce_specversion", "ce_x", "content-type", "Content-Type"]), st.text()
)
values = st.one_of(st.none(), st.binary(), st.sampled_from([b"1.0", b"/s", b"application/cloudevents+json"]))


@given(st.lists(st.tuples(header_names, values), max_size=8), st.one_of(st.none(), st.binary()), st.one_of(st.none(), st.binary()))
def test_any_message_is_an_event_or_none_or_invalid(
    headers: list[tuple[str, bytes | None]], key: bytes | None, value: bytes | None
) -> None:
    try:
        read = from_kafka(headers, key, value)
    except EventInvalid:
        return
    if read is not None:
        assert CloudEvent.from_headers(read.headers(), read.data or b"").attributes == read.attributes


# --- second opinion -----------------------------------------------------------------------------------------


@given(events().filter(comparable))
def test_the_sdk_reads_our_binary_messages(made: CloudEvent) -> None:
    key, headers, value = to_kafka(made)

    same(made, from_binary(KafkaMessage(dict(headers), key if made.partitionkey else None, value or b""), FORMAT))


def test_the_sdk_reads_our_structured_messages() -> None:
    made = event(data={"a": 1}, subject="é")
    _, headers, value = to_kafka(made, structured=True)

    same(made, from_structured(KafkaMessage(dict(headers), None, value or b""), FORMAT))


@given(sdk_attributes, st.dictionaries(names, strings, max_size=3), st.dictionaries(strings, json_values, min_size=1, max_size=3))
def test_we_read_the_messages_of_the_sdk(attributes: dict[str, Any], extensions: dict[str, str], data: dict[str, Any]) -> None:
    theirs = SdkEvent(extensions | attributes, data)
    for message in (to_binary(theirs, FORMAT), to_structured(theirs, FORMAT)):
        read = from_kafka(list(message.headers.items()), None, message.value)

        assert read is not None
        same(read, theirs)


def test_sdk_defect_c_a_key_that_is_not_utf8_crashes_it() -> None:
    with pytest.raises(UnicodeDecodeError):
        from_binary(KafkaMessage(dict(HEADERS), b"\xff", b""), FORMAT)

    assert from_kafka(HEADERS, b"\xff", None) == event()


def test_sdk_defect_d_the_key_replaces_the_partitionkey() -> None:
    theirs = from_binary(KafkaMessage(dict([*HEADERS, ("ce_partitionkey", b"own")]), b"other", b""), FORMAT)

    assert theirs.get_extension("partitionkey") == "other", "mended in the SDK: take it off the list"
