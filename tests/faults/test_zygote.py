"""The zygote: what modules do at import, what executors inherit, and that nothing outlives its parent."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker_faas.errors import ConfigError, ExecutorError
from broker_faas.workers.zygote import PACKET
from broker_faas.workers.zygote_handle import Zygote, describe

from ..executors import REPO, Project, alive, project
from ..helpers import eventually

GOOD = """
import os, signal, sys, threading
from broker_faas import function

@function(on="t", sends="out")
async def state(event):
    return {
        "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "threads": len(os.listdir("/proc/self/task")),
        "sockets": sum(link.startswith("socket:") for link in links()), "environ": dict(os.environ),
        "term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "nats": "nats" in sys.modules,
    }

@function(on="t", sends="out")
def state_sync(event):
    return {"sockets": sum(link.startswith("socket:") for link in links()), "links": links()}

@function(on="t", sends="out")
async def other(event):
    return dict(os.environ)

@function(on="t", sends="out")
async def draws(event):
    import random
    return random.random()

def links():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + fd))
        except OSError:
            pass
    return found
"""


async def test_an_executor_starts_with_one_thread_its_own_group_default_signals_and_one_socket(tmp_path: Path) -> None:
    """Its event loop has two more sockets; a sync executor has one."""
    async with project(tmp_path, app=GOOD) as opened:
        state = await (await opened.start("state")).returned()
        sync = await (await opened.start("state_sync")).returned()

        assert state["parent"] == opened.zygote.pid
        assert state["group"] == state["pid"]
        assert (state["threads"], state["term"], state["nats"]) == (1, True, False)
        assert state["sockets"] == 3
        assert sync["sockets"] == 1, sync["links"]


async def test_executors_do_not_draw_the_same_random_numbers(tmp_path: Path) -> None:
    async with project(tmp_path, app=GOOD) as opened:
        drawn = {await (await opened.start("draws")).returned() for _ in range(3)}

        assert len(drawn) == 3


# --- secrets


async def test_the_environment_of_a_function_reaches_its_executors_and_nobody_else(tmp_path: Path) -> None:
    environ = {"NATS_URL": "nats://user:hunter2@127.0.0.1", "AWS_SECRET": "hunter2", "LC_TIME": "C"}
    async with project(tmp_path, app=GOOD, environ=environ) as opened:
        own = await opened.start("state", env={"DB_PASSWORD": "hunter3"})
        other = await opened.start("other")

        assert (await own.returned())["environ"]["DB_PASSWORD"] == "hunter3"
        seen = await other.returned()
        assert not {"DB_PASSWORD", "NATS_URL", "AWS_SECRET"} & seen.keys()
        assert seen["LC_TIME"] == "C"
        for pid in (opened.zygote.pid, own.executor.pid, other.executor.pid):
            assert b"hunter" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert b"hunter" not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_pass_env_lets_named_variables_through_but_never_the_bus(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(GOOD)
    environ = {**os.environ, "PYTHONPATH": str(REPO), "REGION": "eu", "NATS_URL": "nats://x"}
    async with Zygote.open(["app"], tmp_path, environ, pass_env=("REGION", "NATS_URL")) as zygote:
        seen = Path(f"/proc/{zygote.pid}/environ").read_bytes().split(b"\0")

        assert b"REGION=eu" in seen
        assert not any(variable.startswith(b"NATS_URL") for variable in seen)


# --- imports


async def test_a_module_that_fails_at_import_is_broken_and_the_others_work(tmp_path: Path) -> None:
    async with project(tmp_path, bad="import nonexistent_module", worse="raise SystemExit(3)", app=GOOD) as opened:
        assert "No module named 'nonexistent_module'" in opened.zygote.broken["bad"]
        assert "importlib" not in opened.zygote.broken["bad"]
        assert "SystemExit: 3" in opened.zygote.broken["worse"]
        assert (await (await opened.start("state")).returned())["threads"] == 1


UNSPEAKABLE = {
    "emoji": ('raise ValueError("\\U0001F600" * 25_000)', "\U0001f600"),
    "lone surrogate": ('raise ValueError("end: \\ud800")', "ValueError: end: ?"),
    "long text of ours": ('from broker_faas.errors import ConfigError\nraise ConfigError("\\U0001F600" * 25_000)', "\U0001f600"),
    "long declaration": (
        "from broker_faas import function\n"
        "topics = [f't{n}.' + 'x' * 190 for n in range(500)]\n"
        "@function(on=topics)\nasync def wide(event): ...\n@function(on='a')\nasync def narrow(event): ...",
        "the limit is",
    ),
}


@pytest.mark.parametrize("what", UNSPEAKABLE)
async def test_what_does_not_fit_what_a_module_can_be_told_as_is_broken_and_the_others_work(tmp_path: Path, what: str) -> None:
    source, said = UNSPEAKABLE[what]
    async with project(tmp_path, bad=source, app=GOOD) as opened:
        assert said in opened.zygote.broken["bad"]
        assert len(opened.zygote.broken["bad"].encode()) < PACKET
        assert (await (await opened.start("state")).returned())["threads"] == 1


async def test_two_functions_of_one_name_in_two_modules_are_an_error_that_names_both(tmp_path: Path) -> None:
    async with project(tmp_path, app=GOOD, again=GOOD) as opened:
        assert "two functions are named 'draws'" in opened.zygote.broken["again"]
        assert "app.py:" in opened.zygote.broken["again"]


async def test_a_module_may_import_the_functions_of_another(tmp_path: Path) -> None:
    async with project(tmp_path, app=GOOD, facade="from app import state") as opened:
        assert opened.zygote.broken == {}
        assert [spec.name for spec in opened.zygote.specs].count("state") == 1


async def test_an_import_that_never_returns_is_an_error_naming_the_module(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"importing module 'stuck' did not end within 0\.5 s"):
        async with project(tmp_path, import_timeout=0.5, app="", stuck="import time\nwhile True: time.sleep(1)"):
            pass

    assert time.monotonic() - started < 5


async def test_an_import_that_kills_the_process_is_an_error_naming_the_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"died \(SIGSEGV\) while importing 'crash'"):
        async with project(tmp_path, crash="import ctypes; ctypes.string_at(0)"):
            pass


OFFENDERS = {
    "thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()", "starts a thread"),
    "socket": ("import socket\nopen_socket = socket.socket()", "opens a socket"),
    "loop": ("import asyncio\nloop = asyncio.new_event_loop()", "makes an event loop"),
}


@pytest.mark.parametrize("offence", OFFENDERS)
async def test_a_module_that_cannot_be_forked_is_spawned_with_a_warning_that_names_it(tmp_path: Path, offence: str) -> None:
    source, why = OFFENDERS[offence]
    offender = f"{source}\n" + GOOD.replace("def state(", "def spawned(").replace("state_sync", "spawned_sync")
    offender = offender.replace("def other(", "def other2(").replace("def draws(", "def draws2(")
    async with project(tmp_path, app=GOOD, offender=offender) as opened:
        (warning,) = opened.zygote.warnings

        assert "module 'offender'" in warning
        assert why in warning
        assert len(os.listdir(f"/proc/{opened.zygote.pid}/task")) == 1
        spawned = await opened.start("spawned", env={"SECRET": "x"})
        state = await spawned.returned()
        assert state["environ"]["SECRET"] == "x"
        assert state["parent"] == opened.zygote.pid
        assert (await (await opened.start("state")).returned())["threads"] == 1
        spawned.executor.drain()
        assert (await spawned.exit()).reason == "drained"


async def test_numpy_forks(tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="NUMPY MISSING, NOT TESTED: that modules which import it can be forked")
    source = """
        import numpy
        from broker_faas import function

        @function(on="t", sends="out")
        async def multiply(event):
            return float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())

        @function(on="t", sends="out")
        async def draws(event):
            return float(numpy.random.random())
    """
    async with project(tmp_path, app=source) as opened:
        assert opened.zygote.warnings == []
        assert await (await opened.start("multiply")).returned() == 300.0**3
        assert await (await opened.start("draws")).returned() != await (await opened.start("draws")).returned()


async def test_describe_lists_the_functions_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(GOOD)
    specs = await describe(["app"], tmp_path, {**os.environ, "PYTHONPATH": str(REPO)})

    assert [spec.name for spec in specs] == ["draws", "other", "state", "state_sync"]


async def test_describe_raises_what_a_module_raised(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"(?s)module 'app' cannot be imported:.*ZeroDivisionError"):
        await describe(["app"], tmp_path, {**os.environ, "PYTHONPATH": str(REPO)})


async def test_a_module_of_the_project_cannot_shadow_what_the_zygote_imports(tmp_path: Path) -> None:
    (tmp_path / "select.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("")
    async with project(tmp_path, app=GOOD) as opened:
        assert opened.zygote.broken == {}


# --- nothing outlives its parent

FAMILY = """
import asyncio, os, subprocess, sys
from broker_faas import function

