"""Smaller parts of the command line: values, the scaffold, what changed on disk, systemd, choices."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from broker_faas import config
from broker_faas.cli import new
from broker_faas.cli.dead import Choice
from broker_faas.cli.main import run
from broker_faas.cli.process import notify, supervised
from broker_faas.cli.reload import changes, look
from broker_faas.cli.values import duration, moment, since
from broker_faas.service import Service

from ..terminal import REPOSITORY


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("500ms", 0.5), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("1d", 86400)])
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5", "5 weeks", "1e3", "h", "5mm"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no duration"):
        duration(text)


@pytest.mark.parametrize("text", ["36501d", "99999999d", "1" + "0" * 400 + "s"], ids=["36501d", "99999999d", "infinite"])
def test_a_duration_that_no_clock_can_count_to_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is more than 100 years"):
        duration(text)


def test_a_moment_is_unix_seconds_and_local_without_an_offset() -> None:
    local = time.mktime((2030, 1, 31, 8, 0, 0, 0, 0, -1))

    assert moment("2030-01-31T08:00:00Z") == 1896076800
    assert moment("2030-01-31T08:00") == local


def test_since_is_a_moment_or_a_duration_ago() -> None:
    assert since("10m") == pytest.approx(time.time() - 600, abs=5)
    assert since("2030-01-31T08:00:00Z") == 1896076800


# --- new ----------------------------------------------------------------------------------------------------


def test_a_new_project_has_a_configuration_that_loads_and_tests_that_pass(tmp_path: Path) -> None:
    new.create(tmp_path / "hello", "hello")

    loaded = config.load(tmp_path / "hello" / "faas.toml", {})
    assert (loaded.project, loaded.modules, loaded.bus.url) == ("hello", ("functions",), None)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "hello",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
    )


def test_the_commented_options_of_a_new_project_are_right(tmp_path: Path) -> None:
    new.create(tmp_path / "hello", "hello")
    file = tmp_path / "hello" / "faas.toml"
    lines = file.read_text().splitlines()
    said = [line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines]
    file.write_text("\n".join(said))

    loaded = config.load(file, {"BUS_PASSWORD": "x", "DB_PASSWORD": "x"})
    assert (loaded.keep, loaded.worker.grace) == (86400, config.WorkerConfig().grace)
    assert loaded.functions["reserve"].env == {"DB_PASSWORD": "x"}


def test_a_folder_that_is_not_empty_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello" / "mine.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    code = run(["new", "hello"])

    assert code == 78
    assert capsys.readouterr().err == "faas: hello exists and is not empty; nothing was changed. Choose another name.\n"
    assert [path.name for path in (tmp_path / "hello").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["a b", "häh", "-x", "a--b", "x" * 61, "a.b"])
def test_a_name_that_queues_cannot_have_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(["new", "--", name])

    assert code == 78
    assert "cannot be a project's name: letters, digits, '_' and single '-'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_one_is_in_can_become_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code = run(["new", "."])

    assert code == 0
    assert config.load(folder / "faas.toml", {}).project == "shop"


# --- reload -------------------------------------------------------------------------------------------------


async def test_a_saved_file_is_told_once_it_has_come_to_rest(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    told = changes(tmp_path, look(tmp_path))
    (tmp_path / "a.py").write_text("22")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.py").write_text("3")
    async with asyncio.timeout(5):
        changed = await anext(told)

    assert changed == ["a.py", os.path.join("deep", "b.py")]


def test_only_what_code_comes_from_is_looked_at(tmp_path: Path) -> None:
    for name in (".faas/js/x.py", ".venv/y.py", "__pycache__/z.py", "node_modules/w.py", "a.py", "notes.txt", "faas.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")

    assert sorted(look(tmp_path)) == ["a.py", "faas.toml"]


# --- systemd ------------------------------------------------------------------------------------------------


def test_without_a_socket_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


async def test_systemd_hears_ready_then_beats_then_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    ready, stop = asyncio.Event(), asyncio.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(address)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(_run(supervised(ready), stop))
            ready.set()
            said = [(await loop.sock_recv(heard, 100)).decode() for _ in range(2)]
            stop.set()
        last = heard.recv(100).decode()
        while last == "WATCHDOG=1":
            last = heard.recv(100).decode()

    assert (said, last) == (["READY=1", "WATCHDOG=1"], "STOPPING=1")


async def _run(service: Service, stop: asyncio.Event) -> None:
    await service(stop)


# --- dead letters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        ((["3", "4"], False, None), Choice(frozenset({3, 4}), None, None)),
        ((["reserve"], False, None), Choice(frozenset(), "reserve", None)),
        ((["reserve"], False, "ab12"), Choice(frozenset(), "reserve", "ab12")),
        (([], False, "ab12"), Choice(frozenset(), None, "ab12")),
        (([], True, None), Choice(frozenset(), None, None)),
    ],
)
def test_a_choice_is_ids_a_function_a_group_or_all(arguments: tuple[list[str], bool, str | None], choice: Choice) -> None:
    assert Choice.of(*arguments) == choice


@pytest.mark.parametrize("arguments", [([], False, None), (["3", "reserve"], False, None), (["3"], True, None), (["a", "b"], False, None)])
def test_a_choice_that_could_mean_two_things_is_refused(arguments: tuple[list[str], bool, str | None]) -> None:
    with pytest.raises(click.UsageError):
        Choice.of(*arguments)
