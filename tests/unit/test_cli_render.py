"""What a person reads."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from typing import Any

import pytest

from broker_faas.cli import logs, render
from broker_faas.cli.render import Column, Progress, age, clean, count, duration, number, size, table


def test_a_table_is_aligned_and_numbers_are_at_the_right() -> None:
    rows: list[dict[str, Any]] = [{"name": "reserve", "lag": 1200}, {"name": "notify", "lag": None}]

    lines = table(rows, [Column("function", "name"), Column("lag", "lag", number, right=True)])

    assert lines == ["function    lag", "reserve   1,200", "notify        -"]


def test_the_longest_texts_are_cut_to_the_terminal_and_numbers_are_not() -> None:
    columns = [Column("id", "id"), Column("n", "n", right=True), Column("reason", "reason")]
    lines = table([{"id": "x" * 20, "n": 12345, "reason": "y" * 50}], columns, width=50)

    assert lines == ["id                        n  reason", f"{'x' * 20}  12345  {'y' * 20}…"]


def test_what_is_too_narrow_for_a_table_is_a_block_a_row() -> None:
    columns = [Column("function", "function"), Column("in progress", "n", right=True), Column("note", "note")]
    rows = [{"function": "reserve", "n": 5, "note": "its function is gone: prune it"}, {"function": "audit", "n": 0, "note": ""}]
    lines = table(rows, columns, width=30)

    assert lines == [
        *("function     reserve", "in progress  5", "note         its function is gone: prune it", ""),
        *("function     audit", "in progress  0", "note"),
    ]


def test_what_an_event_brings_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\nc\u202e") == "a\\x1b[2Jb\\r\\nc\\u202e"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0004, "0 ms"), (0.25, "250 ms"), (3.21, "3.2 s"), (45, "45 s"), (600, "10 min"), (3 * 3600, "3 h"), (5 * 86400, "5 d")],
)
def test_a_duration_is_said_in_its_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("bytes", "said"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB"), (3 << 40, "3.0 TiB")])
def test_a_size_is_said_in_its_unit(bytes: int, said: str) -> None:
    assert size(bytes) == said


def test_one_event_is_not_events() -> None:
    assert (count(1, "event"), count(1707, "event")) == ("1 event", "1,707 events")


def test_an_age_below_a_second_is_now() -> None:
    assert (age(time.time()), age(time.time() - 30)) == ("just now", "30 s ago")


def test_json_of_nothing_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    render.show([], [Column("a", "a")], "json", "nothing here")

    assert json.loads(capsys.readouterr().out) == []


def test_an_empty_table_says_what_to_do_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    render.show([], [Column("a", "a")], "table", "nothing here")

    assert capsys.readouterr() == ("", "nothing here\n")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, coloured = render.colour("x", "31", io.StringIO()), render.colour("x", "31", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")

    assert (plain, coloured, render.colour("x", "31", Terminal())) == ("x", "\x1b[31mx\x1b[0m", "x")


def test_progress_in_a_pipe_is_plain_lines_and_quiet_for_short_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress("events", 1000)
    progress.add(100)
    now = 106.0
    progress.add(200)
    progress.clear()

    assert capsys.readouterr().err == "300 of 1,000 events, 50/s\n"


# --- logs ---------------------------------------------------------------------------------------------------


def record(message: str, level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("broker_faas.x", level, "x.py", 1, message, None, None)
    made.__dict__.update(fields)
    return made


def test_json_logs_are_one_object_a_line_with_the_fields() -> None:
    line = logs.JsonFormatter().format(record("worker ready", functions=["a", "b"]))

    said = json.loads(line)
    assert said.pop("time")
    assert said == {"level": "info", "message": "worker ready", "logger": "broker_faas.x", "functions": ["a", "b"]}


def test_nothing_in_a_json_line_steers_a_terminal() -> None:
    text = "a\x1b[2J \x7f \x9b2J \u202e \u2028 ö \U0001f600"
    line = logs.JsonFormatter().format(record("output", text=text))

    assert json.loads(line)["text"] == text
    assert line == "".join(c for c in line if c.isprintable())


def test_a_person_reads_what_a_function_printed() -> None:
    line = logs.HumanFormatter().format(record("output", function="reserve", stream="stdout", text="hi \x1b[2J", event="1", attempt=1))

    assert line[9:] == "reserve      | hi \\x1b[2J"


def test_a_person_reads_why_an_attempt_failed_and_what_comes() -> None:
    fields = {"function": "reserve", "event": "1", "attempt": 2, "reason": "ValueError: no", "detail": 'File "f.py"', "delay_s": 2.0}
    formatter = logs.HumanFormatter()
    again = formatter.format(record("attempt failed", logging.WARNING, fate="held", **fields))
    dead = formatter.format(record("attempt failed", logging.WARNING, fate="dead", **fields))

    assert again[9:] == 'reserve      attempt 2 failed: ValueError: no; again in 2.0 s\n  File "f.py"'
    assert "; a dead letter now" in dead


def test_a_reader_of_the_logs_that_hangs_holds_up_nothing_and_is_told_what_it_missed() -> None:
    reader, writer = os.pipe()
    handler = logs.Unhindered(writer, size=100)
    handler.setFormatter(logs.JsonFormatter())
    started = time.monotonic()
    for n in range(5000):
        handler.emit(record("x" * 1000, n=n))
    took = time.monotonic() - started
    said, lines = b"", 0
    while lines < 5000:
        said += os.read(reader, 1 << 16)
        whole = said.rpartition(b"\n")[0].splitlines()
        lines = sum(json.loads(line).get("lines", 1) for line in whole)
    handler.close()
    os.close(reader)
    os.close(writer)

    assert took < 2
    assert (lines, b"log lines dropped" in said) == (5000, True)
