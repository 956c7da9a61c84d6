"""What we write of AMQP is what pamqp reads."""

from __future__ import annotations

from datetime import UTC, datetime

import pamqp.frame
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from broker_faas.connectors.amqp.frames import message, properties, publish, room_for
from broker_faas.connectors.amqp.publisher import Closed, Sent, blamed, too_large

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)
NAMES = st.dictionaries(TEXT, TEXT, max_size=5)


@given(NAMES, st.none() | TEXT, st.none() | TEXT, TEXT, st.none() | st.integers(0, 4_000_000_000), TEXT)
def test_properties_are_read_as_they_were(
    headers: dict[str, str], content_type: str | None, correlation_id: str | None, id: str, time: int | None, type: str
) -> None:
    header = ContentHeader()
    header.unmarshal(b"\0\x3c\0\0" + bytes(8) + properties(headers, content_type, correlation_id, id, time, type))
    read = header.properties

    assert (read.headers or {}) == headers
    assert (read.content_type, read.correlation_id, read.message_id, read.message_type) == (content_type, correlation_id, id, type)
    assert read.timestamp == (None if time is None else datetime.fromtimestamp(time, UTC))
    assert read.delivery_mode == 2


@given(st.binary(max_size=3000), st.integers(200, 1000))
def test_a_body_is_cut_into_frames_that_fit(body: bytes, frame_max: int) -> None:
    block = properties({"ce-id": "1"}, None, None, "1", None, "t")
    data = message(7, publish("é", "k.é"), block, body, frame_max)
    read = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        assert (channel, size <= frame_max) == (7, True)
        read.append(frame)
        data = data[size:]
    method, header, *bodies = read

    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory, method.immediate) == ("é", "k.é", True, False)
    assert isinstance(header, ContentHeader)
    assert header.body_size == len(body)
    assert b"".join(one.value for one in bodies if isinstance(one, ContentBody)) == body
    assert len(block) <= room_for(frame_max)


def test_a_closed_channel_is_blamed_on_what_it_names() -> None:
    small, large, other = (Sent(n, key, b"", b"", b"x" * size) for n, (key, size) in enumerate([("a.b", 10), ("a.b", 99), ("a.c", 10)]))
    flight = [small, large, other]
    size = Closed(406, "PRECONDITION_FAILED - message size 99 is larger than configured max size 50")
    topic = Closed(403, "ACCESS_REFUSED - write access to topic 'a.c' in exchange 'x' in vhost '/' refused for user 'u'")

    assert (blamed(size, flight), too_large(size)) == ([large], 50)
    assert (blamed(topic, flight), too_large(topic)) == ([other], None)
    assert blamed(Closed(403, "ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'"), flight) == flight
    assert blamed(Closed(404, "NOT_FOUND - no exchange 'x' in vhost '/'"), flight) == flight
    assert blamed(Closed(541, "INTERNAL_ERROR"), flight) == []
