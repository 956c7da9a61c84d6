"""A process of the system under test, kept running as systemd would: whatever ends it, it is started again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..helpers import eventually

RESTART = 0.5  # seconds, as RestartSec= of a unit


class Process:
    """name: in logs and the report. ready: returns when this start of it can work.

    exits: (status, expected) of every end; negative: the signal. Expected are those that kill(), end() or a power cut brought about.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path, ready: Callable[[], Awaitable[object]]
    ) -> None:
        self.name = name
        self.command = [*command]
        self.env = dict(env)
        self.exits: list[tuple[int, bool]] = []
        self.starts = 0
        self.up = asyncio.Event()  # it runs and is ready
        self.wanted = asyncio.Event()  # it may run
        self.wanted.set()
        self.log = log
        self._folder = folder
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None
        self._expected = False
        self._said_before = 0  # bytes of the log that are of earlier starts

    def said(self) -> str:
        """What it has logged since it was started last."""
        return self.log.read_bytes()[self._said_before :].decode("utf-8", "replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return bool(self._process and self._process.returncode is None)

    async def keep(self) -> None:
        """For ever. Cancelled: kills it."""
        try:
            while True:
                await self.wanted.wait()
                await self._one()
                await asyncio.sleep(RESTART)
        finally:
            if self.running:
                os.kill(self.pid, signal.SIGKILL)
                assert self._process
                await self._process.wait()

    async def _one(self) -> None:
        self._expected = False
        with open(self.log, "ab") as log:
            self._said_before = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self.command, cwd=self._folder, env=self.env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1
        async with asyncio.TaskGroup() as tasks:
            readying = tasks.create_task(self._become_ready())
            status = await self._process.wait()
            readying.cancel()
        self.up.clear()
        self.exits.append((status, self._expected))

    async def _become_ready(self) -> None:
        while True:
            with suppress(AssertionError):
                await self._ready()
                break
        self.up.set()

    def expect_end(self) -> None:
        """Its next end is brought about by whoever calls this."""
        self._expected = True

    async def kill(self) -> int:
        """SIGKILL; its exit status, which proves it. It is started again."""
        return await self.end(signal.SIGKILL)

    async def end(self, number: int, timeout: float = 40.0) -> int:
        """Sends a signal that ends it; its exit status. It may have ended by itself, and nobody has noticed yet."""
        exits = len(self.exits)
        self._expected = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        await eventually(lambda: len(self.exits) > exits, timeout)
        return self.exits[exits][0]

    async def pause(self) -> str:
        """SIGSTOP; its state as the kernel tells it."""
        os.kill(self.pid, signal.SIGSTOP)
        return str(await eventually(lambda: "stopped" if state(self.pid) == "T" else None))

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def state(pid: int) -> str:
    """As in /proc/PID/stat: R, S, T (stopped), Z; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Direct children that are no zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def rss(pid: int) -> int:
    """Bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0
