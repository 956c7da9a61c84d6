"""How events lie on the bus. What is asserted here is the on-disk format: a change is a migration."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker_faas import layout
from broker_faas.bus import Delivery, Queue, Record
from broker_faas.errors import ConfigError, EventTooLarge, TopicInvalid
from broker_faas.event import CloudEvent
from broker_faas.layout import event_subject, filters, partition
from broker_faas.topics import check_destination, check_pattern, check_topic, matches, minimal
from tests.strategies import events, strings

QUEUE = Queue("shop--reserve", ("orders.*",))
ORDERED = Queue("shop--reserve", ("orders.*",), partitions=16)
EVENT = CloudEvent(type="orders.created", source="/shop", id="1", data=b"x", partitionkey="k")

parts = st.sampled_from(["a", "b", "c"])
topics = st.lists(parts, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda head, last: ".".join([*head, last]),
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=3),
    st.sampled_from(["a", "b", "*", ">"]),
)
keys = st.one_of(st.none(), strings)
ALL_TOPICS = [".".join(words) for length in range(1, 6) for words in product("abz", repeat=length)]  # z: a word in no pattern


def delivery(record: Record, seq: int = 7, stored_at: float = 1000.5) -> Delivery:
    return Delivery(
        record.subject, b"NATS/1.0\r\nNats-Msg-Id: x\r\n" + record.headers + b"\r\n", record.data, seq, 1, stored_at, "source", "token"
    )


def nats_matches(filter: str, subject: str) -> bool:
    """NATS's rule, as a regular expression: `*` is one token, a last `>` is one or more."""
    tokens = [{"*": r"[^.]+", ">": r"[^.]+(?:\.[^.]+)*"}.get(token, re.escape(token)) for token in filter.split(".")]
    return bool(re.fullmatch(r"\.".join(tokens), subject))


# --- topics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["a", "orders.created", "A-1._x.0", "a" * 200, "-", "CON"])
def test_a_topic_is_dot_separated_words(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("", "the topic is empty"),
        *[(topic, "has an empty part") for topic in ("a..b", ".a", "a.", ".", "..")],
        *[(topic, "has a wildcard: functions listen") for topic in ("*", ">", "a.*.b", "a.>", "*.a")],
        ("a b", "has ' ' in part 'a b'"),
        ("a\tb", r"has '\\t' in part"),
        ("a\r\nPUB x", r"has '\\r' in part"),
        ("a\n", r"has '\\n' in part"),
        ("orders.é", "has 'é' in part 'é'"),
        ("e\u0301", "in part"),
        ("a\u202eb", r"has '\\u202e' in part"),
        ("a\x00", r"has '\\x00' in part"),
        ("\ud800", r"has '\\ud800' in part"),
        ("$JS.API.STREAM.DELETE.BUS", r"has '\$' in part '\$JS'"),
        ("a*", r"has '\*' in part"),
        ("a/b", "has '/' in part"),
        ("a" * 201, "has 201 characters; the limit is 200"),
        ("a b" * 400_000, "has 1200000 characters"),
    ],
)
def test_what_is_no_topic_is_refused_with_the_reason_and_a_hint(topic: str, message: str) -> None:
    with pytest.raises(TopicInvalid, match=message) as raised:
        check_topic(topic)

    assert "like 'orders.created'" in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("pattern", ["a", "a.*", "*.b", "*", ">", "a.>", "*.>", "a.*.c"])
