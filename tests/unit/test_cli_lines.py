"""From JSON lines to events."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from broker_faas.cli.lines import LONGEST, Draft, is_file, lines
from broker_faas.errors import EventError, EventInvalid, EventTooLarge

DRAFT = Draft("orders.created", "/shop/publish", None, {})


async def read(path: Path) -> list[tuple[int, bytes]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [line async for batch in lines(descriptor) for line in batch]
    finally:
        os.close(descriptor)


async def test_lines_are_numbered_from_one_and_empty_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\r\n\n  \n{"a":2}\nlast')

    assert await read(path) == [(1, b'{"a":1}'), (4, b'{"a":2}'), (5, b"last")]


async def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\n\xef\xbb\xbf2\n')

    assert await read(path) == [(1, b'{"a":1}'), (2, b"\xef\xbb\xbf2")]


async def test_a_line_longer_than_any_event_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (LONGEST + (1 << 20)))

    with pytest.raises(EventInvalid, match=r"line 1 is longer than .* JSON lines\?"):
        await read(path)


async def test_lines_of_a_pipe_come_as_they_are_written() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"1\n2\n3")
    batches = lines(reader)
    first = await anext(batches)
    os.write(writer, b"4\n")
    second = await anext(batches)
    os.close(writer)
    rest = [batch async for batch in batches]
    os.close(reader)

    assert (first, second, rest) == ([(1, b"1"), (2, b"2")], [(3, b"34")], [])


async def test_waiting_for_a_pipe_can_be_cancelled() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(lines(reader))
    finally:
        os.close(reader)
        os.close(writer)


def test_dev_null_is_no_file_and_has_no_lines() -> None:
    async def count() -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        try:
            assert not is_file(descriptor)
            return len([batch async for batch in lines(descriptor)])
        finally:
            os.close(descriptor)

    assert asyncio.run(count()) == 0


def test_data_keeps_its_bytes_and_gets_attributes() -> None:
    event = DRAFT.of_data('{"price": 1.10, "big": 12345678901234567890123}')

    assert event.data == b'{"price": 1.10, "big": 12345678901234567890123}'
    assert (event.type, event.source, event.datacontenttype) == ("orders.created", "/shop/publish", "application/json")
    assert event.id != DRAFT.of_data("1").id


def test_data_that_is_no_json_says_how_to_quote_it_or_to_send_text() -> None:
    with pytest.raises(EventInvalid, match=r"DATA is not JSON: .* Quote it for the shell.* --header datacontenttype=text/plain"):
        DRAFT.of_data("{id: 1}")


def test_text_is_sent_as_it_is_when_its_type_says_so() -> None:
    event = Draft("a.b", "/x", None, {"datacontenttype": "text/plain"}).of_data("hello wörld")

    assert (event.data, event.datacontenttype) == ("hello wörld".encode(), "text/plain")


def test_no_data_is_an_event_without_data() -> None:
    assert DRAFT.of_data(None).data is None


def test_a_line_with_specversion_is_a_cloudevent_and_options_win() -> None:
    line = json.dumps({"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "tenant": "a", "data": {"x": 1}}).encode()
    event = Draft("orders.created", "/shop/publish", None, {"type": "u"}).of_line(3, line)

    assert (event.id, event.source, event.type, event["tenant"], event.json()) == ("7", "/s", "u", "a", {"x": 1})


def test_ids_of_a_file_are_derived_from_the_given_one() -> None:
    draft = Draft("a.b", "/x", "run-1", {})

    assert (draft.of_line(3, b"1").id, draft.of_line(4, b"2").id) == ("run-1/3", "run-1/4")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"specversion": "1.0", "id": "1", "type": "t"}', "'source' is missing"),
        (b'{"specversion": "0.3", "id": "1", "source": "/s", "type": "t"}', "specversion"),
        (b'{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "Bad-Name": 1}', "Bad-Name"),
    ],
)
def test_a_line_that_is_no_event_says_why(line: bytes, said: str) -> None:
    with pytest.raises(EventError, match=said):
        DRAFT.of_line(1, line)


def test_what_the_bus_would_refuse_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(EventTooLarge, match=r"data of 1,048,5.. bytes exceeds the bus limit of 1,048,576"):
        DRAFT.of_line(1, b'"' + b"x" * (1 << 20) + b'"')
