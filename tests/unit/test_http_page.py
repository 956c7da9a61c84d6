"""docs/connectors/http.md says what the gateway does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from broker_faas.config import GatewayConfig, load
from broker_faas.gateway.openapi import DOCUMENT

from ..markdown import ROOT, blocks

PAGE = ROOT / "docs" / "connectors" / "http.md"


def test_the_example_loads(tmp_path: Path) -> None:
    example = next(block.text for block in blocks(PAGE) if block.language == "toml")
    (tmp_path / "faas.toml").write_text(f'project = "shop"\nmodules = ["shop"]\n{example}')

    assert ("0.0.0.0", 8443, 8 << 20) == (
        (gateway := load(tmp_path / "faas.toml").gateway).host,
        gateway.port,
        gateway.max_body,
    )


def test_every_option_is_on_the_page() -> None:
    section = PAGE.read_text().partition("## Options")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]

    assert {option.name for option in fields(GatewayConfig)} == set(re.findall(r"`(\w+)`", "".join(rows)))


def test_every_status_that_openapi_names_is_on_the_page() -> None:
    section = PAGE.read_text().partition("## What is answered")[2].partition("\n## ")[0]
    rows = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))

    assert DOCUMENT["paths"]["/topics/{topic}"]["post"]["responses"].keys() <= set(re.findall(r"\d{3}", rows))
