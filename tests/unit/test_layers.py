"""A module imports only from its own row or from lower ones, so that the path of an event reads one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "broker_faas"
ROWS = [
    "errors retry topics toml options attributes event codec amqp_binding kafka_binding where schedule",
    "bus layout nats_binding function signature invoke decide config service pipe intake tls",
    "buses targets client testing reaper scaler telemetry embedded",
    "connectors gateway workers",
    "cli",
]
ROW = {name: number for number, row in enumerate(ROWS, 1) for name in row.split()}


def test_imports_go_down_the_rows() -> None:
    files = [path for path in PACKAGE.glob("**/*.py") if path != PACKAGE / "__init__.py"]
    files += [path for folder in ("workers", "connectors") for path in (PACKAGE / folder).glob("**/*.py")]  # ** follows no links
    imports = {(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), name) for path in files for name in imported(path)}

    assert {"workers", "connectors"} <= {path.relative_to(PACKAGE).parts[0] for path in files}
    assert {name for pair in imports for name in pair} - ROW.keys() == set()
    assert [(one, two) for one, two in sorted(imports) if ROW[one] < ROW[two]] == []
    assert not imports & {("connectors", "workers"), ("workers", "connectors")}


def imported(path: Path) -> Iterator[str]:
    """First part, after `broker_faas.`, of what a file imports, imports inside functions included."""
    package = ["broker_faas", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            modules = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (module.split(".")[1] for module in modules if module.startswith("broker_faas."))