def test_a_pattern_may_have_wildcards(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "the topic is empty"),
        ("a..*", "has an empty part"),
        ("a.>.b", "has '>' before its end"),
        (">.>", "has '>' before its end"),
        ("a.b*", r"has '\*' in part"),
        ("a.>x", "has '>' in part"),
        ("a b.*", "has ' ' in part"),
        (".".join("*" * 101), "has 201 characters; the limit is 200"),
        (".".join("a" * 100) + ".>", "has 201 characters"),
        ("a" * 201, "has 201 characters"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_reason(pattern: str, message: str) -> None:
    with pytest.raises(TopicInvalid, match=message):
        check_pattern(pattern)


@given(st.text(max_size=30))
def test_any_text_is_a_topic_a_pattern_or_refused(text: str) -> None:
    for check in (check_topic, check_pattern):
        try:
            assert check(text) == text
        except TopicInvalid:
            continue


@pytest.mark.parametrize(
    ("pattern", "topic", "hit"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b", "a.b", True),
        ("A", "a", False),
    ],
)
def test_wildcards_match_as_in_nats(pattern: str, topic: str, hit: bool) -> None:
    assert matches(pattern, topic) is hit


@given(patterns, topics)
def test_matching_a_topic_is_matching_it_as_nats_would(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) is nats_matches(pattern, topic)


@given(patterns, topics)
def test_what_leaves_through_a_sink_is_heard_by_that_sink_alone(pattern: str, topic: str) -> None:
    leaving = f"out-1:{topic}"

    assert check_destination(leaving) == leaving
    assert not matches(pattern, leaving)
    assert not nats_matches(filters(pattern), event_subject(leaving, None))
    assert [matches(f"{sink}:>", leaving) for sink in ("out-1", "out", "out-2")] == [True, False, False]
    assert [nats_matches(filters(f"{sink}:>"), event_subject(leaving, "k")) for sink in ("out-1", "out", "out-2")] == [True, False, False]
    assert layout.topic_of(event_subject(leaving, "k")) == leaving


@pytest.mark.parametrize("destination", ["out:", ":a", "Out:a", "o.ut:a", "out:a:b", "out:*", "out:a.", "-out:a", "out:a b", "out:a\n"])
def test_a_destination_is_a_topic_or_one_behind_the_name_of_a_sink(destination: str) -> None:
    with pytest.raises(TopicInvalid):
        check_destination(destination)


@given(patterns, topics, keys)
def test_a_filter_selects_the_subjects_of_the_topics_its_pattern_matches(pattern: str, topic: str, key: str | None) -> None:
    assert nats_matches(filters(pattern), event_subject(topic, key)) is matches(pattern, topic)


@given(patterns, topics)
def test_a_filter_selects_events_only(pattern: str, topic: str) -> None:
    for subject in (f"re.shop--f.{partition(topic)}", f"go.{topic}", f"at.{topic}", f"dead.{topic}", "re.shop--f.-.-"):
        assert not nats_matches(filters(pattern), subject)


@given(st.lists(patterns, min_size=1, max_size=4))
def test_minimal_patterns_match_the_same_topics_and_none_twice_or_say_which_overlap(some: list[str]) -> None:
    try:
        kept = minimal(some)
    except ConfigError as error:
        one, two = re.findall("'([^']+)'", str(error))[:2]
        both = [topic for topic in ALL_TOPICS if matches(one, topic) and matches(two, topic)]

        assert {one, two} <= set(some)
        assert both
        assert any(not matches(two, topic) for topic in ALL_TOPICS if matches(one, topic))
        assert any(not matches(one, topic) for topic in ALL_TOPICS if matches(two, topic))
    else:
        for topic in ALL_TOPICS:
            assert sum(matches(pattern, topic) for pattern in kept) == any(matches(pattern, topic) for pattern in some)


# --- subjects and ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "expected"), [(None, "-.-"), ("", "-.-"), ("k", "0.d"), ("42", "e.7"), ("é", "e.d")])
def test_the_partition_of_a_key_never_changes(key: str | None, expected: str) -> None:
    assert partition(key) == expected


@given(topics, keys)
def test_a_subject_gives_its_topic_back(topic: str, key: str | None) -> None:
    subject = event_subject(topic, key)

    assert layout.topic_of(subject) == topic
    assert re.fullmatch(rf"ev\.{re.escape(topic)}\.(-\.-|[0-9a-f]\.[0-9a-f])", subject)


def test_keys_spread_over_all_partitions() -> None:
    assert len({partition(str(number)) for number in range(5000)}) == 256


@given(st.lists(strings, min_size=1, max_size=3), st.lists(strings, min_size=1, max_size=3))
def test_a_key_hash_tells_its_parts_apart(one: list[str], two: list[str]) -> None:
    assert (layout.key_hash(*one) == layout.key_hash(*two)) is (one == two)
    assert re.fullmatch("[0-9a-f]{22}", layout.key_hash(*one))


def test_ids_never_change() -> None:
    assert layout.key_hash("a", "b") == "9c5a496040d89f3320274e"
    assert layout.output_id(EVENT, 3, "a.b") == layout.key_hash("a.b", "/shop", "1") + ".3"
    assert layout.event_record("a", EVENT).msg_id == layout.key_hash("a", "/shop", "1")
    assert layout.project_source("shop", "reserve") == "/shop/reserve"


# --- records ------------------------------------------------------------------------------------------------


@given(events(), topics)
def test_an_event_record_is_the_event(event: CloudEvent, topic: str) -> None:
    record = layout.event_record(topic, event)

    assert record.subject == event_subject(topic, event.partitionkey)
    assert CloudEvent.from_headers(record.headers, record.data) == event


def test_one_event_on_two_topics_or_of_two_sources_is_no_duplicate() -> None:
    ids = {
        layout.event_record(topic, EVENT.replace(source=source, id=ident)).msg_id
        for topic, source, ident in [("a", "/s", "1"), ("b", "/s", "1"), ("a", "/t", "1"), ("a", "/s", "2"), ("a.s", "1", "1")]
    }

    assert len(ids) == 5
    assert layout.event_record("a", EVENT).msg_id == layout.event_record("a", EVENT.replace(type="other", data=1)).msg_id


@pytest.mark.parametrize("topic", ["a..b", "a.*", ""])
def test_no_record_has_a_wrong_topic(topic: str) -> None:
    with pytest.raises(TopicInvalid):
        layout.event_record(topic, EVENT)
    with pytest.raises(TopicInvalid):
        layout.delayed_record(topic, EVENT, 0.0)


@pytest.mark.parametrize("change", [{"data": b"x" * (layout.MAX_DATA + 1)}, {"pad": "x" * layout.MAX_HEADERS}])
def test_an_event_that_its_topic_would_not_take_is_refused_now_and_not_when_its_time_has_come(change: dict[str, Any]) -> None:
    with pytest.raises(EventTooLarge):
        layout.event_record("a", EVENT.replace(**change))
    with pytest.raises(EventTooLarge):
        layout.delayed_record("a", EVENT.replace(**change), 0.0)


def test_a_delayed_publish_is_a_schedule_with_a_derived_id() -> None:
    record = layout.delayed_record("orders.created", EVENT, 1767225600.25)
    ident = layout.event_record("orders.created", EVENT).msg_id

    assert (record.subject, record.msg_id, record.data) == (f"at.publish.{ident}", f"at:{ident}", b"x")
    assert record.headers.startswith(
        b"Nats-Schedule: @at 2026-01-01T00:00:00.250000Z\r\nNats-Schedule-Target: go.publish\r\nFaas-Topic: orders.created\r\n"
    )
    assert CloudEvent.from_headers(record.headers, record.data) == EVENT
    assert layout.origin(delivery(record)).topic == "orders.created"


def test_the_outputs_of_one_event_from_two_topics_are_no_duplicates() -> None:
    one, two = (layout.output_id(EVENT, 0, topic) for topic in ("orders.created", "orders.paid"))

    assert one != two


def test_the_origin_of_a_plain_event_is_its_place_in_the_stream() -> None:
    assert layout.origin(delivery(layout.event_record("orders.created", EVENT))) == ("orders.created", "7", 0, 1000.5)


def test_a_retry_goes_to_its_queue_alone_and_remembers_where_it_comes_from() -> None:
    first = delivery(layout.event_record("orders.created", EVENT))
    retry = layout.retry_record(QUEUE, first, 3, 1767225600.0)

    assert (retry.subject, retry.msg_id, retry.data) == ("at.shop--reserve.7.3", "at:shop--reserve:7:3", b"x")
    assert b"Nats-Schedule: @at 2026-01-01T00:00:00.000000Z\r\nNats-Schedule-Target: go.shop--reserve\r\n" in retry.headers
    assert layout.origin(delivery(retry._replace(subject="go.shop--reserve"), seq=99)) == ("orders.created", "7", 3, 1000.5)
    assert CloudEvent.from_headers(retry.headers, retry.data) == EVENT


def test_a_retry_of_a_retry_keeps_the_first_time_and_sequence_and_one_schedule() -> None:
    first = delivery(layout.event_record("orders.created", EVENT))
    second = delivery(layout.retry_record(QUEUE, first, 1, 0.0)._replace(subject="go.shop--reserve"), seq=50, stored_at=2000.0)
    third = layout.retry_record(QUEUE, second, 2, 5.0)

    assert (third.subject, third.msg_id) == ("at.shop--reserve.7.2", "at:shop--reserve:7:2")
    assert third.headers.count(b"Nats-Schedule:") == third.headers.count(b"Faas-Attempts:") == 1
    assert layout.origin(delivery(third._replace(subject="go.shop--reserve"))) == ("orders.created", "7", 2, 1000.5)


def test_what_is_handed_back_has_as_many_attempts_as_before_and_is_stored_once_a_delivery() -> None:
    retried = delivery(layout.retry_record(QUEUE, delivery(layout.event_record("orders.created", EVENT)), 2, 0.0), seq=50)
    back = layout.back_record(QUEUE, retried, 2, 1767225600.0)
    again = layout.back_record(QUEUE, retried, 2, 1767225601.0)
    later = layout.back_record(QUEUE, delivery(back, seq=51), 2, 1767225602.0)

    assert layout.origin(delivery(back._replace(subject="go.shop--reserve"), seq=99)) == ("orders.created", "7", 2, 1000.5)
    assert CloudEvent.from_headers(back.headers, back.data) == EVENT
    assert back.msg_id == again.msg_id
    assert back.msg_id != later.msg_id


def dead(**changes: Any) -> Record:
    first = delivery(layout.event_record("orders.created", EVENT))
    options: dict[str, Any] = {"reason": "ValueError: no", "detail": "", "attempts": 5, "now": 2000.25, "version": "0123456789ab"}
    return layout.dead_record(QUEUE, first, **options | changes)


def test_a_dead_letter_holds_the_whole_event_and_why() -> None:
    record = dead(detail='Traceback:\r\n  File "é.py", line 1\r\n')

    assert (record.subject, record.msg_id, record.data) == ("dead.shop--reserve", "dlq:shop--reserve:7", b"x")
    assert CloudEvent.from_headers(record.headers, record.data) == EVENT
    assert layout.faas_headers(record.headers) == {
        "topic": "orders.created",
        "sequence": "7",
        "attempts": "5",
        "first": "1000.500",
        "last": "2000.250",
        "reason": "ValueError: no",
        "fingerprint": layout.fingerprint("ValueError: no", 'File "é.py", line 1'),
        "version": "0123456789ab",
        "detail": 'Traceback:\r\n  File "é.py", line 1\r\n',
    }


def test_what_died_twice_is_stored_once() -> None:
    assert dead().msg_id == dead(reason="other", now=9.0).msg_id


@pytest.mark.parametrize("headers", [b"", b"\xff\xfe\x00", b"NATS/1.0\r\n\r\n", b"X: y\r\n"])
def test_bytes_that_are_no_event_become_a_dead_letter_too(headers: bytes) -> None:
    record = layout.dead_record(
        QUEUE, Delivery("ev.a.-.-", headers, b"\x00", 1, 1, 0.0, "", ""), reason="r", detail="", attempts=1, now=0.0, version="v"
    )

    assert record.data == b"\x00"
    assert layout.faas_headers(record.headers)["reason"] == "r"


def test_a_replay_is_a_first_attempt_for_the_function_that_failed_and_idempotent() -> None:
    letter = delivery(dead(), seq=3)
    replay = layout.replay_record(QUEUE, letter, 0)

    assert (replay.subject, replay.msg_id) == ("go.shop--reserve", "replay:shop--reserve:3:0")
    assert layout.origin(delivery(replay)) == ("orders.created", "replay-3-0", 0, 1000.5)
    assert set(layout.faas_headers(replay.headers)) == {"topic", "sequence", "attempts", "first"}
    assert CloudEvent.from_headers(replay.headers, replay.data) == EVENT
    assert layout.replay_record(QUEUE, letter, 0) == replay
    assert layout.replay_record(QUEUE, letter, 1).msg_id != replay.msg_id


def test_a_replay_to_an_ordered_function_goes_through_the_partition_of_its_key() -> None:
    assert layout.replay_record(ORDERED, delivery(dead()), 0).subject == f"re.shop--reserve.{partition('k')}"
    no_event = Delivery("dead.shop--reserve", b"", b"\x00", 1, 1, 0.0, "", "")
    assert layout.replay_record(ORDERED, no_event, 0).subject == "re.shop--reserve.-.-"


# --- quarantine ---------------------------------------------------------------------------------------------


def quarantined(headers: dict[str, str], data: bytes, again: bytes) -> Record:
    return layout.quarantine_record("orders", "orders/0/7", "no magic byte", headers, data, 1000.5, again)


def test_what_is_quarantined_is_kept_with_its_reason_and_what_a_replay_needs() -> None:
    record = quarantined({"k": 'é"%'}, b"\xff", b"\x00\x01")

    assert (record.subject, record.data) == ("quarantine.orders", b"\xff")
    assert layout.faas_headers(record.headers) == {
        "position": "orders/0/7",
        "reason": "no magic byte",
        "first": "1000.500",
        "headers": '{"k": "\\u00e9\\"%"}',
        "again": "AAE=",
    }


@pytest.mark.parametrize(
    ("headers", "data", "again", "kept"),
    [
        ({"k": "x" * 9000}, b"d", b"a", {"again", "cut"}),  # text for people; a replay has its own
        ({"k": '"' * 3000}, b"d", b"a", {"again", "cut"}),  # each of them is three on the wire
        ({"k": "x"}, b"d" * (layout.MAX_DATA + 1), b"a", {"cut"}),
        ({"k": "x"}, b"d", b"a" * 20_000, {"cut"}),
        ({"k": "x"}, b"d" * layout.MAX_DATA, b"a" * 18_000, {"again"}),
    ],
)
def test_what_is_cut_says_so_and_is_replayed_only_if_nothing_of_it_is_missing(
    headers: dict[str, str], data: bytes, again: bytes, kept: set[str]
) -> None:
    record = quarantined(headers, data, again)

    assert layout.faas_headers(record.headers).keys() & {"again", "cut"} == kept
    assert len(record.data) <= layout.MAX_DATA
    assert len(record.headers) < 65_535 - 600


@pytest.mark.parametrize("limit", [1000, 2000, 5000])
def test_for_a_server_that_takes_less_it_is_shortened_and_not_replayed(limit: int) -> None:
    record = layout.shortened(quarantined({"k": "x"}, b"d" * 4000, b"a"), limit)
    told = layout.faas_headers(record.headers)

    assert len(record.headers) + len(record.data) <= limit
    assert ("again" in told, "cut" in told) == ((True, False) if limit == 5000 else (False, True))
    assert told["reason"] == "no magic byte"


# --- headers ------------------------------------------------------------------------------------------------

texts = st.text(st.one_of(st.sampled_from("\r\n:% Az09é😀\x00"), st.characters()), max_size=300)


@given(texts, texts)
def test_no_reason_or_detail_can_add_a_header(reason: str, detail: str) -> None:
    lines = dead(reason=reason, detail=detail).headers.split(b"\r\n")
    names = [line.partition(b":")[0].decode() for line in lines]

    assert names == [
        *["Faas-" + name for name in ("Topic", "Sequence", "Attempts", "First", "Last", "Reason", "Fingerprint", "Version", "Detail")],
        *[line.partition(b":")[0].decode() for line in EVENT.headers().split(b"\r\n")],
    ]
    assert all(0x20 <= byte <= 0x7E for line in lines for byte in line)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200).map(str.strip))
