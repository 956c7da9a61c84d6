"""CloudEvent, the rules of CloudEvents 1.0.2 for its attributes, and its form in NATS headers."""

from __future__ import annotations

import copy
import pickle
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas import attributes
from broker_faas.attributes import checked, plain_block, read_fields, read_plain
from broker_faas.errors import EventInvalid
from broker_faas.event import CloudEvent
from tests.strategies import contents, events, strings

CORE: dict[str, Any] = {"type": "orders.created", "source": "/shop", "id": "1"}
PLAIN = b"ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /shop\r\nce-type: orders.created\r\n"


def event(**changes: Any) -> CloudEvent:
    return CloudEvent(**CORE | changes)


# --- what an event is ---------------------------------------------------------------------------------------


def test_an_event_says_what_it_was_given() -> None:
    made = event(
        data={"a": 1},
        subject="42",
        time="2026-01-31T09:30:00.5+02:00",
        dataschema="https://a.example/s",
        partitionkey="k",
        flag=True,
        count=-7,
        raw=b"\xff",
    )

    assert dict(made.attributes) == {
        "specversion": "1.0",
        "id": "1",
        "source": "/shop",
        "type": "orders.created",
        "datacontenttype": "application/json",
        "subject": "42",
        "time": "2026-01-31T09:30:00.5+02:00",
        "dataschema": "https://a.example/s",
        "count": "-7",
        "flag": "true",
        "partitionkey": "k",
        "raw": "/w==",
    }
    assert made.extensions == {"count": "-7", "flag": "true", "partitionkey": "k", "raw": "/w=="}
    assert (made.id, made.source, made.type, made.subject, made.partitionkey) == ("1", "/shop", "orders.created", "42", "k")
    assert (made.time, made.dataschema, made.datacontenttype) == ("2026-01-31T09:30:00.5+02:00", "https://a.example/s", "application/json")
    assert (made["flag"], made.get("flag"), made.get("nothing"), made.get("nothing", "x")) == ("true", "true", None, "x")
    assert (made.data, made.json()) == (b'{"a":1}', {"a": 1})


def test_what_was_not_given_is_none() -> None:
    bare = event()

    assert (bare.subject, bare.time, bare.timestamp, bare.dataschema, bare.datacontenttype, bare.data, bare.partitionkey) == (None,) * 7
    assert bare.extensions == {}
    with pytest.raises(KeyError):
        bare["subject"]


def test_an_event_cannot_be_changed() -> None:
    made: Any = event()

    for name in ("id", "data", "time", "attributes", "surprise"):
        with pytest.raises(AttributeError):
            setattr(made, name, "x")
    with pytest.raises(TypeError):
        made.attributes["id"] = "x"


def test_replace_makes_a_checked_copy_and_none_removes() -> None:
    made = event(data={"a": 1}, subject="42", partitionkey="k")
    changed = made.replace(id="2", subject=None, partitionkey=None, flag=True)

    assert (changed.id, changed.subject, changed.partitionkey, changed["flag"], changed.data) == ("2", None, None, "true", b'{"a":1}')
    assert (made.id, made.subject) == ("1", "42")
    with pytest.raises(EventInvalid, match="'id' is missing"):
        made.replace(id=None)


@given(events())
def test_replacing_nothing_changes_nothing(made: CloudEvent) -> None:
    assert made.replace() == made


def test_events_are_equal_by_all_they_hold_and_hash_by_source_and_id() -> None:
    assert event(data={"a": 1}, x="1", y="2") == event(y="2", x="1", data={"a": 1})
    assert event() != event(data=b"")
    assert event() != event(subject="x")
    assert event() != "event"
    assert len({event(), event(), event(id="2"), event(source="/other")}) == 3


def test_the_same_event_is_the_same_bytes_however_it_was_written_down() -> None:
    assert event(x="1", y="2", subject="s").headers() == event(subject="s", y="2", x="1").headers()


def test_the_repr_is_short_and_shows_no_data() -> None:
    shown = repr(event(data="secret", id="i" * 1000))

    assert len(shown) < 160
    assert "secret" not in shown


