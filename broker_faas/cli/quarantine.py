"""`faas quarantine`: what sources have and cannot become an event, as it was."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .connection import Place, collect, find, url_option
from .exit import Failed
from .render import Column, age, clean, confirm, count, output_option, show, size

if TYPE_CHECKING:
    from ..bus import Delivery
    from ..buses.nats import JetStreamBus

PREFIX = "quarantine."


@click.group()
def quarantine() -> None:
    """What a source has and cannot become an event: raw bytes, headers, its position at the source, and why.

    \b
    Example:
      faas quarantine list
      faas quarantine show 7
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
    for name, value in json.loads(row["headers"] or "{}").items() if not row.get("cut") else []:
        click.echo(f"{'header':<10} {clean(name)}: {clean(str(value))}")
    click.echo(f"{'data':<10} {size(len(delivery.data))}")
    click.echo(clean(delivery.data[:2000].decode("utf-8", "backslashreplace")))


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
