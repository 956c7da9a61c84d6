"""docs/connectors/*.md name every option of a connector, with the default that it has, and their examples load."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from broker_faas.config import load
from broker_faas.connectors.driver import driver, sink_driver

from ..markdown import ROOT, blocks

PAGES = ROOT / "docs" / "connectors"
SYSTEMS = ["kafka", "rabbitmq", "nats", "cron"]
ENVIRON = {"KAFKA_PASSWORD": "secret", "AMQP_URL": "amqps://shop:secret@rabbit.example.com:5671", "ORDERS_PASSWORD": "secret"}


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connector(system: str, tmp_path: Path) -> Any:
    """What the first example of the page makes."""
    example = next(block.text for block in blocks(PAGES / f"{system}.md") if block.language == "toml")
    (tmp_path / "faas.toml").write_text(f'project = "shop"\nmodules = ["functions"]\n{example}')
    [one] = load(tmp_path / "faas.toml", ENVIRON).connectors

    assert one.type == system
    return driver(one)


def test_every_option_is_on_the_page_and_has_the_default_that_it_says(system: str, connector: Any) -> None:
    expected = {field.name: shown(field.default) for field in fields(connector)}

    assert expected == {name: default(cell, expected.get(name, "")) for name, cell in rows(system)}


def rows(system: str) -> list[tuple[str, str]]:
    """Option and cell of its default; several options may share a row."""
    section = (PAGES / f"{system}.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    table = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [(name, cell.strip()) for names, cell in table for name in re.findall(r"`(\w+)`", names)]


def shown(default: object) -> str:
    if default is MISSING:
        return "required"
    if default in (None, "", ()):
        return ""
    return str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else str(default)


def default(cell: str, expected: str) -> str:
    """What a cell says: words, as in `the system's`, stand for no default of its own."""
    plain = cell.replace("`", "").replace('"', "").replace(",", "")
    return plain if plain == expected or re.fullmatch(r'[`"\d].*|true|false|required', cell) else ""


@pytest.mark.parametrize("system", ["rabbitmq", "nats"])
def test_every_option_of_a_sink_is_in_its_section_and_its_example_loads(system: str, tmp_path: Path) -> None:
    section = (PAGES / f"{system}.md").read_text().partition("\n## As a sink\n")[2]
    example = section.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "faas.toml").write_text(f'project = "shop"\nmodules = ["functions"]\n{example}')
    [one] = load(tmp_path / "faas.toml", ENVIRON).sinks
    tables = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    said = {name: cell.strip(' `"') for names, cell in tables for name in re.findall(r"`(\w+)`", names)}
    sink = sink_driver(one)

    assert one.type == system
    for option in fields(sink):  # type: ignore[arg-type]
        assert said[option.name] in ("", "as above", shown(option.default))