@given(events())
def test_events_survive_copy_and_pickle(made: CloudEvent) -> None:
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_handlers_written_for_the_cloudevents_sdk_find_their_getters() -> None:
    made = event(data={"a": 1}, subject="s", time="2026-01-31T09:30:00Z", dataschema="urn:x", flag=True)

    assert (made.get_id(), made.get_source(), made.get_type(), made.get_specversion()) == ("1", "/shop", "orders.created", "1.0")
    assert (made.get_subject(), made.get_dataschema(), made.get_datacontenttype()) == ("s", "urn:x", "application/json")
    assert made.get_time() == datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    assert (made.get_extension("flag"), made.get_extension("none"), made.get_attributes()["id"]) == ("true", None, "1")


@pytest.mark.parametrize(
    ("data", "type_", "decoded"),
    [
        (None, None, None),
        (b"", None, None),
        ({"a": 1}, None, {"a": 1}),
        (b'{"a":1}', None, {"a": 1}),
        ("hi", "text/plain", "hi"),
        (b"\xff", "image/png", b"\xff"),
        (b"{", "application/json", "{"),
        (b"\xff", "application/json", b"\xff"),
    ],
)
def test_get_data_decodes_as_the_sdk_does(data: Any, type_: str | None, decoded: Any) -> None:
    assert event(data=data, datacontenttype=type_).get_data() == decoded


# --- data ---------------------------------------------------------------------------------------------------


@dataclass
class Order:
    id: int


class Item(msgspec.Struct):
    id: int


class Model:
    """As pydantic's models are."""

    def model_dump(self, mode: str) -> Any:
        return {"id": 1, "mode": mode}


@pytest.mark.parametrize(
    ("given_data", "type_", "raw", "kept_type"),
    [
        (None, None, None, None),
        (None, "text/plain", None, "text/plain"),
        (b"\x00\xff", None, b"\x00\xff", None),
        (b"", None, b"", None),
        (bytearray(b"ab"), "image/png", b"ab", "image/png"),
        (memoryview(b"ab"), None, b"ab", None),
        ({"a": [1, None, True]}, None, b'{"a":[1,null,true]}', "application/json"),
        ("text", None, b'"text"', "application/json"),
        ("text", "application/vnd.x+json", b'"text"', "application/vnd.x+json"),
        ("é", "text/plain", "é".encode(), "text/plain"),
        ("<a/>", "application/xml", b"<a/>", "application/xml"),
        (0, None, b"0", "application/json"),
        (Order(1), None, b'{"id":1}', "application/json"),
        (Item(1), None, b'{"id":1}', "application/json"),
        ([Item(1), Model()], None, b'[{"id":1},{"id":1,"mode":"json"}]', "application/json"),
        ({"at": datetime(2026, 1, 31, tzinfo=UTC)}, None, b'{"at":"2026-01-31T00:00:00+00:00"}', "application/json"),
        (Decimal("1.10"), None, b'"1.10"', "application/json"),
    ],
)
def test_data_is_kept_if_bytes_and_encoded_otherwise(given_data: Any, type_: str | None, raw: bytes | None, kept_type: str | None) -> None:
    made = event(data=given_data, datacontenttype=type_)

    assert (made.data, made.datacontenttype) == (raw, kept_type)


@pytest.mark.parametrize(
    ("data", "type_", "message"),
    [
        (object(), None, "data of type object cannot be written as JSON"),
        ({1: 2}, None, "data of type dict cannot be written as JSON"),
        (2**64, None, "data of type int cannot be written as JSON"),
        ("\ud800", None, "data of type str cannot be written as JSON"),
        ({"a": [None, float("nan")]}, None, "data holds NaN or an infinity"),
        (float("-inf"), None, "data holds NaN or an infinity"),
        ("\ud800", "text/plain", "no text that UTF-8 can hold"),
        ({"a": 1}, "image/png", "data of type dict cannot be written as 'image/png'"),
    ],
)
def test_data_that_cannot_be_encoded_is_invalid(data: Any, type_: str | None, message: str) -> None:
    with pytest.raises(EventInvalid, match=message):
        event(data=data, datacontenttype=type_)


def test_a_dataclass_that_holds_what_only_pydantic_knows_may_hold_none_as_well() -> None:
    class Inner(pydantic.BaseModel):
        a: int | None = None

    @dataclass
    class Outer:
        inner: Inner

    assert event(data=Outer(Inner())).data == b'{"inner":{"a":null}}'


def test_data_that_holds_itself_is_invalid() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(EventInvalid, match="cannot be written as JSON"):
        event(data=loop)


