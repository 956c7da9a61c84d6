"""`faas keys`: who may publish over HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .exit import Failed
from .render import Column, moment, output_option
from .render import show as show_rows

if TYPE_CHECKING:
    from ..gateway.keys import KeyFile


@click.group()
def keys() -> None:
    """Bearer keys for 'faas gateway'. A gateway that runs takes notice of each change at once.

    \b
    Example:
      faas keys add shop --topic 'orders.>'
      faas keys list
      faas keys revoke shop
    """


@keys.command()
@click.argument("name")
@click.option("--topic", "topics", multiple=True, metavar="PATTERN", help="What it may publish to; may be repeated. [default: every topic]")
def add(name: str, topics: tuple[str, ...]) -> None:
    """Make a key, and print it: once, it is kept nowhere.

    \b
    Example:
      faas keys add shop --topic orders.created --topic 'mails.>'
      curl -H "Authorization: Bearer $KEY" --json '{"id": 1}' http://127.0.0.1:8080/topics/orders.created
    """
    secret = _file().add(name, topics)
    click.echo(secret)
    if sys.stdout.isatty():
        click.echo("\nThis is the only time that it is shown. Clients send it as 'Authorization: Bearer faas_…'.", err=True)


@keys.command("list")
@output_option
def list_(output: str) -> None:
    """List keys: name, topics, when they were made. Never the keys themselves.

    \b
    Example:
      faas keys list -o json
    """
    found = _file().read()
    rows: list[dict[str, Any]] = [{"name": key.name, "topics": list(key.topics), "created": key.created} for key in found or ()]
    columns = [Column("name", "name"), Column("topics", "topics", ", ".join), Column("created", "created", _time)]
    open_to = "nobody may publish over HTTP" if found is not None else "without a keys file a gateway on this machine is open to its users"
    show_rows(rows, columns, output, f"No keys: {open_to}.")


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Take a key back. Requests that come afterwards are refused; those in hand are finished.

    \b
    Example:
      faas keys revoke shop
    """
    if not _file().revoke(name):
        raise Failed(f"there is no key {name!r}. 'faas keys list' shows those there are.")
    click.echo(f"key {name!r} is revoked.", err=True)


def _file() -> KeyFile:
    from ..config import load
    from ..gateway.keys import KeyFile

    return KeyFile(load().keys_file)


def _time(text: str) -> str:
    from datetime import datetime

    return moment(datetime.fromisoformat(text).timestamp())
