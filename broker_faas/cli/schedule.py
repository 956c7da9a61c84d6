"""`faas schedule`: when the project's cron connectors fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ..errors import BusRefused, BusUnavailable, ConfigError
from .connection import collect, find, project, url_option
from .exit import Failed
from .render import Column, age, output_option, show

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..config import Config
    from ..connectors.cron import CronConnector
    from ..schedule import Schedule


@click.group()
def schedule() -> None:
    """When the project's schedules fire: its connectors of type "cron".

    \b
    Example:
      faas schedule list
      faas schedule preview nightly -n 20
    """


@schedule.command("list")
@output_option
@url_option
def list_(output: str, url: str | None) -> None:
    """List schedules: what they say, when they fired last, when they fire next.

    Without a bus that can be reached, what was fired last is not known.

    \b
    Example:
      faas schedule list
      faas schedule list -o json
    """
    from ..schedule import Schedule

    config = project(url)
    found = _connectors(config)
    fired = _fired(list(found), url) if found else {}
    now = datetime.now(UTC)
    rows = []
    for name, one in found.items():
        upcoming = next(Schedule(one.schedule, one.tz).after(now), None)
        row = {"schedule": name, "expression": one.schedule, "tz": one.tz, "catch_up": one.catch_up, "jitter": one.jitter}
        rows.append(row | {"last": fired.get(name), "next": upcoming and _written(upcoming)})
    columns = [
        Column("schedule", "schedule"),
        Column("expression", "expression"),
        Column("tz", "tz"),
        Column("last fired", "last", _ago),
        Column("next", "next"),
    ]
    show(
        rows,
        columns,
        output,
        'There are no schedules. One is a [[connector]] of type "cron" in faas.toml, with a schedule like "0 9 * * MON".',
    )


@schedule.command()
@click.argument("name")
@click.option("-n", "--number", "n", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many.")
@output_option
def preview(name: str, n: int, output: str) -> None:
    """When NAME fires next, in its own time zone, and what the clocks do to it there. Needs no bus.

    \b
    Example:
      faas schedule preview nightly
      faas schedule preview nightly -n 100 -o json
    """
    from ..options import nearest
    from ..schedule import Schedule

    found = _connectors(project())
    if name not in found:
        raise Failed(f"there is no schedule {name!r}{nearest(name, found)}")
    one = Schedule(found[name].schedule, found[name].tz)
    rows: list[dict[str, Any]] = []
    before = now = datetime.now(UTC)
    for fire in islice(one.after(now), n):
        local = fire.astimezone(one.zone)
        rows.append({"local": local.isoformat(sep=" "), "day": f"{local:%a}", "utc": _written(fire), "note": note(one, before, fire)})
        before = fire
    show(
        rows,
        [Column("day", "day"), Column(one.zone.key, "local"), Column("UTC", "utc"), Column("note", "note")],
        output,
        "It never fires again.",
    )


def note(schedule: Schedule, before: datetime, fire: datetime) -> str:
    """What a change of the clocks since `before`, the fire before it, does to this one; "" if there was none."""
    local = fire.astimezone(schedule.zone)
    naive = local.replace(tzinfo=None)
    if not schedule.names(naive):
        return "its time is skipped by the clocks: fires at the first instant after"
    if local.utcoffset() != local.replace(fold=1).utcoffset():
        return "the clocks show this time twice: the first time"
    if local.fold:
        return "the clocks show this time twice: the second time"
    was, now = before.astimezone(schedule.zone).utcoffset(), local.utcoffset()
    assert was is not None
    assert now is not None
    if was == now:
        return ""
    return f"clocks were set {'forward' if now > was else 'back'} by {abs(now - was) // timedelta(minutes=1)} min before it"


def _connectors(config: Config) -> dict[str, CronConnector]:
    """By name. Raises ConfigError for one that cannot be read."""
    chosen = [one for one in config.connectors if one.type == "cron"]
    if not chosen:
        return {}
    from ..connectors.cron import CronConnector
    from ..connectors.driver import driver

    made = {one.name: driver(one) for one in chosen}
    return {name: one for name, one in made.items() if isinstance(one, CronConnector)}


def _fired(names: list[str], url: str | None) -> dict[str, str]:
    """Last fire stored of each that has one; none, and a note on stderr, without a bus."""

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        from ..buses.store import stored, together
        from ..connectors.cron import PARTITION
        from ..layout import EVENTS, position_subject

        last = await together(stored(bus, EVENTS, last_by_subj=position_subject(name, PARTITION)) for name in names)
        return [{name: one.data.decode("utf-8", "replace") for name, one in zip(names, last, strict=True) if one}]

    try:
        rows = collect(find(url), read)
    except (ConfigError, BusUnavailable, BusRefused) as error:
        click.echo(f"note: what was fired last is not known: {error}", err=True)
        return {}
    return rows[0] if rows else {}


def _ago(text: str) -> str:
    try:
        return f"{text} ({age(datetime.fromisoformat(text).timestamp())})"
    except ValueError:  # not of our writing
        return text


def _written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
