"""`faas new`: a project to start from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from ..errors import ConfigError

TOML = """\
# What is in effect, and where it comes from: `faas config show --origin`. All options: docs/configuration.md.
project = "{project}"        # part of every queue's name: do not change it once events wait
modules = ["functions"]      # Python modules with @function in them, importable from this folder

# keep = 86400               # seconds that settled events stay, for `faas events` and new queues with start="first"

# [bus]                      # without a url: `faas dev` runs a server of its own. Elsewhere set NATS_URL, or say here:
# url = "tls://me:${{BUS_PASSWORD}}@nats.example.com:4222"    # ${{NAME}} is an environment variable

# [worker]
# grace = 25                 # seconds that a drain may take

# [function.reserve]         # overrides what @function says
# timeout = 60
# env = {{DB_PASSWORD = "${{DB_PASSWORD}}"}}    # for this function's executors alone
"""

FUNCTIONS = '''\
"""The functions of {project}: plain callables, see test_functions.py."""

from dataclasses import dataclass

from broker_faas import Reject, RetryPolicy, function


@dataclass
class Order:
    id: int
    quantity: int = 1


@function(on="orders.created", sends="orders.reserved", retry=RetryPolicy(max_attempts=3))
async def reserve(order: Order) -> dict[str, int]:
    """Reserve what was ordered."""
    if order.quantity < 1:
        raise Reject("nothing to reserve")  # a dead letter at once; any other exception is another attempt
    print(f"reserved {{order.quantity}} for order {{order.id}}")
    return {{"order": order.id, "reserved": order.quantity}}  # published to orders.reserved
'''

TEST = '''\
"""Run with: python -m pytest"""

import asyncio

import pytest
from broker_faas import Reject

from functions import Order, reserve


def test_an_order_is_reserved() -> None:
    assert asyncio.run(reserve(Order(id=1, quantity=2))) == {"order": 1, "reserved": 2}


def test_an_order_of_nothing_is_rejected() -> None:
    with pytest.raises(Reject):
        asyncio.run(reserve(Order(id=1, quantity=0)))
'''

README = """\
# {project}

    faas dev                                      # runs everything here; reloads when a file is saved
    faas publish orders.created '{{"id": 1}}'       # in another terminal: functions.py runs
    python -m pytest                              # functions are plain callables
    faas dead list                                # what failed, and why
"""


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Make a project: a folder NAME with faas.toml, a function and its test.

    \b
    Example:
      faas new hello && cd hello && faas dev
    """
    folder = Path(name)
    project = folder.absolute().name
    if not re.fullmatch(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", project) or len(project) > 60:
        raise ConfigError(f"{project!r} cannot be a project's name: letters, digits, '_' and single '-', at most 60, like 'order-service'.")
    create(folder, project)
    click.echo(f"Made {folder}/ with faas.toml, functions.py, test_functions.py and README.md. Next:\n")
    if folder.absolute() != Path.cwd():
        click.echo(f"  cd {shlex.quote(str(folder))}")
    click.echo("  faas dev")
    click.echo("  faas publish orders.created '{\"id\": 1}'      # in another terminal, in the same folder")


def create(folder: Path, project: str) -> None:
    """Raises ConfigError if the folder holds something already, or cannot be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not empty; nothing was changed. Choose another name.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "faas.toml").write_text(TOML.format(project=project))
        (folder / "functions.py").write_text(FUNCTIONS.format(project=project))
        (folder / "test_functions.py").write_text(TEST)
        (folder / "README.md").write_text(README.format(project=project))
        (folder / ".gitignore").write_text(".faas/\n__pycache__/\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}. Choose a folder that you may write.") from None
