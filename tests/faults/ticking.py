"""Cron connectors as processes, several of one project, kept running; and what lies on the bus beside the times that were to be."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import nats

from ..helpers import eventually
from ..terminal import project
from .dump import everything
from .process import Process, state
from .space import HOOK, ROOT

LONG = bool(os.environ.get("LONG"))
LATE = 2.0  # seconds that a fire may be late while a replica could fire it
RECOVERY = 5.0  # and after the first could again
SAMPLE = 0.02  # seconds between two looks at who can
# The wall clock of one process: SKEW names a file with the seconds that it is ahead.
SKEWED = "return datetime.now(UTC) + timedelta(seconds=float(open(__import__('os').environ['SKEW']).read()))"
CLOCK = ("broker_faas.connectors.cron", "return datetime.now(UTC)", SKEWED)


class Fire(NamedTuple):
    """connector: its name. time: when it was to be, unix seconds. stored: when the bus had it."""

    connector: str
    time: int
    stored: float


class Ticking:
    """Replicas of one `faas connect`. cut: those that are cut off from the bus. away: spans of time in which none could fire."""

    def __init__(self, folder: Path, toml: str, urls: Sequence[str], env: Mapping[str, str], patches: Iterable[Sequence[str]]) -> None:
        self.folder = project(folder / "shop", "", toml=toml)
        self.cut: set[Process] = set()
        self.away: list[tuple[float, float]] = []
        self.crashed = folder / "crashed"
        before = os.environ.get("PYTHON_FAULTS_PATCHES")  # of a mutant
        (folder / "patches.json").write_text(json.dumps([*patches, *(json.loads(Path(before).read_text()) if before else ())]))
        self._env = os.environ | {
            "PYTHONPATH": f"{ROOT}:{HOOK}",
            "PYTHON_FAULTS_PATCHES": str(folder / "patches.json"),
            "PYTHON_FAULTS_CRASHED": str(self.crashed),
            **env,
        }
        self.replicas = [self._replica(n, url) for n, url in enumerate(urls)]

    def _replica(self, n: int, url: str) -> Process:
        skew = self.folder / f"skew-{n}"
        skew.write_text("0")
        env = {**self._env, "NATS_URL": url, "SKEW": str(skew)}

        async def ready() -> None:
            await eventually(lambda: "connectors run" in process.said(), 60)

        command = [sys.executable, "-m", "broker_faas.cli.main", "connect"]
        process = Process(f"replica {n}", command, env, self.folder, self.folder / f"replica-{n}.log", ready)
        return process

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            keepers = [tasks.create_task(replica.keep()) for replica in self.replicas]
            keepers.append(tasks.create_task(self._watch()))
            for replica in self.replicas:
                await asyncio.wait_for(replica.up.wait(), 60)
            yield
            for keeper in keepers:
                keeper.cancel()

    def ahead(self, replica: int, seconds: float) -> None:
        """Somebody sets its wall clock."""
        new = self.folder / "skew.new"
        new.write_text(f"{seconds}")
        new.rename(self.folder / f"skew-{replica}")

    def crashes(self) -> list[str]:
        return self.crashed.read_text().split("\n")[:-1] if self.crashed.exists() else []

    async def _watch(self) -> None:
        since = 0.0
        while True:
            able = any(replica.up.is_set() and replica not in self.cut and state(replica.pid) != "T" for replica in self.replicas)
            if not able and not since:
                since = time.time() - SAMPLE
            elif able and since:
                self.away.append((since, time.time()))
                since = 0.0
            await asyncio.sleep(SAMPLE)

    def lateness(self, fire: Fire) -> tuple[float, float]:
        """Seconds from when a replica could fire it, and how many are allowed."""
        back = max([until for since, until in self.away if since <= fire.time + LATE and fire.time <= until], default=0.0)
        return fire.stored - max(fire.time, back), RECOVERY if back else LATE


async def fires(url: str) -> list[Fire]:
    """In the order in which they were stored."""
    client = await nats.connect(url)
    try:
        found = []
        async for message in everything(client, "events"):
            if message.subject.startswith("ev."):
                headers = {name.lower(): value for name, value in (message.headers or {}).items()}
                connector, at = headers["ce-id"].split("/")
                assert headers["ce-time"] == at
                found.append(Fire(connector, int(datetime.fromisoformat(at).timestamp()), message.metadata.timestamp.timestamp()))
        return found
    finally:
        await client.close()


def mismatches(found: Sequence[Fire], targets: Sequence[int]) -> list[str]:
    """What is wrong with the fires of one connector: one that was not to be; none, or more than one, for a target; an order not of time."""
    times = Counter(fire.time for fire in found)
    wrong = [f"{_clock(at)} was not to be" for at in sorted(times.keys() - {*targets})]
    wrong += [f"{_clock(at)} is missing" for at in targets if at not in times]
    wrong += [f"{_clock(at)} is there {n} times" for at, n in sorted(times.items()) if n > 1]
    in_order = sorted(found, key=lambda fire: fire.time)
    return wrong + ([] if [*found] == in_order else ["they are stored in another order than that of their times"])


def _clock(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
