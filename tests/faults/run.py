"""What a scenario holds: the processes of one run, ways to harm them, and time that its seed decides."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from ..helpers import eventually
from . import network
from .brokers import Broker
from .cluster import Cluster
from .disk import Disk
from .ledger import Ledger, lately
from .order import Frozen
from .process import Process, children, state
from .scenario import Scenario

PORT = 4222
PROJECT = "faults"
# Crash points that are reached many times a second, and so which time it shall be is drawn; the others: the first.
OFTEN = 40
SELDOM = (
    "batch-",
    "consumer-",
    "drain",
    "executor-",
    "forked",
    "hand-back",
    "kafka-assigned",
    "kafka-revoked",
    "pump-draining",
    "purge",
    "relay-",
    "retries-",
    "stream-",
    "worker-",
)


class Run:
    """What a scenario holds: the processes, ways to harm them, and time that its seed decides."""

    def __init__(self, scenario: Scenario, seed: int, folder: Path, *, short: bool) -> None:
        self.scenario = scenario
        self.random = random.Random(seed)
        self.folder = folder
        self.short = short
        self.canary = f"canary-{seed:x}-{self.random.getrandbits(64):x}"  # a variable of the workers' that nobody else may see
        self.disk = Disk(folder / "disk", folder, scenario.disk, scenario.disk_bytes)
        self.project = folder / "project"
        self.duplicates = 0  # executions beyond the first that the faults so far explain
        self.notes: list[str] = []  # for the report
        self.problems: list[tuple[str, str]] = []  # found by the scenario itself
        self.peak: dict[str, int] = {}  # process → bytes
        self.frozen: list[Frozen] = []
        self.published = 0
        self.latest = ""  # id of what was acknowledged last, by another broker
        self.refused: Counter[str] = Counter()  # what publish() raised, by type
        self.damaged: set[str] = set()  # ids whose bytes on disk a fault has changed: they may be missing, and nothing else
        self.paused = asyncio.Event()  # producers wait
        self.server: Process  # of one node
        self.cluster = Cluster(folder, scenario)  # of three
        self.workers: list[Process] = []
        self.connectors: list[Process] = []
        self.source = folder / "source"  # what connectors read, where it is a file
        self.broker: Broker | None = None  # and where it is another system
        self.poisoned: set[bytes] = set()  # data of what it has confirmed and can be no event
        self._faults = Ledger(folder / "faults")
        self.environ: dict[str, str] = {}
        if scenario.crash:
            at = " ".join(f"{point}:{1 if point.startswith(SELDOM) else self.random.randint(1, OFTEN)}" for point in scenario.crash)
            self.environ |= {"PYTHON_FAULTS_CRASH_AT": at, "PYTHON_FAULTS_CRASHED": str(folder / "crashed")}
        self.until_over = AsyncExitStack()  # what is to be undone when all processes have ended

    # --- time

    def times(self, long: int, *, short: int) -> int:
        return short if self.short else long

    async def pause(self, least: float, most: float) -> None:
        """Seconds, drawn by the seed."""
        await asyncio.sleep(self.random.uniform(least, most))

    async def acknowledged(self, events: int, timeout: float = 60.0) -> None:
        """Until so many more are."""
        before = self.published
        await eventually(lambda: self.published >= before + events, timeout)

    # --- what is there

    @property
    def url(self) -> str:
        """Of every server, with credentials, separated by commas."""
        if self.scenario.nodes > 1:
            return self.cluster.url
        accounts = json.loads((self.disk.place / "nats" / "identity.json").read_text())["accounts"]
        return f"nats://faas:{accounts['faas']}@127.0.0.1:{PORT}"

    @property
    def servers(self) -> list[Process]:
        return self.cluster.servers if self.scenario.nodes > 1 else [self.server]

    @property
    def nats(self) -> int:
        """The server's own pid, below its keeper."""
        return int(json.loads((self.disk.place / "nats" / "server.json").read_text())["pid"])

    @property
    def store(self) -> Path:
        """JetStream's folder, of one node."""
        return self.disk.place / "nats" / "js"

    def server_log(self) -> str:
        return (self.disk.place / "nats" / "server.log").read_text(errors="replace")

    def zygote(self, worker: Process) -> int:
        return children(worker.pid)[0]

    def executors(self, worker: Process) -> list[int]:
        return children(self.zygote(worker))

    def family(self, worker: Process) -> list[int]:
        """A worker, its zygote and its executors, in this order. Of the server: its pid."""
        zygotes = children(worker.pid) if worker in self.workers else []
        return [worker.pid, *zygotes, *(pid for zygote in zygotes for pid in children(zygote))]

    @property
    def lease(self) -> float:
        return self.scenario.lease_of(short=self.short)

    def worker(self) -> Process:
        """Any that is up."""
        return self.random.choice([worker for worker in self.workers if worker.up.is_set()])

    @property
    def in_flight(self) -> int:
        """Events one worker may hold, or whose end the bus may not have noted yet: what runs, one retry, of each function; and half a
        second of work (Feed.resize), or all of the last second, which is more while what was held up is made up for."""
        functions = len(self.scenario.functions)
        return functions * (2 * 16 + 1) + max(int(functions * self.scenario.rate * 0.5), lately(self.folder, 1.0))

    # --- harm; each is written down before, once it was seen to happen, and when it is over

    @asynccontextmanager
    async def fault(self, what: str) -> AsyncIterator[Callable[[object], None]]:
        """`async with run.fault("…") as seen: …; seen(evidence); …`: healed at the end of the body."""
        self._faults.write("planned", what)
        yield lambda evidence: self._faults.write("begin", what, evidence)
        self._faults.write("heal", what)

    async def kill(self, process: Process, *, duplicates: int | None = None) -> None:
        """SIGKILL; it is healed when it was started again and is ready."""
        async with self.fault(f"kill {process.name}") as seen:
            self.duplicates += self.in_flight if duplicates is None else duplicates
            family = self.family(process)
            status = await process.kill()
            if left := await outlive(family, 2.0):
                self.problems.append(("orphans", f"{left} of {process.name} are there 2 s after it was killed"))
            assert status == -signal.SIGKILL, f"{process.name} ended with {status}"
            seen(f"ended with {status}")
            await asyncio.wait_for(process.up.wait(), 60)

    async def kill_server(self) -> None:
        """nats-server alone, as its own crash would; acknowledgements of its last moments may be lost, and events run again."""
        async with self.fault("kill nats-server") as seen:
            self.duplicates += self.in_flight * len(self.workers)
            starts, pid = self.server.starts, self.nats
            self.server.expect_end()
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: state(pid) in ("", "Z"))
            seen(f"pid {pid} is gone")
            await eventually(lambda: self.server.starts > starts and self.server.up.is_set(), 60)

    async def down(self, process: Process, seconds: float, *, duplicates: int | None = None) -> None:
        """SIGKILL, and not started again for so long."""
        async with self.fault(f"{process.name} down") as seen:
            self.duplicates += self.in_flight * len(self.workers) if duplicates is None else duplicates
            process.wanted.clear()
            status = await process.kill()
            seen(f"ended with {status}")
            await asyncio.sleep(seconds)
            process.wanted.set()
            await asyncio.wait_for(process.up.wait(), 60)

    async def freeze(self, pid: int, name: str, seconds: float, *, duplicates: int = 0) -> None:
        """SIGSTOP, and SIGCONT after so long."""
        async with self.fault(f"freeze {name}") as seen:
            self.duplicates += duplicates
            os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: state(pid) == "T")
            seen(f"pid {pid} is in state T")
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    async def cut(self, seconds: float, how: str = "drop", *, duplicates: int | None = None, port: int = PORT) -> None:
        """The network between everybody and the bus, or what else has this port; see network.block()."""
        async with self.fault(f"network {how}" if port == PORT else f"way to the broker {how}") as seen:
            self.duplicates += self.in_flight * len(self.workers) if duplicates is None else duplicates
            network.block(port, how)
            await eventually(network.blocked)
            await asyncio.sleep(seconds)
            seen(f"{network.blocked()} packets")
            network.unblock()

    async def power_cut(self) -> None:
        """The host's: server and workers end at once, and of the disk stays what was synced."""
        async with self.fault("power cut") as seen:
            self.duplicates += self.in_flight * len(self.workers)
            everything = [self.server, *self.workers]
            for process in everything:
                process.wanted.clear()
            pid = self.nats
            os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: state(pid) == "T")
            self.disk.cut()
            os.kill(pid, signal.SIGKILL)
            statuses = [await process.kill() for process in everything if process.running]
            await eventually(lambda: not state(pid) or state(pid) == "Z")
            await eventually(self._revived, 20)
            seen(f"{len(statuses) + 1} processes killed, disk revived")
            for process in everything:
                process.wanted.set()
            for process in everything:
                await asyncio.wait_for(process.up.wait(), 60)

    def _revived(self) -> bool:
        self.disk.revive()
        return True


async def outlive(pids: list[int], seconds: float) -> list[int]:
    """Those that are still there then."""
    with suppress(AssertionError):
        await eventually(lambda: all(state(pid) in ("", "Z") for pid in pids), seconds)
    return [pid for pid in pids if state(pid) not in ("", "Z")]