def test_a_short_reason_and_detail_come_back_as_they_were(text: str) -> None:
    headers = layout.faas_headers(dead(reason=text, detail=text).headers)

    assert (headers["reason"], headers["detail"]) == (text, text)


@given(st.text(min_size=1, max_size=5), st.integers(1, 20_000), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_long_detail_keeps_its_end_within_8_kib(filling: str, times: int, end: str) -> None:
    encoded = layout._encoded(filling * times + end)

    assert len(encoded) <= (8 << 10) + 3
    assert encoded.endswith(layout._encoded(end))
    assert not re.match(r"\.\.\.[0-9A-F]?%?[0-9A-F]?$", encoded)


@pytest.mark.parametrize("text", ["x", "\n", "é", "😀", "\ud800"])
def test_a_dead_letter_of_an_event_with_the_longest_headers_is_still_taken(text: str) -> None:
    """JetStream refuses headers of 64 KiB; 600 bytes are for the message id and the batch."""
    record = dead(reason=text * 20_000, detail=text * 20_000)

    assert len(record.headers) - len(EVENT.headers()) + layout.MAX_HEADERS < 65_535 - 600


def test_headers_that_would_act_on_the_bus_again_are_dropped_in_any_case() -> None:
    acting = [
        b"Nats-Msg-Id: 1",
        b"nats-rollup: all",
        b"NATS-TTL: 1s",
        b"Nats-Schedule: @every 1s",
        b"Faas-Attempts: 9",
        b"fAAS-Topic: x",
        b"Nats-Expected-Stream: S",
    ]
    kept = [b"ce-id: 1", b"traceparent: 00", b"Content-Type: application/cloudevents+json", b"Natsy: x", b"x-nats-y: z"]

    assert layout.event_headers(b"NATS/1.0\r\n" + b"\r\n".join([*acting, *kept]) + b"\r\n\r\n") == b"\r\n".join(kept) + b"\r\n"


def test_header_lines_are_lower_case_names_and_stripped_values() -> None:
    assert layout.header_lines(b"NATS/1.0\r\nA-B:  c: d \r\nno colon\r\nE:\r\n\r\n") == [("a-b", "c: d"), ("e", "")]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("KeyError: 'a1'", "KeyError: 'b2'"),
        ("order 17 of 20 is gone", "order 3 of 5 is gone"),
        ("<Order at 0x7f001122>", "<Order at 0x55aa>"),
        ('no "x"', 'no "y z"'),
    ],
)
def test_the_same_cause_has_one_fingerprint(one: str, two: str) -> None:
    assert layout.fingerprint(one, "") == layout.fingerprint(two, "")


