"""`faas quarantine`: what sources have and cannot become an event, as it was."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, EventTooLarge
from .connection import Place, collect, find, url_option
from .exit import Failed
from .render import Column, Progress, age, clean, confirm, count, number, output_option, show, size

if TYPE_CHECKING:
    from ..bus import Delivery, Record
    from ..buses.nats import JetStreamBus
    from .translating import Became

PREFIX = "quarantine."
CHUNK = 20  # records that are in memory at once, each of up to 1 MiB
REPLAYED = "\0replayed"  # as a partition of a source, which has no such name: the records that were stored last


@click.group()
def quarantine() -> None:
    """What a source has and cannot become an event: raw bytes, headers, its position at the source, and why.

    \b
    Example:
      faas quarantine list
      faas quarantine show 7
      faas quarantine replay orders
    """


@quarantine.command("list")
@click.option("--connector", metavar="NAME", help="Of one connector alone.")
@output_option
@url_option
def list_(connector: str | None, output: str, url: str | None) -> None:
    """Oldest first.

    \b
    Example:
      faas quarantine list --connector orders
    """
    columns = [
        Column("number", "number", right=True),
        Column("connector", "connector"),
        Column("position", "position"),
        Column("when", "at", age),
        Column("size", "size", size, right=True),
        Column("reason", "reason"),
    ]

    async def read(bus: JetStreamBus) -> list[dict[str, Any]]:
        return [_row(delivery) for delivery in await _deliveries(bus, connector, data=False)]

    show(collect(find(url), read), columns, output, "Nothing is in quarantine.")


@quarantine.command("show")
@click.argument("number", type=int)
@click.option("--raw", is_flag=True, help="The bytes alone, as the source had them, on stdout.")
@url_option
def show_(number: int, raw: bool, url: str | None) -> None:
    """One of them, whole.

    \b
    Example:
      faas quarantine show 7 --raw > record.bin
    """
    delivery = asyncio.run(_one(find(url), number))
    if raw:
        sys.stdout.buffer.write(delivery.data)
        return
    row = _row(delivery)
    for name in ("connector", "position", "reason", "cut"):
        if row.get(name):
            click.echo(f"{name:<10} {clean(str(row[name]))}")
    with suppress(ValueError):  # they were cut
        for name, value in json.loads(row["headers"] or "{}").items():
            click.echo(f"{'header':<10} {clean(name)}: {clean(str(value))}")
    click.echo(f"{'data':<10} {size(len(delivery.data))}")
    click.echo(clean(delivery.data[:2000].decode("utf-8", "backslashreplace")))


@quarantine.command()
@click.argument("connector")
@click.argument("numbers", type=int, nargs=-1)
@click.option("--dry-run", is_flag=True, help="Say what would become of them, and do nothing.")
@output_option
@url_option
def replay(connector: str, numbers: tuple[int, ...], dry_run: bool, output: str, url: str | None) -> None:
    """Translate again what CONNECTOR has in quarantine: all, or these numbers.

    As faas.toml and the decoder say now. What is an event now is stored on the bus, with the id that it would have had, and leaves the
    quarantine: once, also where a replay was cut short and is run again. What is not, or is dropped by `where`, stays; exit code 1 says
    that something did.

    \b
    Example:
      faas quarantine replay orders --dry-run
      faas quarantine replay orders 7 8
    """
    rows = asyncio.run(_replay(find(url), connector, numbers, dry_run))
    stay = [row for row in rows if row["reason"]]
    if output == "json":
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows if dry_run else stay:
            became = f"would be {row['id']} on {row['topic']}" if row["id"] else "is stored already"
            if row["reason"]:
                became = f"stays: {row['reason']}"
            click.echo(clean(f"{row['number']}: {became}"))
        click.echo(f"{'would replay' if dry_run else 'replayed'} {count(len(rows) - len(stay), 'record')} of {connector}")
    if stay:
        raise Failed(f"{count(len(stay), 'record')} of {number(len(rows))} cannot be replayed" if output == "table" else "")


@quarantine.command()
@click.argument("numbers", type=int, nargs=-1)
@click.option("--connector", metavar="NAME", help="All of one connector.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def purge(numbers: tuple[int, ...], connector: str | None, yes: bool, url: str | None) -> None:
    """Discard them for good: these numbers, or all of a connector.

    \b
    Example:
      faas quarantine purge 7 8
      faas quarantine purge --connector orders --yes
    """
    if bool(numbers) == bool(connector):
        raise click.UsageError("say which: numbers, or --connector NAME")
    asyncio.run(_purge(find(url), numbers, connector, yes))


async def _replay(place: Place, connector: str, numbers: Sequence[int], dry_run: bool) -> list[dict[str, Any]]:
    """What became of each, oldest first."""
    from ..buses import store
    from ..connectors.batch import Refused
    from ..connectors.driver import driver
    from ..connectors.replay import again
    from ..layout import DEAD, project_source
    from ..options import nearest
    from .connect import import_path
    from .translating import translating

    config = place.project
    import_path(config)
    there = {one.name: one for one in config.connectors}
    if connector not in there:
        raise ConfigError(f"there is no connector {connector!r}{nearest(connector, there)}")
    one = there[connector]
    made, source = driver(one), project_source(config.project, one.name)
    rows: list[dict[str, Any]] = []
    async with translating(config, one) as translate, place.open() as bus:
        for n in numbers:
            if (of := (await _found(bus, n)).subject.removeprefix(PREFIX)) != connector:
                raise Failed(f"number {n} is of connector {of!r}, not of {connector!r}; nothing was replayed.")
        numbers = sorted(set(numbers)) or [delivery.seq for delivery in await _deliveries(bus, connector, data=False)]
        stored = ((await store.position(bus, connector, REPLAYED)).said or "").split()
        progress = Progress("records", len(numbers))
        for begin in range(0, len(numbers), CHUNK):
            kept = [found for n in numbers[begin : begin + CHUNK] if (found := await store.stored(bus, DEAD, seq=n))]
            known = [delivery for delivery in kept if _named(delivery) in stored]
            rows += [_replayed(delivery, None, None) for delivery in known]
            kept = [delivery for delivery in kept if delivery not in known]
            became = await translate(again(made, source, kept))
            ready = [(delivery, each.record) for delivery, each in zip(kept, became, strict=True) if not isinstance(each.record, Refused)]
            too_large: dict[int, str] = {}
            if not dry_run:
                await store.together(store.delete(bus, DEAD, delivery.seq) for delivery in known)
                too_large = await _store(bus, connector, ready)
            for delivery, each in zip(kept, became, strict=True):
                row = _replayed(delivery, each, one.to)
                rows.append(row | {"reason": too_large[delivery.seq]} if delivery.seq in too_large else row)
            progress.add(len(kept))
        progress.clear()
    return rows


async def _store(bus: JetStreamBus, connector: str, ready: Sequence[tuple[Delivery, Record]]) -> dict[int, str]:
    """Stores them, then deletes what was kept of them. Why not, of those that this server does not take.

    Behind the events, in one publish, lies which they are: killed before it deletes, the next replay deletes, and stores nothing.
    """
    from ..buses import store
    from ..layout import DEAD, position_record

    if not ready:
        return {}
    try:
        marks = position_record(connector, REPLAYED, " ".join(_named(delivery) for delivery, _ in ready))
        await bus.publish([*(record for _, record in ready), marks])
    except EventTooLarge as error:
        if len(ready) == 1:
            return {ready[0][0].seq: str(error)}
        alone = [await _store(bus, connector, [one]) for one in ready]
        return {seq: reason for one in alone for seq, reason in one.items()}
    await store.together(store.delete(bus, DEAD, delivery.seq) for delivery, _ in ready)
    return {}


def _named(delivery: Delivery) -> str:
    """Of a stream that was made anew, too, no other record has this name."""
    return f"{delivery.seq}@{round(delivery.stored_at * 1e6)}"


def _replayed(delivery: Delivery, became: Became | None, to: str | None) -> dict[str, Any]:
    """A row: topic and id of the event, or the reason why it stays. None: its event was stored already."""
    from ..connectors.batch import Refused
    from ..event import CloudEvent

    row = {"number": delivery.seq, "position": _row(delivery)["position"], "topic": None, "id": None, "reason": None}
    if became is None:
        return row
    if isinstance(became.record, Refused):
        return row | {"reason": became.record.reason}
    assert isinstance(became.item, CloudEvent)
    return row | {"topic": to or became.name, "id": became.item.id}


async def _purge(place: Place, numbers: Sequence[int], connector: str | None, yes: bool) -> None:
    from ..buses import store
    from ..layout import DEAD

    async with place.open() as bus:
        if not numbers:
            numbers = [delivery.seq for delivery in await _deliveries(bus, connector, data=False)]
        for number in numbers:
            await _found(bus, number)
        confirm(f"Discard {count(len(numbers), 'record')} for good?", yes)
        gone = sum([await store.delete(bus, DEAD, number) for number in numbers])
    click.echo(f"discarded {count(gone, 'record')}")


async def _one(place: Place, number: int) -> Delivery:
    async with place.open() as bus:
        return await _found(bus, number)


async def _found(bus: JetStreamBus, number: int) -> Delivery:
    from ..buses import store
    from ..layout import DEAD

    delivery = await store.stored(bus, DEAD, seq=number) if number > 0 else None
    if delivery is None or not delivery.subject.startswith(PREFIX):
        raise Failed(f"nothing in quarantine has the number {number}. 'faas quarantine list' shows what is there.")
    return delivery


async def _deliveries(bus: JetStreamBus, connector: str | None, *, data: bool) -> list[Delivery]:
    from ..buses.reading import read
    from ..layout import DEAD

    return [one async for one in read(bus.connection, DEAD, [f"{PREFIX}{connector or '>'}"], data=data)]


def _row(delivery: Delivery) -> dict[str, Any]:
    from ..layout import faas_headers, header_lines

    told = faas_headers(delivery.headers)
    length = dict(header_lines(delivery.headers)).get("nats-msg-size", "")
    return {
        "number": delivery.seq,
        "connector": delivery.subject.removeprefix(PREFIX),
        "position": told.get("position", ""),
        "at": delivery.stored_at,
        "size": int(length) if length.isdigit() else len(delivery.data),
        "reason": told.get("reason", ""),
        "headers": told.get("headers", ""),
        "cut": told.get("cut", ""),
    }
