"""docs/configuration.md names every option, with the default that it has."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from broker_faas.config import BusConfig, Config, ConnectorConfig, FunctionConfig, GatewayConfig, WorkerConfig, load
from broker_faas.function import function

from ..markdown import ROOT, blocks

PAGE = ROOT / "docs" / "configuration.md"
ENVIRON = {"BUS_PASSWORD": "hunter2", "DB_PASSWORD": "secret"}


def documented(heading: str) -> set[str]:
    """Options in the table under a heading."""
    section = PAGE.read_text().partition(heading)[2].partition("\n#")[0]
    return set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "options", "internal"),
    [
        ("## Options", Config, {"root", "bus", "worker", "gateway", "functions", "connectors", "sinks", "origins", "unset"}),
        ("### `[bus]`", BusConfig, set()),
        ("### `[worker]`", WorkerConfig, set()),
        ("### `[gateway]`", GatewayConfig, set()),
        ("### `[function.NAME]`", FunctionConfig, set()),
        ("### `[[connector]]`", ConnectorConfig, {"options", "place", "places", "unset"}),
    ],
)
def test_every_option_is_documented(heading: str, options: Any, internal: set[str]) -> None:
    assert {option.name for option in fields(options)} - internal == documented(heading)


def test_every_argument_of_function_is_documented() -> None:
    assert set(inspect.signature(function).parameters) == documented("## Declaring a function")


def test_the_example_loads(tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_text(next(block.text for block in blocks(PAGE) if block.language == "toml"))
    config = load(tmp_path / "faas.toml", ENVIRON)

    assert ("shop", 3, 60.0) == (config.project, config.bus.replicas, config.functions["reserve"].timeout)