def test_the_folder_and_the_line_do_not_count() -> None:
    one, two = 'File "/srv/a/x.py", line 1, in f\n  x', 'File "/home/b/x.py", line 7, in f\n  x'

    assert layout.fingerprint("a", one) == layout.fingerprint("a", two)


def test_another_cause_or_place_has_another_fingerprint() -> None:
    here, there = 'File "a.py", line 1, in f\n  x', 'File "a.py", line 2, in g\n  x'

    assert len({layout.fingerprint(*pair) for pair in [("a", ""), ("b", ""), ("a", here), ("a", there)]}) == 4
    assert layout.fingerprint("a", there + "\n" + here) == layout.fingerprint("a", here), "the innermost frame counts"


# --- streams and consumers ----------------------------------------------------------------------------------


def test_streams_never_drop_what_is_not_settled() -> None:
    by_name = {config["name"]: config for config in layout.streams(max_bytes=10, dead_bytes=5, replicas=3)}

    assert list(by_name) == ["events", "retries", "dead"]
    assert {(config["retention"], config["max_age"], config["num_replicas"], config["storage"]) for config in by_name.values()} == {
        ("limits", 0, 3, "file")
    }
    assert (by_name["events"]["discard"], by_name["dead"]["discard"]) == ("new", "new")
    assert (by_name["events"]["max_bytes"], by_name["dead"]["max_bytes"]) == (10, 5)
    assert not {"max_bytes", "discard", "max_msgs"} & by_name["retries"].keys(), "message schedules refuse them"
    assert not any("deny_delete" in config or "deny_purge" in config or "max_deliver" in config for config in by_name.values())