@pytest.mark.parametrize(
    "data", [None, b"", b"{", b"\xff", b"NaN", b"[" * 100_000, b'"\\ud800"', b"\xef\xbb\xbf{}", '"é"'.encode("utf-16")]
)
def test_json_of_what_is_none_says_so_and_names_the_event(data: bytes | None) -> None:
    with pytest.raises(EventInvalid, match="event '1'"):
        event(data=data).json()


@pytest.mark.parametrize(
    ("data", "type_", "text"),
    [
        ("é".encode(), None, "é"),
        (b"\xe9", "text/plain; charset=latin-1", "é"),
        (b"a", 'text/plain;charset="US-ASCII"', "a"),
        (b"", "text/plain", ""),
    ],
)
def test_text_is_decoded_in_its_charset(data: bytes, type_: str | None, text: str) -> None:
    assert event(data=data, datacontenttype=type_).text() == text


@pytest.mark.parametrize(
    ("data", "type_"), [(None, None), (b"\xff", None), (b"a", "text/plain; charset=evil"), (b"a", "text/plain; charset=hex")]
)
def test_text_that_cannot_be_decoded_is_invalid(data: bytes | None, type_: str | None) -> None:
    with pytest.raises(EventInvalid, match="event '1'"):
        event(data=data, datacontenttype=type_).text()


# --- attributes: every rule ---------------------------------------------------------------------------------

FORBIDDEN = [
    "\x00",
    "\x1f",
    "\x7f",
    "\x80",
    "\x9f",
    "\r\nNats-Rollup: all",
    "\ud800",
    "\udead",
    "\ufdd0",
    "\ufdef",
    "\ufffe",
    "\uffff",
    "\U0001ffff",
]


WRONG_TYPES: list[Any] = [1, [], {}, True, b"1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # C-1, C-2: required, not empty
        *[({name: None}, f"attribute '{name}' is missing; it is required") for name in CORE],
        *[
            ({name: ""}, f"attribute '{name}' is empty")
            for name in (*CORE, "subject", "dataschema", "time", "datacontenttype", "specversion")
        ],
        # C-3: the version
        *[({"specversion": version}, "only '1.0' is supported") for version in ("0.3", "2.0", "1.0.0", "1", " 1.0")],
        ({"specversion": 1.0}, "attribute 'specversion' must be a string, not float"),
        # C-4: types
        *[({"id": value}, "attribute 'id' must be a string") for value in WRONG_TYPES],
        ({"datacontenttype": 1, "data": b""}, "attribute 'datacontenttype' must be a string"),
        ({"time": 1}, "attribute 'time' must be a string"),
        ({"x": 1.5}, "attribute 'x' must be a string, integer, boolean, bytes or time, not float"),
        ({"x": {}}, "attribute 'x' must be"),
        ({"x": 2**31}, "integers have 32 bits"),
        ({"x": -(2**31) - 1}, "integers have 32 bits"),
        ({"x": datetime(2026, 1, 31)}, "a time without zone"),
        ({"time": datetime(2026, 1, 31)}, "a time without zone"),
        # C-5: names
        *[
            ({name: "x"}, "attribute name .* is not allowed")
            for name in ("Data", "DATA_BASE64", "data_base64", "my-ext", "é", "__class__", "a b", "")
        ],
        # C-8: times
        *[
            ({"time": time}, "attribute 'time' is no time of RFC 3339")
            for time in (
                "2026-02-30T00:00:00Z",
                "2026-01-31T24:00:00Z",
                "2026-01-31T00:00:61Z",
                "2026-01-31T00:00:00",
                "10000-01-01T00:00:00Z",
                "now",
                "2026-01-31",
                "20260131T000000Z",
                "2026-01-31 00:00:00Z",
                "2026-W05-6T00:00:00Z",
                "2026-01-31T00:00:00+0100",
                "2026-01-31T00:00:00+24:00",
                "2026-01-31T00:00Z",
                "2026-01-31T00:00:00.Z",
                "9999-12-31T23:59:60Z",
                "٢٠٢٦-01-31T00:00:00Z",
                "0000-01-01T00:00:00Z",
            )
        ],
        # C-9: URIs
        *[
            ({"source": source}, "attribute 'source' is no URI-reference")
            for source in ("a b", "é", "<x>", "/a\\b", "1a:b", ":", "%zz", "/a%2", "a#b#c", "{x}", "^", "`", '"')
        ],
        *[
            ({"dataschema": schema}, "attribute 'dataschema' is no absolute URI")
            for schema in ("/a", "a", "//h/p", "#x", "1a:b", "http:", "http://a b")
        ],
        # C-10: media types
        *[
            ({"datacontenttype": kind, "data": b""}, "no media type")
            for kind in ("json", "/", "a/", "/b", "a/b c", "a/b, c/d", "a b/c", "a/b; c=é")
        ],
        # C-12: characters
        *[({name: f"a{bad}b"}, rf"attribute '{name}' has U\+") for bad in FORBIDDEN for name in ("id", "subject", "type", "ext")],
    ],
)
def test_what_breaks_a_rule_is_refused_and_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EventInvalid, match=message):
        event(**changes)


