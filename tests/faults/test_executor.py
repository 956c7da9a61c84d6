"""User code that fails in every way it can: each is one failed attempt, or one exit, with its reason; the worker lives on."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_faas.decide import FAILED, INVALID, OK, REJECTED, RETRY, SKIPPED, TIMEOUT
from broker_faas.workers.frames import Done, Outcome, encode

from ..executors import Project, alive, project
from ..helpers import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
import asyncio, contextvars, ctypes, logging, os, re, signal, subprocess, sys, threading, time
from collections import deque
from dataclasses import dataclass
from itertools import repeat

from broker_faas import CloudEvent, Reject, Retry, function
from broker_faas.where import exact

@dataclass
class Order:
    id: int

def acts(event):
    match event.json():
        case "value error": raise ValueError("no good")
        case "retry": raise Retry("later", after=60)
        case "reject": raise Reject("never")
        case "system exit": sys.exit(3)
        case "system exit 0": sys.exit()
        case "keyboard interrupt": raise KeyboardInterrupt
        case "generator exit": raise GeneratorExit
        case "cancelled": raise asyncio.CancelledError
        case "recursion":
            def deeper(): deeper()
            deeper()
        case "hostile str":
            class Hostile(Exception):
                def __str__(self): raise SystemExit
            raise Hostile
        case "hostile group": raise BaseExceptionGroup("many", [KeyboardInterrupt(), SystemExit()])
        case "memory": raise MemoryError
        case "lone surrogate in reason": raise ValueError("\\ud800")
        case "unpicklable": return threading.Lock()
        case "unencodable": return {"text": "\\ud800"}
        case "surrogate bytes": return b"\\xff"
        case "large": return "x" * (3 << 19)
        case "huge": return "x" * (9 << 20)
        case "many": return [CloudEvent(type="t", source="/s", id=str(n), pad="x" * 1000) for n in range(40_000)]
        case "_exit 0": os._exit(0)
        case "_exit 3": os._exit(3)
        case "segfault": ctypes.string_at(0)
        case "abort": os.abort()
        case "kill 9": os.kill(os.getpid(), signal.SIGKILL)
        case "kill term": os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)
        case "kill 40": os.kill(os.getpid(), 40); time.sleep(10)
        case "close fds": os.closerange(0, 256); time.sleep(30)
        case "close fds and return": os.closerange(3, 256); time.sleep(0.1)
        case "garbage": os.write(socket_fd(), b"GET / HTTP/1.1\\r\\n\\r\\n" * 10); time.sleep(30)
        case "huge frame": os.write(socket_fd(), (1 << 31).to_bytes(4, "big")); time.sleep(30)
        case "forged outcome": os.write(socket_fd(), b"\\0\\0\\0\\x0b\\x93\\xa4done" + bytes([0x91, 0xCD, 255, 254, 0x90])); time.sleep(30)
        case "pid": return os.getpid()
        case "ok": return None

def socket_fd():
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            continue
        if link.startswith("socket:") and int(fd) > 2:
            import socket
            try:
                socket.socket(fileno=os.dup(int(fd))).getpeername()
            except OSError:
                continue
            return int(fd)

@function(on="t", sends="out")
async def act(event):
    return acts(event)

@function(on="t", sends="out")
def act_sync(event):
    return acts(event)

@function(on="t")
async def waits(event):
    await asyncio.sleep(30)

@function(on="t")
async def waits_or_not(event):
    if event.json():
        await asyncio.sleep(event.json())

@function(on="t")
async def blocks(event):
    time.sleep(event.json())

@function(on="t")
async def swallows(event):
    while True:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass

@function(on="t")
async def swallows_once(event):
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        pass

@function(on="t")
def sleeps(event):
    time.sleep(30)

@function(on="t")
def starts_a_child(event):
    subprocess.Popen(["sleep", "60"])
    time.sleep(30)

@function(on="t")
def spins(event):
    while True:
        try:
            while True: pass
        except Exception:
            pass

@function(on="t")
def backtracks(event):
    re.match(r"(a+)+$", "a" * 40 + "b")

@function(on="t")
def hogs(event):
    deque(repeat(0), maxlen=0)  # C code that never looks for signals

@function(on="t")
async def backtracks_async(event):
    re.match(r"(a+)+$", "a" * 40 + "b")

@function(on="t", where=exact(type="other"))
async def picky(event): ...

@function(on="t")
async def typed(order: Order): ...
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Project]:
    async with project(tmp_path_factory.mktemp("faulty"), app=SOURCE) as opened:
        yield opened


FAILURES = [
    ("value error", FAILED, "ValueError: no good"),
    ("retry", RETRY, "later"),
    ("reject", REJECTED, "never"),
    ("system exit", FAILED, "SystemExit: 3"),
    ("system exit 0", FAILED, "SystemExit"),
    ("keyboard interrupt", FAILED, "KeyboardInterrupt"),
    ("generator exit", FAILED, "GeneratorExit"),
    ("cancelled", FAILED, "CancelledError"),
    ("recursion", FAILED, "RecursionError: maximum recursion depth exceeded"),
    ("hostile str", FAILED, "Hostile"),
    ("hostile group", FAILED, "BaseExceptionGroup: many (2 sub-exceptions)"),
    ("memory", FAILED, "MemoryError"),
    ("lone surrogate in reason", FAILED, "ValueError: ?"),
    ("unpicklable", REJECTED, "returned lock that cannot be sent"),
    ("unencodable", REJECTED, "returned dict that cannot be sent"),
    ("huge", REJECTED, "its outputs have 9,437,"),
    ("many", REJECTED, "its outputs have 4"),  # more attributes than one frame can hold, and no data
]


@pytest.mark.parametrize("name", ["act", "act_sync"])
async def test_whatever_a_handler_raises_is_one_failed_attempt_and_the_executor_lives_on(faulty: Project, name: str) -> None:
    running = await faulty.start(name)
    for deed, status, reason in FAILURES:
        outcome = await running.call(data=deed)

        assert (outcome.status, outcome.reason[: len(reason)]) == (status, reason), deed
    pid = await running.returned(data="pid")

    assert pid == running.executor.pid
    assert running.exits == []


async def test_retry_tells_when(faulty: Project) -> None:
    running = await faulty.start("act")
    outcome = await running.call(data="retry")

    assert outcome.after == 60


async def test_a_traceback_starts_in_user_code(faulty: Project) -> None:
    running = await faulty.start("act")
    outcome = await running.call(data="value error")

    assert "app.py" in outcome.detail
    assert "coroutines.py" not in outcome.detail


async def test_an_output_larger_than_the_bus_takes_reaches_the_worker_whose_decision_it_is(faulty: Project) -> None:
    running = await faulty.start("act")
    outcome = await running.call(data="large")

    assert outcome.status == OK
    assert len(outcome.outputs[0][2] or b"") == (3 << 19) + 2


async def test_a_filter_that_says_no_is_not_a_call(faulty: Project) -> None:
    running = await faulty.start("picky")
    outcome = await running.call(data="x")

    assert outcome.status == SKIPPED


async def test_data_that_does_not_fit_the_model_is_invalid(faulty: Project) -> None:
    running = await faulty.start("typed")
    outcome = await running.call(data={"id": "seven"})

    assert outcome.status == INVALID
    assert "Expected `int`, got `str` - at `$.id`" in outcome.reason


EXITS = [
    ("_exit 0", "exit code 0"),
    ("_exit 3", "exit code 3"),
    ("segfault", "SIGSEGV"),
    ("abort", "SIGABRT"),
    ("kill 9", "SIGKILL (out of memory?)"),
    ("kill term", "SIGTERM"),
    ("kill 40", "signal 40"),
    ("close fds", "closed its socket"),
    ("garbage", "wrote garbage to its socket: a frame announces 1,195,725,856 bytes; the limit is 33,554,432"),
    ("huge frame", "wrote garbage to its socket: a frame announces 2,147,483,648 bytes; the limit is 33,554,432"),
    ("forged outcome", "wrote garbage to its socket: an outcome of call 65534, which it does not have"),
]


@pytest.mark.parametrize("name", ["act", "act_sync"])
@pytest.mark.parametrize(("deed", "reason"), EXITS)
async def test_what_ends_an_executor_is_reported_once_with_its_reason_and_the_call_it_was_in(
    faulty: Project, name: str, deed: str, reason: str
) -> None:
    running = await faulty.start(name)
    (id,) = running.send(data=deed)
    exit = await running.exit()

    assert exit.reason.startswith(reason)
    assert exit.running == {id}
    assert not exit.zygote_died
    assert [*running.executor.inflight] == [id]
    assert not alive(running.executor.pid)
    assert len(running.exits) == 1


@pytest.mark.parametrize("after", [-1.0, math.nan, math.inf])
async def test_an_outcome_with_an_impossible_time_ends_its_executor_and_its_call_is_not_lost(faulty: Project, after: float) -> None:
    running = await faulty.start("waits_or_not")
    fine, wrong, behind = running.send(n=3, data=30)
    others = [Outcome(fine, OK, "", "", None, []), Outcome(wrong, RETRY, "later", "", after, [])]
    running.executor.data_received(bytes(encode(Done([], others))))
    exit = await running.exit()

    assert exit.reason == f"wrote garbage to its socket: after {after}"
    assert [fine] == [*running.answers]
    assert [wrong, behind] == [*running.executor.inflight]


async def test_calls_beside_a_crash_are_told_apart_from_those_that_wait(faulty: Project) -> None:
    """Neighbours that were suspended are marked as running, calls that were not started are not."""
    running = await faulty.start("waits_or_not", "act", concurrency=3)
    neighbours = running.send(n=3, data=30)
    await eventually(lambda: len(running.executor.running()) == 3)
    waiting = running.send(n=2, data=30)
    (guilty,) = running.send(function=1, data="_exit 3")
    exit = await running.exit()

    assert exit.running == {*neighbours, guilty}
    assert set(running.executor.inflight) == {*neighbours, guilty, *waiting}


async def test_outcomes_before_a_crash_are_not_lost(faulty: Project) -> None:
    running = await faulty.start("waits_or_not", "act")
    before = running.send(n=5, data=0)
    await eventually(lambda: len(running.answers) == 5)
    running.send(function=1, data="_exit 3")
    await running.exit()

    assert {*before} == {*running.answers}


# --- deadlines


@pytest.mark.parametrize("name", ["waits", "swallows_once", "sleeps", "spins", "backtracks"])
async def test_at_its_deadline_a_call_is_interrupted(faulty: Project, name: str) -> None:
    running = await faulty.start(name, timeout=0.2)
    started = time.monotonic()
    outcome = await running.call()

    assert (outcome.status, outcome.reason) == (TIMEOUT, "timeout after 0.2 s")
    assert 0.2 <= time.monotonic() - started < 1.5
    assert running.exits == []


async def test_a_timeout_says_where_it_was(faulty: Project) -> None:
    running = await faulty.start("sleeps", timeout=0.1)
    outcome = await running.call()

    assert "time.sleep(30)" in outcome.detail


async def test_the_neighbours_of_a_call_cancelled_at_its_deadline_go_on(faulty: Project) -> None:
    running = await faulty.start("waits", "waits_or_not", timeout=0.3)
    await eventually(lambda: not running.answers)
    (slow,) = running.send()
    await eventually(lambda: slow in running.executor.running())
    (other,) = running.send(function=1, data=0.25)
    await eventually(lambda: len(running.answers) == 2)

    assert running.answers[slow].status == TIMEOUT
    assert running.answers[other].status == OK


async def test_a_call_that_another_one_kept_past_its_deadline_goes_on(faulty: Project) -> None:
    running = await faulty.start("waits_or_not", "blocks", timeout=0.3)
    await running.call(data=0)
    (kept,) = running.send(data=0.05)
    running.send(function=1, data=0.6)
    await eventually(lambda: kept in running.answers)

    assert running.answers[kept].status == OK


@pytest.mark.parametrize("name", ["swallows", "hogs", "backtracks_async"])
async def test_what_ignores_its_deadline_shows_on_the_page_and_can_be_killed(faulty: Project, name: str) -> None:
    running = await faulty.start(name, timeout=0.1)
    (id,) = running.send()
    await eventually(lambda: time.monotonic() - running.executor.running().get(id, time.monotonic()) > 0.5)
    running.executor.kill("deadline")
    exit = await running.exit()

    assert exit.reason == "deadline"
    assert exit.running == {id}


async def test_a_sync_executor_runs_the_next_call_after_a_timeout_with_a_deadline_of_its_own(faulty: Project) -> None:
    running = await faulty.start("sleeps", timeout=0.1)
    ids = running.send(n=3)
    await eventually(lambda: len(running.answers) == 3)

    assert [running.answers[id].status for id in ids] == [TIMEOUT] * 3


# --- drain


async def test_drain_finishes_what_was_sent_and_exits_cleanly(faulty: Project) -> None:
    running = await faulty.start("waits_or_not")
    ids = running.send(n=20, data=0.05)
    running.executor.drain()
    exit = await running.exit()

    assert exit.reason == "drained"
    assert {*running.answers} == {*ids}


async def test_kill_reaches_an_executor_that_blocks_signals_and_its_children(faulty: Project) -> None:
    running = await faulty.start("waits")
    running.send()
    await eventually(running.executor.running)
    os.kill(running.executor.pid, signal.SIGSTOP)
    running.executor.kill("stop")
    exit = await running.exit()

    assert exit.reason == "stop"


async def test_a_burst_of_calls_that_never_wait_is_answered_in_one_go(faulty: Project) -> None:
    """One slot runs them all; a frame for each would be 500."""
    running = await faulty.start("waits_or_not", concurrency=16)
    running.send(n=500, data=0)
    await eventually(lambda: len(running.answers) == 500)

    assert running.bursts <= 10


async def test_an_outcome_does_not_wait_behind_a_slow_call(faulty: Project) -> None:
    running = await faulty.start("act_sync", "sleeps", timeout=5)
    (quick,) = running.send(data="ok")
    running.send(function=1)
    started = time.monotonic()
    await eventually(lambda: quick in running.answers)

    assert time.monotonic() - started < 1.0
    assert running.executor.running()


async def test_processes_that_a_call_left_behind_are_seen(faulty: Project) -> None:
    running = await faulty.start("starts_a_child", timeout=0.2)
    before = running.executor.has_children()
    outcome = await running.call()

    assert outcome.status == TIMEOUT
    assert (before, running.executor.has_children()) == (False, True)


async def test_an_executor_whose_socket_is_closed_ends_in_the_call_in_which_that_is_noticed(faulty: Project) -> None:
    """Else the page says nothing of it, and what runs there next is to blame."""
    running = await faulty.start("act_sync")
    _, second = running.send(n=2, data="close fds and return")
    exit = await running.exit()

    assert exit.running == {second}
    assert exit.reason in ("exit code 70", "closed its socket")