def test_every_record_has_exactly_one_stream() -> None:
    prefixes = [subject for config in layout.streams(max_bytes=1, dead_bytes=1) for subject in config["subjects"]]
    subjects = ["ev.a.-.-", "re.q.-.-", "at.q.1.1", "at.publish.x", "go.q", "go.publish", "dead.q"]

    assert [sum(nats_matches(prefix, subject) for prefix in prefixes) for subject in subjects] == [1] * len(subjects)


def test_a_plain_queue_is_one_consumer_of_events_and_one_of_retries() -> None:
    (stream, events_), (other, retries) = layout.consumers(QUEUE)

    assert (stream, other) == ("events", "retries")
    assert (events_["durable_name"], events_["filter_subjects"]) == ("shop--reserve", ["ev.orders.*.*.*"])
    assert (retries["durable_name"], retries["filter_subject"], retries["deliver_policy"]) == ("shop--reserve", "go.shop--reserve", "all")
    for config in (events_, retries):
        assert (config["ack_policy"], config["max_deliver"], config["ack_wait"]) == ("explicit", -1, 30_000_000_000)
        assert "backoff" not in config


@pytest.mark.parametrize(
    ("start", "config"),
    [
        ("new", {"deliver_policy": "new"}),
        ("first", {"deliver_policy": "all"}),
        ("2026-01-31T09:30:00Z", {"deliver_policy": "by_start_time", "opt_start_time": "2026-01-31T09:30:00Z"}),
    ],
)
def test_a_queue_starts_where_it_was_told(start: str, config: dict[str, str]) -> None:
    _, made = layout.consumers(Queue("q", ("a",), start=start))[0]

    assert config.items() <= made.items()


