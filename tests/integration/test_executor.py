"""What handlers may rely on inside an executor, and what becomes of what they print."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker_faas.decide import OK
from broker_faas.errors import ExecutorError
from broker_faas.pipe import OUTPUT_RATE
from broker_faas.workers.executor import Call, Line
from broker_faas.workers.zygote_handle import log_output

from ..executors import Project, project
from ..helpers import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
import asyncio, contextvars, logging, os, subprocess, sys, threading
import anyio
from broker_faas import Context, function

variable = contextvars.ContextVar("variable", default="unset")
started = []

@function(on="t", sends="out")
async def task_identity(event):
    task = asyncio.current_task()
    await asyncio.sleep(0)
    return task is not None and task is asyncio.current_task()

@function(on="t", sends="out")
async def times_out_itself(event):
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(30)
    except TimeoutError:
        pass
    try:
        await asyncio.wait_for(asyncio.sleep(30), 0.01)
    except TimeoutError:
        return asyncio.current_task().cancelling()

@function(on="t", sends="out")
async def uses_anyio(event):
    done = []
    async def child(n):
        await anyio.sleep(0.01)
        done.append(n)
    async with anyio.create_task_group() as tasks:
        for n in range(3):
            tasks.start_soon(child, n)
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep(30)
    return [sorted(done), scope.cancelled_caught, await anyio.to_thread.run_sync(lambda: 7)]

@function(on="t")
async def cancels_itself(event):
    asyncio.current_task().cancel()

@function(on="t", sends="out")
async def sets_variable(event):
    seen = variable.get()
    variable.set("set")
    return seen

@function(on="t", sends="out")
def sets_variable_too(event):
    seen = variable.get()
    variable.set("set")
    return seen

@function(on="t", concurrency=3)
async def overlaps(event, ctx):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.02)
    running -= 1
running = most = 0

@function(on="t", sends="out")
async def most_overlapping(event):
    return most

@function(on="t", sends="out")
async def in_order(event):
    started.append(event.json())
    await asyncio.sleep(0)
    return started

@function(on="t")
async def leaves_failing_tasks(event):
    async def leaves(): sys.exit(3)
    async def interrupts(): raise KeyboardInterrupt
    tasks = [asyncio.create_task(leaves()), asyncio.create_task(interrupts())]
    await asyncio.sleep(0.01)

@function(on="t")
async def awaits_a_task_that_exits(event):
    async def leaves(): sys.exit(3)
    await asyncio.create_task(leaves())

@function(on="t", sends="out")
async def about(event, ctx: Context):
    return [ctx.function, ctx.topic, ctx.attempt, 0 < ctx.remaining <= 30, ctx.project]

@function(on="t")
async def prints(event, ctx: Context):
    print("one", event.json())
    await asyncio.sleep(0.01)
    print("two", event.json(), end="")
    print("err", file=sys.stderr)
    logging.getLogger("mine").info("info %s", event.json())
    logging.getLogger("mine").debug("hidden")
    ctx.log.warning("warn")
    await asyncio.to_thread(print, "thread", event.json())
    print("unfinished", end="")

@function(on="t")
def prints_sync(event):
    print("sync", event.json())
    print("\\ud800 lone")

@function(on="t")
def prints_slowly(event):
    import time
    print("started")
    time.sleep(30)

@function(on="t")
async def floods(event):
    for n in range(1000):
        print("x" * 1_000_000)

@function(on="t")
def floods_fd(event):
    block = b"x" * (1 << 20)
    for n in range(1024):
        left = block
        while left:
            left = left[os.write(1, left):]

@function(on="t")
def from_c(event):
    os.write(1, b"from fd 1\\n")
    subprocess.run(["sh", "-c", "echo from a subprocess; echo and its stderr >&2"])
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Project]:
    async with project(tmp_path_factory.mktemp("app"), app=SOURCE) as opened:
        yield opened


# --- handlers and asyncio


@pytest.mark.parametrize(
    ("name", "returned"),
    [("task_identity", True), ("times_out_itself", 0), ("uses_anyio", [[0, 1, 2], True, 7])],
)
async def test_a_handler_runs_in_a_task_as_asyncio_and_anyio_expect(app: Project, name: str, returned: object) -> None:
    running = await app.start(name)
    for _ in range(3):
        assert await running.returned() == returned


async def test_a_handler_that_cancels_its_task_harms_no_other_call(app: Project) -> None:
    running = await app.start("cancels_itself", "task_identity")
    running.send(n=3)
    ids = running.send(n=3, function=1)
    await eventually(lambda: len(running.answers) == 6)

    assert [running.answers[id].status for id in ids] == [OK] * 3


@pytest.mark.parametrize("function", ["sets_variable", "sets_variable_too"])
async def test_a_context_variable_that_a_handler_sets_is_not_seen_by_the_next_call(app: Project, function: str) -> None:
    running = await app.start(function)
    seen = [await running.returned() for _ in range(5)]

    assert seen == ["unset"] * 5


async def test_calls_of_a_function_overlap_up_to_its_concurrency(app: Project) -> None:
    running = await app.start("overlaps", "most_overlapping")
    running.send(n=20)
    await eventually(lambda: len(running.executor.running()) == 3)
    await eventually(lambda: len(running.answers) == 20)

    assert await running.returned(function=1) == 3


async def test_a_function_at_its_limit_does_not_hold_up_another(app: Project) -> None:
    running = await app.start("overlaps", "task_identity")
    running.send(n=300)
    (other,) = running.send(function=1)
    await eventually(lambda: other in running.answers)

    assert len(running.answers) < 300


async def test_calls_start_in_the_order_they_were_sent(app: Project) -> None:
    running = await app.start("in_order")
    for n in range(50):
        running.send(data=n)

    assert await running.returned(data=50) == [*range(51)]


async def test_a_task_of_the_users_that_exits_does_not_end_the_executor(app: Project) -> None:
    running = await app.start("leaves_failing_tasks", "awaits_a_task_that_exits")
    first, second = await running.call(), await running.call(function=1)

    assert (first.status, second.reason) == (OK, "SystemExit: 3")
    assert running.exits == []


async def test_the_context_says_what_is_running(app: Project) -> None:
    running = await app.start("about")

    assert await running.returned(attempt=3) == ["about", "test.topic", 3, True, "test"]


# --- output


async def test_what_a_call_prints_and_logs_is_tagged_with_it(app: Project) -> None:
    running = await app.start("prints")
    for n in (1, 2):
        running.send(data=n)
    await eventually(lambda: len(running.answers) == 2)
    ids = [*running.answers]
    said = {id: [(line.stream, line.text) for line in running.lines if line.call and line.call.id == id] for id in ids}

    for n, id in enumerate(sorted(ids), 1):
        assert said[id] == [
            ("stdout", f"one {n}"),
            ("stdout", f"two {n}"),
            ("stderr", "err"),
            ("info", f"mine: info {n}"),
            ("warning", "faas.prints: warn"),
            ("stdout", f"thread {n}"),
            ("stdout", "unfinished"),
        ]


async def test_a_sync_call_prints_before_its_outcome(app: Project) -> None:
    running = await app.start("prints_sync")
    await running.call(data=1)

    assert [line.text for line in running.lines] == ["sync 1", "? lone"]


async def test_output_is_seen_while_the_call_still_runs(app: Project) -> None:
    running = await app.start("prints_slowly")
    running.send()
    await eventually(lambda: running.printed() == "started")

    assert running.answers == {}


async def test_a_gigabyte_of_prints_is_cut_at_64_kib_a_call(app: Project) -> None:
    running = await app.start("floods")
    outcome = await running.call()
    text = running.printed()

    assert outcome.status == OK
    assert len(text) < 70_000
    assert text.endswith("[output cut: more than 65,536 characters]")


async def test_a_gigabyte_written_to_fd_1_is_dropped_with_a_count_and_blocks_nobody(app: Project) -> None:
    running = await app.start("floods_fd")
    (id,) = running.send()
    longest, last = 0.0, time.monotonic()
    began = last
    while id not in running.answers:
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    running.executor.drain()
    await running.exit()
    text = running.printed("output")
    dropped = sum(int(line.text.split()[2].replace(",", "")) for line in running.lines if line.text.startswith("[output cut"))

    assert running.answers[id].status == OK
    assert dropped + text.count("x") == 1 << 30
    assert len(text) <= OUTPUT_RATE * (last - began + 3)  # however long this machine takes for it
    assert longest < 1.0


async def test_what_c_code_and_subprocesses_write_is_output_outside_of_a_call(app: Project) -> None:
    running = await app.start("from_c")
    await running.call()
    await eventually(lambda: "and its stderr" in running.printed("output"))

    assert running.printed("output").split("\n") == ["from fd 1", "from a subprocess", "and its stderr"]


async def test_output_becomes_log_records_with_function_and_event(app: Project, caplog: pytest.LogCaptureFixture) -> None:
    running = await app.start("prints_sync")
    call = Call(1, 0, "t", 2, b"ce-specversion: 1.0\r\nce-id: 42\r\n", b"")
    with caplog.at_level(logging.INFO, "broker_faas"):
        log_output(running.executor, [Line(call, "stdout", "text"), Line(None, "error", "raw")])
    # Executors of other tests may still have something to say.
    pid = running.executor.pid
    first, second = [record for record in caplog.records if getattr(record, "executor_pid", 0) == pid]

    assert (first.function, first.event, first.attempt, first.text) == ("prints_sync", "42", 2, "text")  # type: ignore[attr-defined]
    assert second.levelno == logging.ERROR


# --- lifespan

LIFESPANS = {
    "async": """
        from contextlib import asynccontextmanager
        @asynccontextmanager
        async def lifespan():
            state.append("opened"); yield; print("closed", flush=True)
    """,
    "plain": """
        from contextlib import contextmanager
        @contextmanager
        def lifespan():
            state.append("opened"); yield; print("closed", flush=True)
    """,
}


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("kind", LIFESPANS)
async def test_lifespan_is_entered_once_an_executor_and_left_when_it_is_drained(tmp_path: Path, kind: str, sync: bool) -> None:
    handler = f"""
        import os
        from broker_faas import function
        state = []
        @function(on="t", sends="out")
        {"" if sync else "async "}def state_now(event):
            return state + [os.getpid()]
    """
    source = handler + LIFESPANS[kind]
    async with project(tmp_path, app=source) as opened:
        running = await opened.start("state_now")
        for _ in range(2):
            assert await running.returned() == ["opened", running.executor.pid]
        running.executor.drain()
        await running.exit()

        assert "closed" in running.printed()


@pytest.mark.parametrize("sync", [True, False])
async def test_a_lifespan_that_fails_is_the_reason_why_there_is_no_executor(tmp_path: Path, sync: bool) -> None:
    source = f"""
        from broker_faas import function
        def lifespan():
            raise OSError("no database")
        @function(on="t")
        {"" if sync else "async "}def nothing(event): ...
    """
    async with project(tmp_path, app=source) as opened:
        with pytest.raises(ExecutorError, match=r"(?s)lifespan\(\) of app failed: OSError: no database.*Traceback"):
            await opened.start("nothing")


async def test_a_lifespan_that_does_not_return_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_faas.workers.zygote_handle.READY_TIMEOUT", 0.3)
    source = """
        import time
        from broker_faas import function
        def lifespan():
            time.sleep(600)
        @function(on="t")
        async def nothing(event): ...
    """
    async with project(tmp_path, app=source) as opened:
        with pytest.raises(ExecutorError, match=r"was not ready after 0.3 s: does lifespan\(\) return\?"):
            await opened.start("nothing")


# --- recycling and bounds


async def test_memory_and_the_count_of_calls_tell_when_to_recycle(app: Project) -> None:
    running = await app.start("task_identity")
    running.send(n=10)
    await eventually(lambda: len(running.answers) == 10)

    assert running.executor.events == 10
    assert 5 << 20 < running.executor.rss() < 500 << 20


async def test_an_executor_that_does_not_read_is_paused_and_not_flooded(app: Project) -> None:
    running = await app.start("prints_slowly", timeout=30)
    running.send(n=20, data="x" * (1 << 20))
    await eventually(lambda: running.executor.paused)
    running.executor.kill("test")
    await running.exit()

    assert len(running.executor.inflight) == 20


async def test_calls_too_large_for_one_frame_go_in_several(app: Project) -> None:
    running = await app.start("task_identity")
    running.send(n=40, data="x" * (1 << 20))
    await eventually(lambda: len(running.answers) == 40, timeout=30)

    assert {outcome.status for outcome in running.answers.values()} == {OK}