def test_data_is_no_name_of_an_attribute() -> None:
    with pytest.raises(EventInvalid, match="and not 'data'"):
        checked(CORE | {"specversion": "1.0", "data": "x"})


@pytest.mark.parametrize(
    "changes",
    [
        {"abcdefghijklmnopqrstuvwxyz0123": "more than 20 characters are advised against, not forbidden"},
        {"0": "x"},
        {"self": "x", "cls": "y"},
        {"x": ""},
        {"source": "javascript:alert(1)"},  # a source is a name, and is never followed
        {"source": "file:///etc/passwd"},
        {"source": "/" + "x" * 8192},
        {"source": "a/b:c"},
        {"source": "?q#f"},
        {"source": "https://[::1]:80/a%20b"},
        {"datacontenttype": "text/plain; charset=evil", "data": b""},  # opaque until text() is called
        {"datacontenttype": "application/x-python-pickle", "data": b"cos\nsystem\n(S'id'\ntR."},  # opaque for ever
        {"dataref": "http://169.254.169.254/"},  # never fetched
        {"traceparent": "00-" + "0" * 32 + "-zz"},  # untouched
        {"expirytime": "1970-01-01T00:00:00Z"},
        {"type": "😀"},
        {"time": "2016-12-31T23:59:60Z"},
        {"time": "2026-01-31T00:00:00." + "1" * 30 + "Z"},
        {"time": "2026-01-31t00:00:00z"},
        {"time": "2026-01-31T00:00:00-00:00"},
    ],
)
def test_what_breaks_no_rule_is_kept_as_it_is(changes: dict[str, Any]) -> None:
    made = event(**changes)

    assert changes.items() - {("data", changes.get("data"))} <= made.attributes.items()
    assert CloudEvent.from_headers(made.headers(), made.data or b"") == made


@pytest.mark.parametrize(
    ("time", "instant"),
    [
        ("2026-01-31T09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("2026-01-31t09:30:00.123456789z", datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=UTC)),
        ("2026-01-31T09:30:00.5-08:00", datetime(2026, 1, 31, 17, 30, 0, 500000, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
    ],
)
def test_timestamp_is_the_instant_that_time_names(time: str, instant: datetime) -> None:
    made = event(time=time)

    assert (made.time, made.timestamp) == (time, instant)


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.timezones()))
def test_a_datetime_comes_back_as_the_same_instant(instant: datetime) -> None:
    offset = instant.utcoffset() or timedelta(0)
    if offset.total_seconds() % 60:  # local mean times of long ago: RFC 3339 has no seconds in offsets
        return

    made = event(time=instant)

    assert made.timestamp is not None
    assert made.timestamp.astimezone(UTC) == instant.astimezone(UTC)


# --- NATS headers -------------------------------------------------------------------------------------------


@given(events())
def test_an_event_survives_the_bus(made: CloudEvent) -> None:
    back = CloudEvent.from_headers(made.headers(), made.data or b"")

    assert back == made
    assert back.headers() == made.headers()


@given(events())
def test_headers_are_lines_of_visible_ascii(made: CloudEvent) -> None:
    lines = made.headers().decode("ascii").split("\r\n")

    assert lines.pop() == ""
    assert len(lines) == len(made.attributes)
    assert all(0x20 <= ord(char) <= 0x7E for line in lines for char in line)
    assert all(line.startswith("ce-") and " " not in line.partition(": ")[2] and '"' not in line for line in lines)


@given(events())
def test_the_fast_reader_and_the_careful_one_agree(made: CloudEvent) -> None:
    text = made.headers().decode()
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in text.split("\r\n") if line)]
    fast = read_plain(text)

    assert checked(read_fields(fields)) == made.attributes
    assert fast is None or fast == made.attributes


