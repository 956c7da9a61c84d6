"""A receiver of webhooks in tests: a real server in a process of its own, and what it has received."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from broker_faas.codec import from_http
from broker_faas.connectors.sinks.http import HttpSink
from broker_faas.event import CloudEvent
from tests.helpers import eventually

ROOT = Path(__file__).parents[2]


class Request(NamedTuple):
    """headers: lower-case names. client: the port it came from. in_hand: requests then, this one included; and of its key."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    client: int
    in_hand: int
    in_hand_of_key: int

    @property
    def event(self) -> CloudEvent:
        return from_http(self.headers, self.body)


@contextmanager
def http_system(folder: Path, *tls: str) -> Iterator[HttpSystem]:
    """tls: files of a certificate, its key and, if clients need one, of who signs theirs."""
    system = HttpSystem(folder, *tls)
    system.start_server()
    try:
        yield system
    finally:
        system.stop_server()


@asynccontextmanager
async def http_sink_system(folder: Path) -> AsyncIterator[HttpSystem]:
    """tests/contract/test_sinks.py: what makes a system."""
    with http_system(folder) as system:
        yield system


class HttpSystem:
    """tests/contract/test_sinks.py: SinkSystem. What a test sends goes to a target of its own, so that many can share a server."""

    def __init__(self, folder: Path, *tls: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "received.jsonl").touch()
        self._folder = folder
        self._tls = tls
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self._behaviour: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes]
        self._requests: list[Request] = []
        self._read = 0  # bytes of the log
        self.behave()

    def sink(self, **options: Any) -> HttpSink:
        scheme = "https" if self._tls else "http"
        return HttpSink(**{"url": f"{scheme}://127.0.0.1:{self.port}/hook/{{target}}"} | options)

    def behave(self, target: str = "", **how: Any) -> None:
        """http_app.py: behaviour.json. Nothing: 204."""
        self._behaviour[target] = how
        new = self._folder / "behaviour.new"
        new.write_text(json.dumps(self._behaviour))
        new.rename(self._folder / "behaviour.json")

    def start_server(self) -> None:
        command = [sys.executable, "-m", "tests.systems.http_app", str(self._folder), str(self.port), *self._tls]
        self._process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        until = monotonic() + 30
        while monotonic() < until and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            sleep(0.02)  # in a fixture, before there is a loop
        raise AssertionError("the receiver does not start")

    def stop_server(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def requests(self, target: str) -> list[Request]:
        """So far, in the order in which they came."""
        with (self._folder / "received.jsonl").open("rb") as log:
            log.seek(self._read)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read += len(whole + newline)
        for line in whole.splitlines():
            seen = json.loads(line)
            self._requests.append(Request(**seen | {"headers": dict(seen["headers"]), "body": b64decode(seen["body"])}))
        return [one for one in self._requests if one.path.rpartition("/")[2] == target]

    async def target(self) -> str:
        return f"orders.t{secrets.token_hex(4)}"

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        """Waits until n are there, and all is answered. The key: HTTP has none but the event's own."""
        await eventually(lambda: n <= len(self.requests(target)) <= self._answers(target), 60)
        return [(one.event.partitionkey, one.event) for one in self.requests(target)]

    def _answers(self, target: str) -> int:
        return (self._folder / "answered").read_text().split().count(target)

    def away(self) -> None:
        self.stop_server()

    def back(self) -> None:
        self.start_server()
