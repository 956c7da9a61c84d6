"""`faas dev` with its real server: from nothing to a function that ran, and what may happen in between."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from ..terminal import Faas, Running, project
from .test_cli_connect import LINES

pytestmark = [pytest.mark.usefixtures("nats_binary"), pytest.mark.timeout(120)]

RECORDING = """
import json
from broker_faas import CloudEvent, function

@function(on="orders.created")
async def reserve(event: CloudEvent) -> None:
    with open("ran.txt", "a") as file:
        file.write(f"{event.json()['n']} VERSION\\n")
"""

CONNECTOR = '[[connector]]\nname = "orders"\ntype = "lines:Lines"\npath = "orders.txt"\nto = "orders.created"\n'


def ran(folder: Path) -> list[str]:
    """Lines that RECORDING wrote: the event's number, the code's version."""
    path = folder / "ran.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait(condition: Callable[[], bool], timeout: float = 20.0, seen: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout:g} s: {seen()}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def server_pid(folder: Path) -> int:
    return int(json.loads((folder / ".faas" / "server.json").read_text())["pid"])


def test_a_new_project_runs_its_function_and_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    Faas(tmp_path)("new", "hello")
    faas = Faas(tmp_path / "hello")
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        dev.wait_for("publish from another terminal in this folder: faas publish orders.created")
        pid = server_pid(faas.folder)
        said = faas("publish", "orders.created", '{"id": 1}').stdout
        dev.wait_for("reserved 1 for order 1")
        dev.wait_for("done with 1 event, sent 1")
        code = dev.stop(signal.SIGINT)

    assert re.fullmatch(r"stored 1 event on orders.created; id [0-9a-f]{32}\n", said)
    assert (code, is_alive(pid)) == (0, False), dev.said
    assert "Traceback" not in dev.said


def test_events_wait_while_dev_is_not_running(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        (faas.folder / "functions.py").write_text("raise RuntimeError('broken')\n")
        dev.wait_for("the code before it goes on running")
        dev.stop()
    with faas.running("dev") as dev:
        dev.wait_for("nothing runs yet; save a file to try again")
        faas("publish", "orders.created", '{"n": 1}')
        (faas.folder / "functions.py").write_text(RECORDING)
        dev.wait_for("ready in")
        wait(lambda: ran(faas.folder) == ["1 VERSION"])


def test_what_a_source_has_already_comes_to_functions_that_are_new(tmp_path: Path) -> None:
    """A queue is made when the code is imported, which takes time, and begins at new events: sources wait for it."""
    folder = project(tmp_path / "shop", f"import time; time.sleep(1)\n{RECORDING}", toml=CONNECTOR)
    (folder / "lines.py").write_text(LINES)
    (folder / "orders.txt").write_text("".join(f'{{"n": {n}}}\n' for n in range(5)))
    with Faas(folder).running("dev") as dev:
        wait(lambda: len(ran(folder)) == 5, seen=lambda: dev.said)

        assert dev.stop() == 0


def test_code_that_cannot_be_imported_leaves_sources_alone(tmp_path: Path) -> None:
    folder = project(tmp_path / "shop", "import nothing_of_that_name\n", toml=CONNECTOR)
    (folder / "lines.py").write_text(LINES)
    (folder / "orders.txt").write_text('{"n": 0}\n')
    with Faas(folder).running("dev") as dev:
        dev.wait_for("nothing runs yet; save a file to try again")
        assert dev.stop() == 0

    assert not (folder / "orders.txt.acked").exists()


def test_reload_under_load_loses_nothing_and_runs_the_new_code(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        with faas.running("publish", "orders.created", "-f", "-", stdin=subprocess.PIPE) as publishing:
            numbers = count()
            load_until(publishing, numbers, lambda: len(ran(faas.folder)) > 100)
            for version in ("second", "third", "fourth"):
                (faas.folder / "functions.py").write_text(RECORDING.replace("VERSION", version))
                load_until(publishing, numbers, partial(has_run, faas.folder, version, times=50))
            publishing.close_stdin()
            assert publishing.process.wait(30) == 0, publishing.said
        published = [*range(next(numbers))]
        wait(lambda: len({line.split()[0] for line in ran(faas.folder)}) == len(published), seen=lambda: dev.said)
        dev.stop()

    assert sorted(int(line.split()[0]) for line in ran(faas.folder)) == published  # and nothing twice
    assert dev.said.count("reloaded in") == 3


def load_until(publishing: Running, numbers: Iterator[int], condition: Callable[[], bool]) -> None:
    """About 400 events a second into the pipe."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, publishing.said
        publishing.write("".join(f'{{"n": {next(numbers)}}}\n' for _ in range(10)))
        time.sleep(0.025)


def has_run(folder: Path, version: str, times: int) -> bool:
    return sum(line.endswith(version) for line in ran(folder)) > times


