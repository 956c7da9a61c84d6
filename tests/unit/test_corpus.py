"""Hostile input: every case of tests/corpus/ that needs no server has the answer that its file states, at once and in little memory."""

from __future__ import annotations

import ast
import json
import logging
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import pytest

from broker_faas.cli.logs import HumanFormatter, JsonFormatter
from broker_faas.cli.render import clean
from broker_faas.decide import FAILED
from broker_faas.errors import ConfigError, EventInvalid, Retry
from broker_faas.event import CloudEvent
from broker_faas.invoke import classify
from broker_faas.layout import _MAX_DETAIL, dead_record, fingerprint
from broker_faas.workers.executor import Call, Executor, Exit, Group, Outcome
from tests import hostile
from tests.doors import DOORS, QUEUE, Dead, Facts, Files, Refusal, module_name, project_name
from tests.hostile import Case, made, size, through

from .test_dispatch import spec
from .test_feed import delivery

SECONDS = 1.0  # of CPU, at most
FLOOR = 2 << 20  # bytes beside: what messages, tracebacks, modules loaded on the way and the buffer for a file may take
OF_A_FILE = ("config", "project name", "module name")
OF_LOGS = ("text", "exception")
ON_A_BUS = ("stored attributes", "stored topic", "limit", "foreign message")  # tests/integration/test_corpus_bus.py


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def answer(case: Case, given: Any, door: Callable[[Any], Facts], refusal: Refusal) -> None:
    """Goes through the door, and has the answer that the case states."""
    if case.expect in ("refused", "dead"):
        expected = Dead if case.expect == "dead" else refusal
        with pytest.raises(expected) as raised:
            door(given)
        assert case.says in str(raised.value)
        assert len(str(raised.value)) < 1500
    else:
        facts = door(given)
        assert {name: facts.get(name) for name in case.gives} == case.gives
        assert not facts.get("messages")


def costs_little(case: Case, given: Any, door: Callable[[Any], Facts], refusal: Refusal) -> None:
    bytes_in = max(size(given) if isinstance(given, str | bytes) else 0, size(made(case.input)))
    before = process_time()
    answer(case, given, door, refusal)
    seconds = process_time() - before
    tracemalloc.start()
    try:
        answer(case, given, door, refusal)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert seconds < SECONDS
    assert peak < FLOOR + case.memory * bytes_in, f"{peak:,} bytes for {bytes_in:,}"


@named(through(*DOORS))
def test_hostile_input_has_its_answer_in_little_time_and_memory(case: Case) -> None:
    prepare, door, refusal = DOORS[case.door]
    costs_little(case, prepare(made(case.input)), door, refusal)


@named(through(*OF_A_FILE))
def test_a_hostile_configuration_has_its_answer_in_little_time_and_memory(case: Case, tmp_path: Path) -> None:
    raw = {"project name": project_name, "module name": module_name}.get(case.door)
    files = Files(tmp_path)
    given = made(case.input)
    costs_little(case, files.prepare({"raw": raw(given)} if raw else given), files, ConfigError)