@function(on="t", sends="out")
async def family(event):
    child = subprocess.Popen(["sleep", "600"])
    daemon = subprocess.run(["sh", "-c", "sleep 601 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True)
    if event.data:
        os._exit(event.json())
    return [child.pid, int(daemon.stdout)]
"""


async def test_what_an_executor_started_ends_with_it(tmp_path: Path) -> None:
    """A child, and a daemonised grandchild that stayed in the group, are killed when the executor is, and when it ends by itself."""
    async with project(tmp_path, app=FAMILY) as opened:
        for end in ("kill", "drain"):
            running = await opened.start("family")
            pids = await running.returned()
            assert all(alive(pid) for pid in pids)
            getattr(running.executor, end)(*(["test"] if end == "kill" else []))
            await running.exit()
            await eventually(lambda: not any(alive(pid) for pid in pids))  # noqa: B023


STARTS = {
    "fork": "pid = os.fork()\nif pid == 0: os.closerange(0, 256); time.sleep(60); os._exit(0)",
    "subprocess": "pid = subprocess.Popen(['sleep', '60']).pid",
}


@pytest.mark.parametrize("how", STARTS)
async def test_what_a_module_started_when_it_was_imported_ends_with_the_zygote(tmp_path: Path, how: str) -> None:
    source = f"import os, subprocess, time\n{STARTS[how]}\nopen('pid', 'w').write(str(pid))"
    async with project(tmp_path, app=source) as opened:
        pid = int((tmp_path / "pid").read_text())

        assert opened.zygote.broken == {}
        assert alive(pid)
    try:
        await eventually(lambda: not alive(pid), timeout=2)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_killing_the_zygote_ends_its_executors_uncharged_within_2_s(tmp_path: Path) -> None:
    async with project(tmp_path, app=FAMILY) as opened:
        several = [await opened.start("family") for _ in range(3)]
        pids = [pid for running in several for pid in [running.executor.pid, *await running.returned()]]
        started = time.monotonic()
        os.kill(opened.zygote.pid, signal.SIGKILL)
        await opened.zygote.closed.wait()
        exits = [await running.exit() for running in several]

        assert all(exit.zygote_died and exit.reason == "its zygote ended (SIGKILL)" for exit in exits)
        await eventually(lambda: not any(alive(pid) for pid in pids))
        assert time.monotonic() - started < 2
        with pytest.raises(ExecutorError, match="the zygote is gone"):
            await opened.start("family")


async def test_the_death_of_a_zygote_is_noticed_although_a_module_has_forked(tmp_path: Path) -> None:
    source = "import os, time\npid = os.fork()\nif pid == 0: time.sleep(60); os._exit(0)\nopen('pid', 'w').write(str(pid))"
    async with project(tmp_path, app=source) as opened:
        os.kill(opened.zygote.pid, signal.SIGKILL)
        try:
            await eventually(opened.zygote.closed.is_set, timeout=1)
        finally:
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_killing_the_zygote_in_the_middle_of_a_fork_is_an_error_of_that_fork(tmp_path: Path) -> None:
    async with project(tmp_path, app=GOOD) as opened:
        os.kill(opened.zygote.pid, signal.SIGSTOP)
        fork = asyncio.ensure_future(opened.start("state"))
        await asyncio.sleep(0)
        os.kill(opened.zygote.pid, signal.SIGKILL)

        # Seen at its socket, or at its process, whichever comes first.
        with pytest.raises(ExecutorError, match=r"its zygote ended|the zygote is gone"):
            await fork


PARENT = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, {repo!r})
from tests.executors import project

async def main():
    async with project(Path({folder!r}), app={source!r}) as opened:
        running = await opened.start("family")
        print(json.dumps([opened.zygote.pid, running.executor.pid, *await running.returned()]), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_killing_the_worker_leaves_nothing_behind_within_2_s(tmp_path: Path) -> None:
    """kill -9 of the parent: zygote, executor, its child and its daemonised grandchild are gone."""
    script = PARENT.format(repo=str(REPO), folder=str(tmp_path), source=FAMILY)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=tmp_path) as parent:
        assert parent.stdout
        pids = json.loads(parent.stdout.readline())
        assert all(alive(pid) for pid in pids)
        parent.kill()
        started = time.monotonic()
        while any(alive(pid) for pid in pids) and time.monotonic() - started < 5:
            time.sleep(0.01)

    assert time.monotonic() - started < 2


def test_killing_the_worker_during_an_import_leaves_no_zygote_behind(tmp_path: Path) -> None:
    source = "import os, time\nopen('pid.tmp', 'w').write(str(os.getpid()))\nos.rename('pid.tmp', 'pid')\ntime.sleep(600)"
    script = PARENT.format(repo=str(REPO), folder=str(tmp_path), source=source)
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as parent:
        deadline = time.monotonic() + 10
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        parent.kill()
        started = time.monotonic()
        while alive(pid) and time.monotonic() - started < 5:
            time.sleep(0.01)

    assert time.monotonic() - started < 2


async def test_executors_are_killed_when_the_worker_does_not_beat_and_the_zygote_serves_it_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(GOOD)
    async with Zygote.open(["app"], tmp_path, {**os.environ, "PYTHONPATH": str(REPO)}, lease=0.5) as zygote:
        assert zygote._beats
        zygote._beats.cancel()  # a worker that hangs
        opened = Project(zygote)
        running = await opened.start("state")
        exit = await running.exit()

        assert exit.reason == "no beat from the worker for 0.5 s"
        assert exit.zygote_died
        zygote._beat()
        assert (await (await opened.start("state")).returned())["threads"] == 1


async def test_an_executor_that_is_idle_but_owes_answers_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of user code's own that blocks the event loop shows no call as running."""
    monkeypatch.setattr("broker_faas.workers.zygote_handle.SILENCE", 0.3)
    monkeypatch.setattr("broker_faas.workers.zygote_handle.BEAT", 0.1)
    source = """
        import asyncio, time
        from broker_faas import function
        tasks = []

        async def block():
            time.sleep(600)

        @function(on="t")
        async def leaves_a_task(event):
            tasks.append(asyncio.create_task(block()))
    """
    async with project(tmp_path, app=source) as opened:
        running = await opened.start("leaves_a_task")
        running.send()
        await eventually(lambda: running.answers or running.exits or running.send())
        exit = await running.exit()

        assert exit.reason.startswith("no answer for 0.3 s while no call was running")
        assert exit.running == set()


async def test_an_executor_that_ended_leaves_no_file_descriptor_open(tmp_path: Path) -> None:
    """Not even until the garbage collector comes by."""
    async with project(tmp_path, app=GOOD) as opened:
        gc.collect()  # what earlier tests left
        gc.disable()
        try:
            before = open_files()
            running = await opened.start("state")
            running.executor.drain()
            await running.exit()

            assert before == open_files()
            assert running.executor.running() == {}
        finally:
            gc.enable()


async def test_without_file_descriptors_no_executor_can_be_made_and_none_is_lost(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests left
    async with project(tmp_path, app='from broker_faas import function\n@function(on="a")\nasync def f(event): pass') as opened:
        before = open_files()
        with few_files(before[-1] + 64) as taken:
            for free in range(6):  # each thing that is opened fails once
                with pytest.raises(ExecutorError, match="no executor can be made: Too many open files"):
                    await opened.start("f")
                if free < 5:
                    os.close(taken.pop())

        assert before == open_files()
        assert (await opened.start("f")).executor.pid


def open_files() -> list[int]:
    return sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))  # without the listing's own


@contextmanager
def few_files(limit: int) -> Iterator[list[int]]:
    """No descriptor is left; close what is in the list to have some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield taken
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
