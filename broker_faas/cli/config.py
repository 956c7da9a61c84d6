"""`faas config`: what is in effect."""

from __future__ import annotations

import click

from .connection import project, url_option
from .render import Column, output_option
from .render import show as show_rows


@click.group()
def config() -> None:
    """The configuration in effect.

    \b
    Example:
      faas config show --origin
    """


@config.command()
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@output_option
@url_option
def show(origin: bool, output: str, url: str | None) -> None:
    """Every option and its value. Passwords and the values of env are masked.

    \b
    Example:
      faas config show --origin
      NATS_URL=nats://127.0.0.1:4222 faas config show -o json
    """
    rows = [{"option": name, "value": value} | ({"origin": where} if origin else {}) for name, value, where in project(url).shown()]
    columns = [Column("option", "option"), Column("value", "value", _text)] + ([Column("origin", "origin")] if origin else [])
    show_rows(rows, columns, output, "")


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "-" if isinstance(value, tuple | list) else str(value)
