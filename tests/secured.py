"""What a person meets who sets up TLS and a login: tables of the docs as they are, and what is told when something keeps them out."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker_faas.buses.nats import NatsBus
from broker_faas.config import load
from broker_faas.connectors.driver import sink_driver
from broker_faas.connectors.sink import Outgoing
from broker_faas.errors import SinkRefused, SinkUnavailable
from broker_faas.event import CloudEvent
from broker_faas.layout import event_record
from tests.certificates import PASSWORD
from tests.helpers import eventually
from tests.markdown import ROOT, blocks
from tests.terminal import COMMAND, Faas, project

WRONG = "wr0ng-passw0rd"
TARGET = "orders.done"


def documented(page: str, kind: str) -> str:
    """The table that docs/connectors/`page` begins with. kind: connector, sink."""
    return next(block.text for block in blocks(ROOT / "docs/connectors" / page) if block.text.startswith(f"[[{kind}]]"))


def table(kind: str, options: Mapping[str, Any]) -> str:
    return "".join(
        [f'[[{kind}]]\nname = "orders-{kind}"\n', *(f"{name} = {orjson.dumps(value).decode()}\n" for name, value in options.items())]
    )


async def runs(folder: Path, bus_url: str, tables: str, **environment: str) -> None:
    """`faas connect`, until what waits at the source is stored, and an event is delivered to TARGET. It shows no secret anywhere."""
    ask = Faas(project(folder, "", toml=tables), NATS_URL=bus_url, **environment)
    config = load(folder / "faas.toml", ask.environment)
    async with NatsBus(bus_url).open() as bus:
        event = CloudEvent(type="t", source="/s", id="1", data=b"{}", datacontenttype="application/json")
        await bus.publish([event_record(f"{config.sinks[0].name}:{TARGET}", event)])
    with ask.running("connect") as running:
        argv = Path(f"/proc/{running.process.pid}/cmdline").read_text()
        await eventually(lambda: [row.get("delivered") for row in ask.json("sinks")] == [1], 40)
        await eventually(lambda: all(row.get("stored") for row in ask.json("connectors")), 40)
        shown = ask("connectors", "-o", "json").stdout + ask("sinks", "-o", "json").stdout
        assert running.stop(signal.SIGTERM) == 0

    for secret in environment.values():
        assert secret not in argv + shown + running.said
    assert PASSWORD not in argv + shown + running.said


def source_says(folder: Path, code: int, options: Mapping[str, Any]) -> str:
    """What `faas connect --dry-run` ends with."""
    ask = Faas(project(folder, "", toml=table("connector", options)))
    return _line(ask("connect", "--dry-run", "orders-connector", code=code).stderr)


def peeks(folder: Path, options: Mapping[str, Any]) -> str:
    """What `faas connect --dry-run` shows."""
    return Faas(project(folder, "", toml=table("connector", options)))("connect", "--dry-run").stdout


async def delivers(folder: Path, options: Mapping[str, Any]) -> None:
    """The sink's driver, alone."""
    config = load(project(folder, "", toml=table("sink", options)) / "faas.toml", {})
    async with sink_driver(config.sinks[0]).open() as sink:
        assert await sink.send([Outgoing(TARGET, CloudEvent(type="t", source="/s", id="1"))]) == [None]


async def sink_says(folder: Path, code: int, options: Mapping[str, Any]) -> str:
    """What its driver raises, which has to fit the exit code."""
    with pytest.raises(SinkRefused if code == 78 else SinkUnavailable) as raised:
        await delivers(folder, options)
    return _line(f"faas: {raised.value}\n")


def ends(folder: Path, bus_url: str, kind: str, options: Mapping[str, Any]) -> str:
    """What `faas connect NAME`, as a process, ends with: 78, within seconds."""
    environment = Faas(project(folder, "", toml=table(kind, options)), NATS_URL=bus_url).environment
    argv = [*COMMAND, "connect", f"orders-{kind}"]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 78, done
    assert PASSWORD not in done.stdout
    assert WRONG not in done.stdout
    assert '"level": "error"' not in done.stdout
    return _line(done.stderr)


async def waits(folder: Path, bus_url: str, source: Mapping[str, Any], sink: Mapping[str, Any]) -> tuple[str, str]:
    """The errors that `faas connectors` and `faas sinks` show of what cannot be connected to and is tried again."""
    ask = Faas(project(folder, "", toml=table("connector", source) + table("sink", sink)), NATS_URL=bus_url)
    with ask.running("connect") as running:
        [read] = await eventually(lambda: [row for row in ask.json("connectors") if row.get("error")], 40)
        [sent] = await eventually(lambda: [row for row in ask.json("sinks") if row.get("error")], 40)
        assert running.stop(signal.SIGTERM) == 0

    assert PASSWORD not in running.said
    assert "Traceback" not in running.said
    assert (read["state"], sent["state"]) == ("connecting", "connecting")
    return read["error"], sent["error"]


def _line(text: str) -> str:
    assert text.startswith("faas: ")
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    for hidden in (PASSWORD, WRONG, "Traceback"):
        assert hidden not in text
    return text
