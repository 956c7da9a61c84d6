"""The report's folder: the alerts so far, and the page that shows them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .model import Alert
from .page import render


@dataclass(frozen=True)
class Report:
    folder: Path

    def add(self, alert: Alert) -> None:
        """Once or more often: an alert is kept under its id, and the page is made from all there are.

        Killed at any instruction, what is on disk is whole: the event comes again, and this runs again.
        """
        self.folder.mkdir(exist_ok=True)
        with self._alone():
            alerts = self.alerts()
            alerts[alert.id] = alert
            _write(self.folder / "alerts.json", msgspec.json.encode(alerts))
            _write(self.folder / "report.html", render(alerts.values()).encode())

    def alerts(self) -> dict[str, Alert]:
        try:
            return msgspec.json.decode((self.folder / "alerts.json").read_bytes(), type=dict[str, Alert])
        except FileNotFoundError:
            return {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """There may be several workers: without a lock, two that read, add and write would lose one's alert."""
        with open(self.folder / "report.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
