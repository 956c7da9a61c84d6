"""What is looked at when the faults of a run are over, and its processes are still there."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from broker_faas.bus import Lag, Queue
from broker_faas.buses.nats import NatsBus
from broker_faas.errors import FaasError

from .process import children
from .run import PROJECT, Run, outlive
from .scenario import Scenario

WORKER_BYTES = 150 << 20  # a worker process stays below, whatever waits (I-B1)


async def quiet(run: Run) -> None:
    """Until nothing waits, runs or is scheduled, for a second."""
    began, since = time.monotonic(), 0.0
    lag: list[Lag] = []
    async with NatsBus(run.url, connect_timeout=30).open() as bus:
        while time.monotonic() - began < run.scenario.quiet:
            try:
                lag = [await bus.lag(queue) for queue in _queues(run.scenario)]
            except FaasError:
                since = 0.0
            else:
                if any(one.waiting or one.in_progress or one.scheduled for one in lag) or await _unread(run):
                    since = 0.0
                elif not since:
                    since = time.monotonic()
                elif time.monotonic() - since > 1.0:
                    return
            await asyncio.sleep(0.1)
        run.problems.append(("liveness", f"not quiet {run.scenario.quiet:g} s after the last fault was healed: {lag}"))


async def _unread(run: Run) -> bool:
    """Whether the source has what its connector has not acknowledged."""
    if run.broker:
        return await run.broker.unread()
    acked = Path(f"{run.source}.acked")
    return bool(run.scenario.connector) and (not acked.exists() or int(acked.read_text()) < run.source.stat().st_size)


def _queues(scenario: Scenario) -> list[Queue]:
    ordered = {*scenario.ordered} - {*scenario.sinks}  # a sink keeps the order of one queue
    return [Queue(f"{PROJECT}--{name}", ("load",), 16 if name in ordered else 0) for name in scenario.functions]


def look_for_secrets(run: Run) -> None:
    """The bus's password and a variable of the worker's, in whatever people or functions may see. Reads logs and /proc."""
    password = re.findall("faas:([0-9a-f]+)@", run.url)
    secrets = {"the bus's password": password[0].encode(), "CANARY": run.canary.encode()}
    places: dict[str, Callable[[], bytes]] = {file.name: file.read_bytes for file in run.folder.glob("*.log")}
    for worker in run.workers:
        for zygote in children(worker.pid) if worker.running else []:
            places[f"the environment of {worker.name}'s zygote"] = Path(f"/proc/{zygote}/environ").read_bytes
            for pid in (worker.pid, zygote, *children(zygote)):
                places[f"the command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes
            for executor in children(zygote):
                places[f"the environment of executor {executor}"] = Path(f"/proc/{executor}/environ").read_bytes
    for where, read_bytes in places.items():
        with suppress(OSError):  # ended meanwhile
            content = read_bytes()
            run.problems += [("secrets", f"{what} is in {where}") for what, secret in secrets.items() if secret in content]


async def drain(run: Run) -> None:
    """SIGTERM to every worker: each must end with 0, in time, and leave no process."""
    for worker in (*run.connectors, *run.workers):
        worker.wanted.clear()
        if worker.running:
            family = run.family(worker)
            began = time.monotonic()
            status = await worker.end(signal.SIGTERM)
            if status or time.monotonic() - began > run.scenario.grace + 5:
                run.problems.append(("drain", f"{worker.name} ended with {status} after {time.monotonic() - began:.1f} s"))
            if await outlive(family, 5.0):
                run.problems.append(("drain", f"{worker.name} left processes behind"))
        if run.peak.get(worker.name, 0) > WORKER_BYTES:
            run.problems.append(("memory", f"{worker.name} had {run.peak[worker.name] >> 20} MB; {WORKER_BYTES >> 20} are allowed"))
    for process in (*run.servers, *run.workers, *run.connectors, *([run.broker.process] if run.broker else [])):
        for status, expected in process.exits:
            if not expected and status not in run.scenario.exits:
                run.problems.append(("exits", f"{process.name} ended by itself with {status}; see {process.log.name}"))
