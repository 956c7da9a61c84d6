"""A receiver of webhooks in tests: a real server in a process of its own, and what it has received."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


class HttpSystem:
    """What a test sends goes to a target of its own: all of them share the server."""

    def __init__(self, folder: Path, *tls: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._tls = tls
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self._behaviour: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes]
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
        file = self._folder / "received.jsonl"
        lines = [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
        found = [Request(**line | {"headers": dict(line["headers"]), "body": b64decode(line["body"])}) for line in lines]
        return [one for one in found if one.path.rpartition("/")[2] == target]

    async def received(self, target: str, n: int) -> list[tuple[str | None, CloudEvent]]:
        """Waits until n are there. The key: HTTP has none but the event's own."""
        await eventually(lambda: len(self.requests(target)) >= n)
        return [(one.event.partitionkey, one.event) for one in self.requests(target)]