NOISE = st.text('ceCE-:idsourtpv12.0T/Z \r\n%"é', max_size=30)
NAMES = st.sampled_from([*attributes.CORE, "data", "hops"]) | NOISE
VALUES = NOISE | st.sampled_from(["1.0", "/s", "a", "2026-02-30T00:00:00Z"])


@given(st.dictionaries(NAMES, VALUES))
def test_attributes_checked_in_one_look_are_those_that_are_checked_one_by_one(given_: dict[str, str]) -> None:
    given_ = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"} | given_
    block = plain_block(given_)
    if block is not None:
        assert checked(given_) == given_
        assert CloudEvent.from_headers(block, b"").attributes == given_
        assert block == CloudEvent.of(given_, None).headers()


@pytest.mark.parametrize(
    "wrong",
    [{"x: 1\r\nce-y": "2"}, {"x": "1\r\nce-y: 2"}, {"id": 1}, {"id": ""}, {"time": "2026-02-30T00:00:00Z"}, {"X": "1"}, {"data": "1"}],
)
def test_what_an_executor_sends_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(EventInvalid):
        CloudEvent.from_attributes({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"} | wrong, None)


@given(st.text('ceCE-:idsourtpv12.0T/Z \r\n%"', max_size=200), st.booleans())
def test_the_fast_reader_accepts_nothing_that_the_careful_one_refuses(noise: str, behind: bool) -> None:
    text = PLAIN.decode() + noise if behind else noise + PLAIN.decode()
    fast = read_plain(text)
    if fast is not None:
        assert CloudEvent.from_headers(b"X-Careful: %\r\n" + text.encode(), b"") == CloudEvent.of(fast, None)


@pytest.mark.parametrize(
    "wrong", ["ce-id: ", "ce-id: 2", "ce-data: x", "ce-type: y", "ce-specversion: 1.0", "ce-my_ext: x", "ce-: x", "Ce-Id: 2", "ce-time: x"]
)
@pytest.mark.parametrize("careful", [b"", b"X: %\r\n"])
def test_both_readers_refuse_the_same(wrong: str, careful: bytes) -> None:
    with pytest.raises(EventInvalid):
        CloudEvent.from_headers(careful + PLAIN + wrong.encode() + b"\r\n", b"")


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
def test_a_record_without_a_required_attribute_is_invalid(name: str) -> None:
    lines = [line for line in PLAIN.split(b"\r\n") if not line.startswith(f"ce-{name}".encode())]

    with pytest.raises(EventInvalid, match=f"'{name}' is missing"):
        CloudEvent.from_headers(b"\r\n".join(lines), b"")


@pytest.mark.parametrize(
    "line", [b"ce-source: ", b"ce-source: a b", b"ce-source: 1:2", b"ce-specversion: 0.3", b"ce-type:", b"ce-source: %C3%A9"]
)
def test_a_record_with_a_wrong_core_attribute_is_invalid(line: bytes) -> None:
    name = line.partition(b":")[0]
    lines = [line if one.startswith(name) else one for one in PLAIN.split(b"\r\n")]

    with pytest.raises(EventInvalid):
        CloudEvent.from_headers(b"\r\n".join(lines), b"")


def test_other_headers_are_ignored_wherever_they_are() -> None:
    around = b"NATS/1.0\r\nNats-Msg-Id: x\r\nFaas-Topic: a%20b\r\ntraceparent: 00\r\n" + PLAIN + b"Nats-Rollup: all\r\nX-Y: \xff\r\n\r\n"

    assert CloudEvent.from_headers(around, b"") == event()


def test_header_names_may_have_any_case_and_values_space_around_them() -> None:
    raw = b"NATS/1.0\r\nCE-SpecVersion: 1.0\r\nCe-Id:1\r\nce-source:  /shop \t\r\nCE-TYPE: orders.created\r\n\r\n"

    assert CloudEvent.from_headers(raw, b"") == event()


@pytest.mark.parametrize(
    ("value", "subject"),
    [
        (b"a%20b", "a b"),
        (b"%c3%a9", "é"),
        (b"\xc3\xa9", "é"),  # raw UTF-8, as careless writers send it
        (b'"a b"', "a b"),
        (rb'"a\"b\\c"', 'a"b\\c'),
        (b'"%22"', '"'),
        (b"%2520", "%20"),  # decoded once
        (b"100%", "100%"),
        (b"%zz", "%zz"),
    ],
)
def test_values_are_unquoted_then_decoded_once(value: bytes, subject: str) -> None:
    assert CloudEvent.from_headers(PLAIN + b"ce-subject: " + value + b"\r\n", b"").subject == subject


@pytest.mark.parametrize("value", [b"%ff", b"%C3", b"\xff", b"%0d%0aNats-Rollup:%20all", b"a\x00b", b"a\nb", b"%ED%A0%80", b"%EF%BF%BE"])
def test_values_that_are_no_text_or_hold_line_ends_are_invalid(value: bytes) -> None:
    with pytest.raises(EventInvalid, match="'subject'"):
        CloudEvent.from_headers(PLAIN + b"ce-subject: " + value + b"\r\n", b"")


@given(strings, contents())
def test_a_structured_record_says_so_by_its_content_type(ident: str, content: dict[str, Any]) -> None:
    from broker_faas.codec import to_json

    made = event(id=ident, **content)

    assert CloudEvent.from_headers(b"Content-Type: application/cloudevents+json; charset=UTF-8\r\n", to_json(made)) == made
    assert CloudEvent.from_headers(b"", to_json(made)) == made  # v1.0.2 of the binding has no headers at all
    assert CloudEvent.from_headers(b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n", b" " + to_json(made)) == made


def test_the_content_type_wins_over_attributes_in_headers() -> None:
    body = b'{"specversion":"1.0","id":"2","source":"/b","type":"t"}'

    assert CloudEvent.from_headers(b"content-type: Application/CloudEvents+JSON\r\n" + PLAIN, body).id == "2"


@pytest.mark.parametrize(
    ("headers", "data", "message"),
    [
        (b"", b"", "no CloudEvent: it has no 'ce-' headers"),
        (b"", b"\x00\x01", "no CloudEvent"),
        (b"", b"[]", "no CloudEvent"),
        (b"", b"{}", "'id' is missing"),
        (b"", b"{", "no CloudEvent in JSON"),
        (b"", b'{"id":1}', "'source' is missing"),
        (b"Content-Type: application/json\r\n", b"1", "no CloudEvent"),
        (b"\xff\xfe: x\r\n", b"", "no CloudEvent"),
        (b"Content-Type: application/cloudevents-batch+json\r\n", b"[]", "the record is a batch"),
        (b"Content-Type: application/cloudevents+avro\r\n", b"", "only JSON is supported"),
        (b"Content-Type: application/cloudevents+json\r\n" + PLAIN, b"", "no CloudEvent in JSON"),
    ],
)
def test_bytes_that_are_no_event_are_invalid(headers: bytes, data: bytes, message: str) -> None:
    with pytest.raises(EventInvalid, match=message):
        CloudEvent.from_headers(headers, data)


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_any_bytes_are_an_event_or_invalid(headers: bytes, data: bytes) -> None:
    for block in (headers, PLAIN + headers, headers + PLAIN, b"content-type: application/cloudevents+json\r\n" + headers):
        with suppress(EventInvalid):
            CloudEvent.from_headers(block, data)


def test_an_empty_payload_is_empty_data_if_it_has_a_type_and_none_otherwise() -> None:
    assert CloudEvent.from_headers(PLAIN, b"").data is None
    assert CloudEvent.from_headers(PLAIN + b"ce-datacontenttype: text/plain\r\n", b"").data == b""


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "evil", [b"ce-x: " + b"a" * (1 << 20), b"ce-source: " + b"a:" * 100_000, b"Nats-X: " + b"\n" * 100_000, b"ce-a: b\r\n" * 20_000]
)
def test_long_headers_cost_no_more_than_their_length(evil: bytes) -> None:
    for block in (evil + b"\r\n" + PLAIN, PLAIN + evil + b"\r\n"):
        with suppress(EventInvalid):
            CloudEvent.from_headers(block, b"")


def test_a_percent_sign_in_a_media_type_is_one_when_it_is_read_again() -> None:
    event = CloudEvent(type="t", source="/s", id="1", datacontenttype="a%41/b", data=b"")

    assert CloudEvent.from_headers(event.headers(), b"") == event
