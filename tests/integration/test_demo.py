"""`make demo`, as far as it does not depend on make."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from ..demo import Demo
from ..helpers import eventually
from ..markdown import ROOT, blocks, looks_like

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nats_binary")]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of the whole demo prints into a pipe."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    code, printed = demo.run()
    assert (0, {}) == (code, demo.processes()), printed
    return printed


@pytest.mark.parametrize(
    "row",
    [
        "published 1,707 1,707",
        "alert ran 1,707 1,707",
        "classify ran 1,707 1,707",
        "region ran 1,707 1,707",
        "report ran 85 85",
        "retried 56 0",
        "dead letters 28 0",
        "replayed 28 -",
        "alerts on the page 85 85",
        "publish to entry, p99 - … ms",
    ],
)
def test_the_table_has_the_totals_of_the_file(printed: str, row: str) -> None:
    assert looks_like(row, printed), printed


def test_a_pipe_gets_plain_lines(printed: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", printed)


def test_the_readme_shows_what_is_printed(printed: str) -> None:
    """Numbers that were measured may differ."""
    shown = next(block for block in blocks(ROOT / "README.md") if "demo" in block.words)

    assert shape(shown.text) == shape(printed)


def shape(text: str) -> list[str]:
    """Words, without the progress on the way, measured numbers, the folder, and the rules of tables."""
    lines = [line for line in text.splitlines() if not re.fullmatch(r"  \w+ +[\d,]+ of [\d,]+", line)]
    measured = r"[\d.,]+ (ms|s)\b( ago)?|just now|\b\d[\d,]*\b|\b[0-9a-f]{8}\b|\S+(?=/\.demo/)|-+"
    return re.sub(measured, "#", "\n".join(lines)).split()


def test_a_file_that_says_something_else_makes_it_fail(tmp_path: Path) -> None:
    """The same event twice: the bus stores it once, a plain count counts two."""
    demo = Demo(tmp_path, lines=60)
    content = demo.data.read_text()
    demo.data.write_text(content + content.splitlines(keepends=True)[-1])
    code, printed = demo.run()

    assert (1, {}) == (code, demo.processes())
    assert looks_like("alert ran, backlog: 60, but the file says 61", printed), printed


def test_a_worker_that_takes_its_time_is_waited_for(tmp_path: Path) -> None:
    """Until it has made its queues nothing waits on the bus, and that does not mean that all is done."""
    first = "from __future__ import annotations\n"
    code, printed = Demo(tmp_path, lines=60).run(("broker_faas.workers.host", first, first + "__import__('time').sleep(4)\n"))

    assert code == 0, printed


@pytest.mark.parametrize("moment", ["publish", "drain", "failures", "live"])
async def test_ctrl_c_at_any_moment_leaves_nothing_running(tmp_path: Path, moment: str) -> None:
    demo = Demo(tmp_path, lines=400)
    with demo.start() as process:
        assert process.stdout
        for line in process.stdout:
            if line.split()[:1] == [moment]:
                break
        process.send_signal(signal.SIGINT)
        printed = process.stdout.read()

    assert (130, "Stopped" in printed) == (process.returncode, True), printed
    await eventually(lambda: not demo.processes())


async def test_nothing_is_left_of_a_demo_that_is_killed(tmp_path: Path) -> None:
    demo = Demo(tmp_path, lines=400)
    with demo.start() as process:
        assert process.stdout
        for line in process.stdout:
            if line.split()[:1] == ["drain"]:
                break
        process.kill()

    await eventually(lambda: not demo.processes())


def test_a_second_demo_at_the_same_time_is_refused(tmp_path: Path) -> None:
    demo = Demo(tmp_path, lines=400)
    with demo.start() as process:
        assert process.stdout
        process.stdout.readline()
        while "publish" not in process.stdout.readline():
            pass
        code, printed = demo.run()
        process.send_signal(signal.SIGINT)

    assert (1, True) == (code, "another demo is running" in printed)