# --- the socket of an executor ------------------------------------------------------------------------------


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.others: list[Outcome] = []

    def outcomes(self, executor: Executor, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        self.done += [call.id for calls in done for call in calls]
        self.others += [outcome for _, outcome in others]

    def exited(self, executor: Executor, exit: Exit) -> None: ...


@named(through("executor socket"))
async def test_what_an_executor_writes_counts_or_is_the_end_of_it(case: Case) -> None:
    given = made(case.input)
    if isinstance(given, dict):
        body = msgspec.msgpack.encode(["done", *given["done"]])
        given = len(body).to_bytes(4, "big") + body
    heard = Heard()
    executor = Executor(1, Group(name="g", functions=[spec()], env={}, sync=False), heard, lambda *_: None, lambda _: None)
    executor.inflight = {1: Call(1, 0, "t", 1, b"", b""), 2: Call(2, 0, "t", 1, b"", b"")}
    executor.load = [2]
    before = process_time()
    executor.data_received(given.encode() if isinstance(given, str) else given)
    executor.data_received(b"\x00\x00\x00\x09\x93\xa4done\x91\x02\x90")  # well formed: does what comes afterwards count?

    assert process_time() - before < SECONDS
    assert executor._why.startswith(case.says)
    assert (2 in heard.done) == (case.expect != "refused")
    assert [len(outcome.reason) for outcome in heard.others] == ([case.gives["reason"]] if case.gives else [])
    assert [len(outcome.detail) for outcome in heard.others] == ([case.gives["detail"]] if case.gives else [])
    assert len(heard.done) + len(heard.others) + len(executor.inflight) == 2


def test_nothing_in_the_product_can_load_a_pickle() -> None:
    package = Path(__file__).parents[2]
    files = [path for folder in ("broker_faas", "workers", "connectors") for path in (package / folder).glob("**/*.py")]
    found = {(path.name, name) for path in files for name in imported(path) if name.split(".")[0] in LOADERS}

    assert len(files) > 50
    assert found == set()


LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "copyreg", "multiprocessing", "yaml"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


# --- logs ---------------------------------------------------------------------------------------------------


def raises() -> Any:
    raise RuntimeError("from inside")


class Unprintable(Exception):
    __str__ = __repr__ = lambda self: raises()


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Number(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Itself(Exception):
    def __str__(self) -> str:
        return str(self)


class Unshown:
    __repr__ = lambda self: raises()  # noqa: E731


class NotNow(Retry):
    after = property(lambda self: raises(), lambda self, value: None)


def around() -> Exception:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def many(link: Callable[[Exception], Exception], times: int) -> Exception:
    error: Exception = ValueError("x")
    for _ in range(times):
        error = link(error)
    return error


def caused(by: Exception) -> Exception:
    error = ValueError("y")
    error.__cause__ = by
    return error


def changed(error: Exception, name: str, value: Any) -> Exception:
    setattr(error, name, value)
    return error


EXCEPTIONS: dict[str, Callable[[], Exception]] = {
    "str raises": Unprintable,
    "repr raises": lambda: ValueError(Unshown()),
    "str exits": Exits,
    "str is a number": Number,
    "str calls itself": Itself,
    "causes itself": around,
    "five thousand causes": lambda: many(caused, 5000),
    "three thousand groups": lambda: many(lambda error: ExceptionGroup("g", [error]), 3000),
    "syntax without text": lambda: SyntaxError("x", ("f", 1, 1, 5)),  # type: ignore[arg-type]
    "after cannot be shown": lambda: changed(Retry("x"), "after", Unshown()),
    "after raises": lambda: NotNow("x"),
    "notes are no list": lambda: changed(ValueError("x"), "__notes__", Unshown()),
}


@named(through(*OF_LOGS))
def test_whatever_fails_is_one_bounded_line_that_steers_nothing(case: Case) -> None:
    given = made(case.input)
    before = process_time()
    try:
        raise EXCEPTIONS[given]() if case.door == "exception" else ValueError(given)
    except Exception as error:
        failure = classify(error)
    took = process_time() - before
    fields = {
        "function": "f",
        "event": "1",
        "attempt": 1,
        "fate": "dead",
        "delay_s": 0.0,
        "reason": failure.reason,
        "detail": failure.detail,
    }
    record = logging.makeLogRecord({"msg": "attempt failed", "levelname": "WARNING", "levelno": 30, **fields})
    as_json, human = JsonFormatter().format(record), HumanFormatter().format(record)
    dead = dead_record(QUEUE, delivery(7, 1), reason=failure.reason, detail=failure.detail, attempts=1, now=1e9, version="v")

    assert took < SECONDS
    assert failure.status >= FAILED
    assert failure.reason
    assert "\n" not in failure.reason
    assert (len(failure.reason) <= 1100, len(failure.detail) <= 16 << 10) == (True, True)
    assert json.loads(as_json)["reason"] == failure.reason
    assert as_json.count("\n") == 0
    assert all(line == clean(line) for line in human.split("\n"))
    assert len(dead.headers) < 4 * 1000 + 2 * _MAX_DETAIL
    assert all(32 <= byte < 127 for byte in dead.headers.replace(b"\r\n", b""))
    assert len(fingerprint(failure.reason, failure.detail)) == 8


@named(through("text"))
def test_an_event_that_is_refused_is_not_quoted_at_length_nor_raw(case: Case) -> None:
    with pytest.raises(EventInvalid) as raised:
        CloudEvent(type="t", source="/s", id="1", data=b"", datacontenttype=made(case.input))

    assert len(str(raised.value)) < 400
    assert str(raised.value) == clean(str(raised.value))


# --- the corpus itself --------------------------------------------------------------------------------------


def test_every_case_has_an_id_of_its_own_and_is_run() -> None:
    cases = hostile.everything()
    doors = {*DOORS, *OF_A_FILE, *OF_LOGS, *ON_A_BUS, "executor socket"}
    files = {path.stem for path in hostile.FOLDER.iterdir()}

    assert [ident for ident, times in Counter(case.id for case in cases).items() if times > 1] == []
    assert {case.door for case in cases} == doors
    assert {case.family for case in cases} == files
    assert {case.expect for case in cases} == {*hostile.EXPECTATIONS}


@pytest.mark.parametrize("case", hostile.everything(), ids=lambda case: case.id)
def test_a_case_says_what_it_is_and_what_is_expected_of_it(case: Case) -> None:
    assert case.what.endswith(".")
    assert bool(case.says) <= (case.expect in ("refused", "dead"))
    assert bool(case.gives) <= (case.expect in ("accepted", "normalised"))
    assert case.says or case.expect not in ("refused", "dead") or case.door == "wire"