@pytest.mark.parametrize("partitions", [16, 256])
@settings(max_examples=30)
@given(topic=topics, key=keys, wanted=st.lists(patterns.filter(lambda pattern: not pattern.endswith(">")), min_size=1, max_size=3))
def test_each_event_goes_to_one_consumer_of_an_ordered_queue(partitions: int, topic: str, key: str | None, wanted: list[str]) -> None:
    queue = Queue("shop--f", tuple(wanted), partitions)
    try:
        made = [config for stream, config in layout.consumers(queue) if stream == "events"]
    except ConfigError:
        assume(False)
    replay = f"re.shop--f.{partition(key)}"
    hits = [config for config in made if any(nats_matches(one, event_subject(topic, key)) for one in config["filter_subjects"])]

    assert len({config["durable_name"] for config in made}) == partitions + 1
    assert len(hits) == any(matches(pattern, topic) for pattern in wanted)
    durable, filter = layout.replay_filter(queue, replay)
    assert nats_matches(filter, replay)
    [through] = [config for config in made if config["durable_name"] == durable]
    assert hits in ([], [through]), "a replay never overlaps with an event of its key"
    assert through["max_ack_pending"] == (1 if key else 50_000)


@pytest.mark.parametrize("partitions", [16, 256])
@given(one=keys, other=keys)
def test_each_replay_is_heard_by_one_partition(partitions: int, one: str | None, other: str | None) -> None:
    queue = Queue("shop--f", ("a",), partitions)
    (durable, filter), (another, _) = (layout.replay_filter(queue, f"re.shop--f.{partition(key)}") for key in (one, other))

    assert nats_matches(filter, f"re.shop--f.{partition(other)}") == (durable == another)


