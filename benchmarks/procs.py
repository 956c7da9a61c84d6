"""Processes of a contender or server: started, ended, and what they cost, from /proc."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A contender's process ended when it should not have. The text has the end of what it printed."""


def tree(root: int) -> list[int]:
    """The process and all that descend from it, now."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu(roots: Sequence[int]) -> float:
    """Seconds of CPU that these processes and their descendants have used; those that ended and were waited for included."""
    used = 0.0
    for pid in {pid for root in roots for pid in tree(root)}:
        if fields := _stat(pid):
            used += sum(map(int, fields[11:15])) / _TICK  # utime, stime, cutime, cstime
    return used


def pss(pid: int) -> int:
    """Bytes of memory, shared pages divided among those who share them."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/pid/stat from the third (state) on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


@asynccontextmanager
async def running(
    argv: Sequence[str], environ: Mapping[str, str], log: Path, *, patience: float = 15.0, cwd: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a session of its own; leaving ends it and all its descendants. log: where it prints."""
    with open(log, "ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(environ), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, start_new_session=True
        )
    try:
        yield process
    finally:
        family = tree(process.pid)
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await process.wait()
        for pid in [process.pid, *family]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def finished(argv: Sequence[str], environ: Mapping[str, str], log: Path, *, seconds: float = 300.0) -> None:
    """Runs it to its end. Raises Failed unless that is exit status 0 within `seconds`."""
    async with running(argv, environ, log, patience=1.0) as process:
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            raise Failed(f"{argv[1:]} did not end within {seconds:g} s. {tail(log)}") from None
    if process.returncode:
        raise Failed(f"{argv[1:]} ended with {process.returncode}. {tail(log)}")


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-8:]
    return "The end of its output:\n    " + "\n    ".join(line[:300] for line in lines)
