"""`faas schedule`: with a bus that knows what was fired, with one that knows nothing, and with none."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from broker_faas.buses.nats import NatsBus
from broker_faas.cli.schedule import note
from broker_faas.layout import position_record
from broker_faas.schedule import Schedule

from ..terminal import Faas, project

pytestmark = pytest.mark.timeout(90)

SCHEDULES = """
[[connector]]
name = "nightly"
type = "cron"
schedule = "30 2 * * *"
tz = "Europe/Berlin"
[[connector]]
name = "often"
type = "cron"
schedule = "*/15 * * * *"
catch_up = "skip"
jitter = 5
"""


@pytest.fixture
def faas(tmp_path: Path, bus_url: str) -> Faas:
    return Faas(project(tmp_path / "shop", "", toml=SCHEDULES), NATS_URL=bus_url)


async def fire(url: str, name: str, time: str) -> None:
    async with NatsBus(url).open() as bus:
        await bus.publish([position_record(name, "fires", time)])


def test_schedules_are_listed_with_what_the_bus_has_of_them(faas: Faas, bus_url: str) -> None:
    unused = faas.json("schedule", "list")
    asyncio.run(fire(bus_url, "nightly", "2026-11-26T01:30:00Z"))
    nightly, often = faas.json("schedule", "list")
    shown = faas("schedule", "list").stdout

    assert [(row["schedule"], row["last"]) for row in unused] == [("nightly", None), ("often", None)]
    assert (nightly["expression"], nightly["tz"], nightly["last"]) == ("30 2 * * *", "Europe/Berlin", "2026-11-26T01:30:00Z")
    assert (often["catch_up"], often["jitter"], often["last"]) == ("skip", 5, None)
    assert timedelta(0) < datetime.fromisoformat(often["next"]) - datetime.now(UTC) <= timedelta(minutes=15)
    assert re.search(r"nightly +30 2 \* \* \* +Europe/Berlin +2026-11-26T01:30:00Z \(.*\) +20\d\d-", shown)


@pytest.mark.parametrize(
    ("url", "why"), [("nats://127.0.0.1:1", "no NATS server at nats://127.0.0.1:1"), ("", "no bus: no `faas dev` runs")]
)
def test_without_a_bus_the_last_fire_is_not_known_and_the_next_is(tmp_path: Path, url: str, why: str) -> None:
    faas = Faas(project(tmp_path / "shop", "", toml=SCHEDULES), **({"NATS_URL": url} if url else {}))
    done = faas("schedule", "list")

    assert done.stderr.startswith(f"note: what was fired last is not known: {why}")
    assert re.search(r"often +\*/15 \* \* \* \* +UTC +- +20\d\d-", done.stdout)


def test_a_project_without_schedules_says_how_to_write_one(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", ""))
    done = faas("schedule", "list")

    assert (done.stdout, faas.json("schedule", "list")) == ("", [])
    assert done.stderr.startswith('There are no schedules. One is a [[connector]] of type "cron" in faas.toml')


def test_a_preview_is_the_next_fires_in_the_schedules_own_time(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", "", toml=SCHEDULES))
    rows = faas.json("schedule", "preview", "nightly", "-n", "400")
    shown = faas("schedule", "preview", "nightly").stdout
    hours = {row["local"][11:16] for row in rows}

    assert len(rows) == 400
    assert len(shown.splitlines()) == 11
    assert hours == {"02:30", "03:00"}
    assert {row["local"][19:] for row in rows} == {"+01:00", "+02:00"}
    assert all(datetime.fromisoformat(row["local"]) == datetime.fromisoformat(row["utc"]) for row in rows)
    assert {row["note"] for row in rows} == {
        "",
        "its time is skipped by the clocks: fires at the first instant after",
        "the clocks show this time twice: the first time",
        "clocks were set back by 60 min before it",
    }


def test_notes_say_what_the_clocks_do() -> None:
    one = Schedule("30 * * * *", "Europe/Berlin")
    fires = list(islice(one.after(datetime(2026, 10, 24, 23, tzinfo=UTC)), 4))
    notes = [note(one, before, fire) for before, fire in pairwise(fires)]

    assert [f"{fire.astimezone(ZoneInfo('Europe/Berlin')):%H:%M%z}" for fire in fires] == [
        "01:30+0200",
        "02:30+0200",
        "02:30+0100",
        "03:30+0100",
    ]
    assert notes == ["the clocks show this time twice: the first time", "the clocks show this time twice: the second time", ""]


def test_a_schedule_that_is_none_or_cannot_be_read_says_so(tmp_path: Path) -> None:
    faas = Faas(project(tmp_path / "shop", "", toml=SCHEDULES))
    unknown = faas("schedule", "preview", "nighty", code=1).stderr
    (faas.folder / "faas.toml").write_text((faas.folder / "faas.toml").read_text().replace("30 2", "30 25"))
    wrong = faas("schedule", "list", code=78).stderr

    assert unknown == "faas: there is no schedule 'nighty'; did you mean 'nightly'?\n"
    assert re.fullmatch(
        r"faas: faas.toml:\d+: connector 'nightly': schedule '30 25 \* \* \*': hour '25' is none: it is 0 to 23, or \*\n", wrong
    )