@given(wanted=st.lists(patterns, min_size=1, max_size=4), subject=st.builds(event_subject, topics, keys))
def test_no_two_filters_of_one_consumer_overlap(wanted: list[str], subject: str) -> None:
    try:
        _, config = layout.consumers(Queue("q", tuple(wanted)))[0]
    except ConfigError:
        assume(False)

    assert sum(nats_matches(one, subject) for one in config["filter_subjects"]) <= 1


def test_an_ordered_queue_cannot_take_all_topics_below() -> None:
    for pattern in (">", "a.>"):
        with pytest.raises(ConfigError, match="cannot listen to '>'"):
            layout.consumers(Queue("q", (pattern,), 16))


def test_the_queue_of_delayed_publishes_has_no_topics() -> None:
    assert [(stream, config["filter_subject"]) for stream, config in layout.consumers(Queue("publish", ()))] == [("retries", "go.publish")]


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"Faas-Attempts: -5\r\nFaas-First: nan\r\nFaas-Topic: a..b\r\nFaas-Sequence: \r\n",
        b"Faas-Attempts: " + b"9" * 40 + b"\r\nFaas-First: 1e999\r\nFaas-Topic: *\r\nFaas-Sequence: " + b"x" * 5000 + b"\r\n",
        b"Faas-Attempts: -1e9x\r\nFaas-First: yesterday\r\n",
        "Faas-Attempts: \u0663\r\nFaas-First: inf\r\nFaas-Sequence: a%0D%0Ab\r\n".encode(),
    ],
)
def test_what_other_clients_claim_in_our_headers_is_not_believed(headers: bytes) -> None:
    delivery = Delivery("go.p--f", headers, b"", 7, 1, 12.5, "retries/p--f", "")

    assert layout.origin(delivery) == ("", "other-7", 0, 12.5)