def test_broken_code_keeps_the_old_code_running_and_shows_the_traceback(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        (faas.folder / "functions.py").write_text(RECORDING + "\nimport no_such_module\n")
        dev.wait_for("the code before it goes on running; save a file to try again")
        faas("publish", "orders.created", '{"n": 1}')
        wait(lambda: ran(faas.folder) == ["1 VERSION"])
        (faas.folder / "functions.py").write_text(RECORDING.replace("VERSION", "mended"))
        dev.wait_for("reloaded in")
        faas("publish", "orders.created", '{"n": 2}')
        wait(lambda: ran(faas.folder) == ["1 VERSION", "2 mended"])

    assert "module 'functions' cannot be imported" in dev.said
    assert "No module named 'no_such_module'" in dev.said
    assert 'functions.py", line' in dev.said


def test_a_broken_configuration_keeps_the_old_one(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        toml = faas.folder / "faas.toml"
        toml.write_text(toml.read_text().replace("modules", "modles"))
        dev.wait_for("faas.toml has no option 'modles'; did you mean 'modules'?")
        faas("check", code=78)
        toml.write_text(toml.read_text().replace("modles", "modules"))
        dev.wait_for("reloaded in")


def test_a_renamed_function_goes_on_where_it_stood(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        faas("publish", "orders.created", '{"n": 1}')
        wait(lambda: ran(faas.folder) == ["1 VERSION"])
        code = RECORDING.replace("async def reserve", "async def book").replace('created")', 'created", was="reserve")')
        (faas.folder / "functions.py").write_text(code.replace("VERSION", "renamed"))
        dev.wait_for("reloaded in")
        faas("publish", "orders.created", '{"n": 2}')
        wait(lambda: ran(faas.folder) == ["1 VERSION", "2 renamed"])
        rows = faas.json("functions")

    assert [row["function"] for row in rows] == ["book"]


def test_a_function_that_raises_shows_its_traceback_and_when_it_runs_again(tmp_path: Path) -> None:
    code = RECORDING.replace("    with open", "    raise ValueError('no stock')\n    with open")
    faas = Faas(project(tmp_path / "shop", code))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        faas("publish", "orders.created", '{"n": 1}')
        dev.wait_for("attempt 1 failed: ValueError: no stock; again in")
        dev.wait_for("raise ValueError('no stock')")


def test_a_server_that_is_killed_is_started_again_and_loses_nothing(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        faas("publish", "orders.created", '{"n": 1}')
        wait(lambda: len(ran(faas.folder)) == 1)
        os.kill(server_pid(faas.folder), signal.SIGKILL)
        dev.wait_for("is started again; nothing is lost")
        wait(lambda: (faas.folder / ".faas" / "server.json").exists())
        faas("publish", "orders.created", '{"n": 2}')
        wait(lambda: {line.split()[0] for line in ran(faas.folder)} == {"1", "2"})

        assert dev.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"NO FULL DISK, NOT TESTED: only root may mount one ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_is_named_and_what_was_published_meanwhile_runs_when_it_has_space_again(small_disk: Path) -> None:
    faas = Faas(project(small_disk / "shop", RECORDING))
    (small_disk.parent / "many.jsonl").write_text("".join(json.dumps({"n": n, "pad": "x" * 2000}) + "\n" for n in range(2000)))
    filler = small_disk / "filler"
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(200 << 20))
        with faas.running("publish", "orders.created", "-f", str(small_disk.parent / "many.jsonl")) as publishing:
            dev.wait_for(f"the disk of {faas.folder}/.faas is full: nothing can be stored, events wait. Free some space")
            filler.unlink()
            dev.wait_for("the disk has space again: the NATS server was stopped and is started again; nothing is lost")
            publishing.wait_for("stored 2,000 events")
        wait(lambda: len({line.split()[0] for line in ran(faas.folder)}) == 2000)

        assert dev.stop() == 0


def test_dev_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        faas("publish", "orders.created", '{"n": 1}')
        wait(lambda: len(ran(faas.folder)) == 1)
        pid = server_pid(faas.folder)
        processes = [int(one.name) for one in Path("/proc").glob("[0-9]*") if _cwd(one) == str(faas.folder)]
        dev.stop(signal.SIGKILL)
        wait(lambda: not any(is_alive(one) for one in (pid, *processes)))

    faas("lag", code=78)


def _cwd(process: Path) -> str:
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""


def test_a_second_dev_in_a_folder_says_that_one_is_running(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING))
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        with faas.running("dev") as second:
            code = second.process.wait(20)

    assert code == 78
    assert second.said == f"faas: `faas dev` is already running in {faas.folder}. Stop it first; or add a worker to it: faas worker.\n"


def test_dev_uses_the_bus_it_is_told(tmp_path: Path, bus_url: str) -> None:
    faas = Faas(project(tmp_path / "shop", RECORDING), NATS_URL=bus_url)
    with faas.running("dev") as dev:
        dev.wait_for("ready in")
        faas("publish", "orders.created", '{"n": 1}')
        wait(lambda: ran(faas.folder) == ["1 VERSION"])

    assert "(NATS_URL)" in dev.said
    assert not (faas.folder / ".faas").exists()
    assert bus_url.split(":")[2].split("@")[0] not in dev.said  # the password
