"""examples/earthquakes: its functions in memory, and the whole of demo.py as a user runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker_faas.function import discover
from broker_faas.testing import Harness, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "earthquakes"
FEATURES = [json.loads(line) for line in (EXAMPLE / "earthquakes.jsonl").read_text().splitlines()]


@pytest.fixture
def quakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The example's functions by name, their data in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setenv("DATA", str(tmp_path))
    before = {*sys.modules}
    from quakes import classify, functions
    from stage import tally

    yield SimpleNamespace(tally=tally, **{found.name: found for module in (classify, functions) for found in discover(module)})
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("quakes", "stage"):
            del sys.modules[name]


def feature(**properties: Any) -> dict[str, Any]:
    return {**FEATURES[0], "properties": {**FEATURES[0]["properties"], **properties}}


@pytest.mark.parametrize(("magnitude", "alerts"), [(4.4, 0), (4.5, 1), (9.0, 1), (None, 0)])
async def test_an_alert_is_sent_from_magnitude_4_5_on(quakes: Any, magnitude: float | None, alerts: int) -> None:
    result = await run(quakes.alert, feature(mag=magnitude))

    assert ("done", ["quake.alert"] * alerts) == (result.outcome, [topic for topic, _ in result.outputs])


async def test_data_that_is_no_feature_is_dead_at_once(quakes: Any) -> None:
    result = await run(quakes.alert, {"type": "Feature"})

    assert ("dead", 1) == (result.outcome, len(result.attempts))


async def test_the_week_gives_85_alerts_and_one_page_that_shows_them_all(quakes: Any, tmp_path: Path) -> None:
    async with Harness(quakes.alert, quakes.report) as harness:
        for data in FEATURES:
            await harness.publish("usgs.earthquake", data, id=data["id"], source="/test")
        await harness.settled()

    page = (tmp_path / "report.html").read_text()
    assert (85, 85) == (len(harness.outputs("quake.alert")), page.count("<tr><td>"))
    assert "22km NNE of Hualian, Taiwan" in page


async def test_an_alert_that_comes_twice_leaves_the_same_page(quakes: Any, tmp_path: Path) -> None:
    (_, event), *_ = (await run(quakes.alert, feature(mag=6.0))).outputs
    await run(quakes.report, event)
    once = (tmp_path / "report.html").read_bytes()
    await run(quakes.report, event)

    assert once == (tmp_path / "report.html").read_bytes()


async def test_a_place_that_is_markup_is_shown_as_text(quakes: Any, tmp_path: Path) -> None:
    (_, event), *_ = (await run(quakes.alert, feature(mag=6.0, place="<script>", url="javascript:alert(1)"))).outputs
    await run(quakes.report, event)
    page = (tmp_path / "report.html").read_text()

    assert ("<script>" in page, "javascript:" in page, "&lt;script&gt;" in page) == (False, False, True)


@pytest.mark.parametrize("kind", ["quarry blast", "explosion"])
async def test_what_is_no_earthquake_fails_three_times_and_is_dead(quakes: Any, kind: str) -> None:
    result = await run(quakes.classify, feature(type=kind))

    assert ("dead", 3, f"ValueError: {kind} is no kind of event that we know") == (result.outcome, len(result.attempts), result.reason)


async def test_the_mended_classify_takes_every_event_of_the_week(quakes: Any) -> None:
    namespace: dict[str, Any] = {"__name__": "mended_classify"}
    source = EXAMPLE / "mended" / "classify.py"
    exec(compile(source.read_text(), source, "exec"), namespace)
    async with Harness(namespace["classify"]) as harness:
        for data in FEATURES:
            await harness.publish("usgs.earthquake", data, id=data["id"], source="/test")
        await harness.settled()

    assert (1707, []) == (len(harness.attempts()), harness.dead())


@pytest.mark.parametrize(
    ("what_happened", "complaints"),
    [
        ("1( 1) 2( 2) 3( 3)", []),
        ("1( 1( 1) 2( 2)", []),  # killed while it ran 1
        ("1( 1) 2( 2) 1( 1) 2( 2) 3( 3)", []),  # the server was killed, and had not stored the last acknowledgements
        ("1( 2( 1) 2)", ["2 began while 1 was running", "1 ended, but 2 was running", "2 ended, but None was running"]),
        ("1( 1) 3( 3) 2( 2)", ["2 began after 3"]),
        ("1( 2( 2) 1( 1)", ["2 began while 1 was running", "1 began after 2"]),
    ],
)
def test_the_proof_of_order_sees_what_is_wrong(quakes: Any, what_happened: str, complaints: list[str]) -> None:
    """1( is: event 1 began, 1) it ended."""
    lines = [(int(step[:-1]), "entered" if step.endswith("(") else "left") for step in what_happened.split()]
    notes = [quakes.tally.Note("region", what, 1, 0, 0, sequence, "key", "/test", "id") for sequence, what in lines]

    assert [f"key: event {complaint}" for complaint in complaints] == quakes.tally.disorder(notes)


async def test_a_plain_count_of_the_file_finds_what_the_demo_checks_against(quakes: Any) -> None:
    assert (1707, 85, 28) == quakes.tally.expected((EXAMPLE / "earthquakes.jsonl").read_text().splitlines())
