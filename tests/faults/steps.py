"""What scenarios do to workers: stop them, freeze them with their family, starve them, keep them down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ..helpers import eventually
from .order import Frozen
from .process import Process, children, state
from .run import Run, outlive

CGROUPS = Path("/sys/fs/cgroup")
THAW = 5.0  # seconds after a thaw in which what was delivered to a frozen worker may still be run by it


async def stop(run: Run, worker: Process, *, twice: bool = False) -> None:
    """SIGTERM: it ends with 0, in time (grace + 5 s), and leaves no process. twice: again as soon as it drains; then it ends at once,
    with 1, or, if it is through with draining, with 0 or by the signal."""
    async with run.fault(f"SIGTERM {worker.name}{' twice' if twice else ''}") as seen:
        family = run.family(worker)
        began, limit = time.monotonic(), 5.0 if twice else run.scenario.grace + 5
        if twice:
            worker.expect_end()
            os.kill(worker.pid, signal.SIGTERM)
            await eventually(lambda: '"drain"' in worker.said())
            run.duplicates += run.in_flight  # those handed back
        ended = await worker.end(signal.SIGTERM, 60)
        took = time.monotonic() - began
        if ended not in ((0, 1, -signal.SIGTERM) if twice else (0,)) or took > limit:
            run.problems.append(("drain", f"{worker.name} ended with {ended} after {took:.1f} s; {limit:g} s are allowed"))
        if left := await outlive(family, 2.0):
            run.problems.append(("orphans", f"{left} of {worker.name} are there 2 s after its end"))
        seen(f"ended with {ended} after {took:.1f} s")
        await asyncio.wait_for(worker.up.wait(), 60)


async def freeze(run: Run, worker: Process, seconds: float, *, family: bool) -> None:
    """SIGSTOP to a worker, and to its zygote and executors too if family; SIGCONT after so long."""
    async with run.fault(f"freeze {worker.name}{' and its family' if family else ''}") as seen:
        pids = run.family(worker) if family else [worker.pid]
        executors = {*run.executors(worker)}
        begin = time.monotonic()
        for pid in pids:
            with suppress(ProcessLookupError):  # an executor that was idle for long
                os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: state(worker.pid) == "T")
        seen(f"{len(pids)} processes are stopped")
        await asyncio.sleep(seconds)
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    if seconds >= run.lease:
        run.duplicates += run.in_flight
        until = time.monotonic() + THAW
        while time.monotonic() < until:  # and those that it forks anew
            executors |= {pid for zygote in children(worker.pid) for pid in children(zygote)} if worker.running else set()
            await asyncio.sleep(0.1)
        run.frozen.append(Frozen(frozenset(executors), begin, until))


async def down(run: Run, processes: list[Process], seconds: float) -> None:
    """SIGKILL to all of them at the same moment, and not started again for so long."""
    async with run.fault(f"{' and '.join(process.name for process in processes)} down") as seen:
        run.duplicates += run.in_flight * len(run.workers)
        families = [pid for process in processes for pid in run.family(process)]
        for process in processes:
            process.wanted.clear()
        nats = run.nats if run.server in processes else 0
        if nats:  # the keeper alone would not do: the server is a process of its own
            run.server.expect_end()
            os.kill(nats, signal.SIGKILL)
        statuses = await asyncio.gather(*(process.kill() for process in processes if process.running))
        if left := await outlive([*families, *([nats] if nats else [])], 2.0):
            run.problems.append(("orphans", f"{left} are there 2 s after their parents were killed"))
        seen(f"ended with {statuses}")
        await asyncio.sleep(seconds)
        for process in processes:
            process.wanted.set()
        for process in processes:
            await asyncio.wait_for(process.up.wait(), 60)


async def kill_zygote(run: Run, worker: Process) -> None:
    """It is healed when another one has an executor."""
    async with run.fault(f"kill the zygote of {worker.name}") as seen:
        run.duplicates += run.in_flight
        zygote, executors = run.zygote(worker), run.executors(worker)
        os.kill(zygote, signal.SIGKILL)
        if left := await outlive([zygote, *executors], 2.0):
            run.problems.append(("orphans", f"{left} are there 2 s after the zygote of {worker.name} was killed"))
        seen(f"pid {zygote} and {len(executors)} executors are gone")
        await eventually(lambda: any(children(pid) for pid in children(worker.pid)), 40)


@asynccontextmanager
async def limited(run: Run, worker: Process, controller: str, file: str, limit: int) -> AsyncIterator[Path]:
    """A worker, with all it starts, in a control group of its own (cgroup v1). Yields the group's folder."""
    group = CGROUPS / controller / f"faults-{run.scenario.name}-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        (group / file).write_text(str(limit))
        for pid in run.family(worker):
            with suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (CGROUPS / controller / "cgroup.procs").write_text(left)
        with suppress(AssertionError):
            await eventually(lambda: _removed(group), 5)


def _removed(group: Path) -> bool:
    group.rmdir()
    return True


async def kill_executor(run: Run, worker: Process, executor: int) -> None:
    async with run.fault(f"kill an executor of {worker.name}") as seen:
        run.duplicates += run.in_flight
        os.kill(executor, signal.SIGKILL)
        await eventually(lambda: state(executor) in ("", "Z"))
        seen(f"pid {executor} is gone")
