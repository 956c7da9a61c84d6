"""`faas check`: before a deploy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from .connect import check_connectors
from .connection import Place, find, project, url_option
from .exit import Failed
from .functions import planned, queues_on, specs_of
from .render import GREEN, Column, colour, count, output_option, show

if TYPE_CHECKING:
    from ..config import Config
    from ..function import Spec


@click.command()
@click.option("--against", type=click.Choice(["bus"]), help="Compare with what is on the bus, too.")
@output_option
@url_option
def check(against: str | None, output: str, url: str | None) -> None:
    """Validate faas.toml, import the modules, look at every function and connector; with --against bus, say what a deploy would change.

    Exit code 78 if something is wrong with the code or the configuration, 1 if deploying it would lose events.

    \b
    Example:
      faas check
      faas check --against bus
    """
    if against:
        rows = asyncio.run(_against_bus(find(url)))
    else:
        config = project(url)
        specs = asyncio.run(_specs(config))
        rows = [{"function": spec.name, "change": "ok", "says": f"listens to {', '.join(spec.topics)}", "refused": False} for spec in specs]
        if not specs:
            raise Failed(f"no functions in {', '.join(config.modules)}. Mark a function with @function(on=…).")
    columns = [Column("function", "function"), Column("change", "change"), Column("what", "says")]
    show(rows, columns, output, "")
    refused = sum(row["refused"] for row in rows)
    if refused:
        raise Failed(f"{count(refused, 'change')} would lose events; a worker with this code refuses to start.")
    if output == "table":
        changed = sum(row["change"] not in ("ok", "same") for row in rows)
        click.echo(colour("ok" if not changed else f"ok: {count(changed, 'change')}, no event is lost", GREEN), err=True)


async def _specs(config: Config) -> list[Spec]:
    await check_connectors(config)
    return await specs_of(config)


async def _against_bus(place: Place) -> list[dict[str, Any]]:
    config = place.project
    specs = await _specs(config)
    async with place.open() as bus:
        changes = planned(config, specs, await queues_on(bus, config.project))
    prefix = f"{config.project}--"
    rows = [{"function": one.queue.removeprefix(prefix), "change": one.kind, "says": one.says, "refused": one.refused} for one in changes]
    touched = {row["function"] for row in rows}
    same = [spec for spec in specs if spec.name not in touched]
    return rows + [{"function": spec.name, "change": "same", "says": "nothing changes for its queue", "refused": False} for spec in same]
