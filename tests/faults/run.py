"""`python -m tests.faults.run SCENARIO SEED FOLDER short|long`: one run of one scenario, in namespaces of its own (space.py).

FOLDER gets the ledgers, the logs and verdict.json; the system under test lives on a mount of its own in it, which ends with this process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from broker_faas.bus import Lag, Queue
from broker_faas.buses.nats import NatsBus
from broker_faas.client import connect
from broker_faas.errors import FaasError
from broker_faas.service import first

from ..helpers import eventually
from . import checker, network
from .cluster import Cluster
from .disk import Disk
from .dump import dump
from .ledger import Dead, Ledger, Stored, digest, place, read
from .order import Frozen
from .process import Process, children, rss, state
from .scenario import Scenario

PORT = 4222
PRODUCERS = 8
KEYS = 16
PROJECT = "faults"
# Crash points that are reached many times a second, and so which time it shall be is drawn; the others: the first.
OFTEN = 40
SELDOM = ("batch-", "consumer-", "drain", "executor-", "forked", "hand-back", "purge", "relay-", "retries-", "stream-", "worker-")
BINARY = "application/octet-stream"
QUIET = 120.0  # seconds for everything to be done after the last fault is healed
WORKER_BYTES = 150 << 20  # a worker process stays below, whatever waits (I-B1)


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
        self.refused: Counter[str] = Counter()  # what publish() raised, by type
        self.damaged: set[str] = set()  # ids whose bytes on disk a fault has changed: they may be missing, and nothing else
        self.paused = asyncio.Event()  # producers wait
        self.server: Process  # of one node
        self.cluster = Cluster(folder, scenario)  # of three
        self.workers: list[Process] = []
        self._faults = Ledger(folder / "faults")
        self._environ: dict[str, str] = {}
        if scenario.crash:
            at = " ".join(f"{point}:{1 if point.startswith(SELDOM) else self.random.randint(1, OFTEN)}" for point in scenario.crash)
            self._environ |= {"PYTHON_FAULTS_CRASH_AT": at, "PYTHON_FAULTS_CRASHED": str(folder / "crashed")}
        self.until_over = AsyncExitStack()  # what is to be undone when all processes have ended
        self._tasks: asyncio.TaskGroup
        self._producing: list[asyncio.Task[None]] = []

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
        """Events one worker may hold: what runs, one retry, and half a second of work (Feed.resize), of each function."""
        return len(self.scenario.functions) * int(2 * 16 + 1 + self.scenario.rate * 0.5)

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

    async def down(self, process: Process, seconds: float) -> None:
        """SIGKILL, and not started again for so long."""
        async with self.fault(f"{process.name} down") as seen:
            self.duplicates += self.in_flight * len(self.workers)
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

    async def cut(self, seconds: float, how: str = "drop", *, duplicates: int | None = None) -> None:
        """The network between everybody and the bus; see network.block()."""
        async with self.fault(f"network {how}") as seen:
            self.duplicates += self.in_flight * len(self.workers) if duplicates is None else duplicates
            network.block(PORT, how)
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

    # --- the system and its load

    @asynccontextmanager
    async def system(self) -> AsyncIterator[None]:
        scenario = self.scenario
        (self.cluster if scenario.nodes > 1 else self.disk).make()
        self.project.mkdir()
        for name, source in {"app": scenario.app, **scenario.modules}.items():
            (self.project / f"{name}.py").write_text(source)
        (self.project / "faas.toml").write_text(
            f'project = "{PROJECT}"\nmodules = {json.dumps(["app", *scenario.modules])}\nkeep = {scenario.keep}\n'
            f"[bus]\nmax_bytes = {scenario.max_bytes // 2}\ndead_bytes = {scenario.max_bytes // 8}\nreplicas = {scenario.nodes}\n"
            f"insecure = {str(scenario.nodes > 1).lower()}\n"
            f'{scenario.toml}\n[worker]\nexecutors = 2\ngrace = {scenario.grace}\npass_env = ["LEDGER"]\n'
        )
        async with asyncio.TaskGroup() as self._tasks:
            if scenario.nodes == 1:
                self.server = self._process(
                    "nats-server",
                    [
                        "-m",
                        "tests.faults.server",
                        f"{self.disk.place / 'nats'}",
                        f"{PORT}",
                        f"{scenario.max_bytes}",
                        *(["kept"] if scenario.kept else []),
                    ],
                    self._server_ready,
                )
            keepers = [self._tasks.create_task(server.keep()) for server in self.servers]
            for server in self.servers:
                await server.up.wait()
            for n in range(scenario.workers):
                worker = self.add_worker(n)
                keepers.append(self._tasks.create_task(worker.keep()))
            for worker in self.workers:
                await worker.up.wait()
            sampling = self._tasks.create_task(self._sample())
            yield
            sampling.cancel()
            for keeper in keepers:
                keeper.cancel()

    def add_worker(self, n: int) -> Process:
        name = f"worker {n}"
        env = {"NATS_URL": self.url, "CANARY": self.canary}
        worker = self._process(name, ["-m", "broker_faas.cli.main", "worker"], lambda: self._worker_ready(worker), env)
        self.workers.append(worker)
        return worker

    def _process(self, name: str, arguments: list[str], ready: Callable[[], Any], env: dict[str, str] | None = None) -> Process:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        environ = os.environ | {"LEDGER": str(self.folder / "functions")} | self._environ | (env or {})
        return Process(name, [sys.executable, *arguments], environ, self.project, log, ready)

    async def _server_ready(self) -> None:
        keeper = self.server.pid
        await eventually(lambda: self.nats in children(keeper))

    async def _worker_ready(self, worker: Process) -> None:
        await eventually(lambda: "worker ready" in worker.said(), 20)

    async def _sample(self) -> None:
        while True:
            for process in (*self.servers, *self.workers):
                if process.running:
                    pid = process.pid
                    with suppress(OSError, ValueError, IndexError):
                        if self.scenario.nodes == 1 and process is self.server:
                            pid = self.nats
                        self.peak[process.name] = max(self.peak.get(process.name, 0), rss(pid))
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        ledger = Ledger(self.folder / "producers")
        stop = asyncio.Event()
        seed = self.random.getrandbits(32)
        async with asyncio.TaskGroup() as producers:
            for number in range(PRODUCERS):
                producers.create_task(self._produce(number, ledger, stop, random.Random(seed + number)))
            yield
            stop.set()
        ledger.close()

    async def _produce(self, producer: int, ledger: Ledger, stop: asyncio.Event, rng: random.Random) -> None:
        """One event after the other, so that the order of a key is known; each until the bus has it. Behind its pace it hurries."""
        loop = asyncio.get_running_loop()
        began, n = loop.time(), 0
        async with connect(self.url, source="/load", patience=60) as bus:
            while not stop.is_set():
                id, key = f"p{producer}-{n}", f"k{producer + PRODUCERS * (n % (KEYS // PRODUCERS))}"
                data = rng.randbytes(rng.choice(self.scenario.sizes))
                delay = self.scenario.delay(n) or None
                ledger.write("attempt", id, "-" if delay else key, digest(data))
                while True:
                    try:
                        await bus.publish("load", data, id=id, key=None if delay else key, delay=delay, datacontenttype=BINARY)
                        break
                    except FaasError as error:
                        self.refused[type(error).__name__] += 1
                        if stop.is_set():
                            return  # attempted and never acknowledged
                        await asyncio.sleep(0.1)
                ledger.write("ack", id, "-")
                n += 1
                self.published += 1
                due = began + n * PRODUCERS / self.scenario.rate
                await asyncio.sleep(max(0.0, due - loop.time()))

    # --- afterwards

    async def quiet(self) -> None:
        """Until nothing waits, runs or is scheduled, for a second."""
        began, since = time.monotonic(), 0.0
        lag: list[Lag] = []
        async with NatsBus(self.url, connect_timeout=30).open() as bus:
            while time.monotonic() - began < QUIET:
                try:
                    lag = [await bus.lag(queue) for queue in self._queues()]
                except FaasError:
                    since = 0.0
                else:
                    if any(one.waiting or one.in_progress or one.scheduled for one in lag):
                        since = 0.0
                    elif not since:
                        since = time.monotonic()
                    elif time.monotonic() - since > 1.0:
                        return
                await asyncio.sleep(0.1)
            self.problems.append(("liveness", f"not quiet {QUIET:g} s after the last fault was healed: {lag}"))

    def _queues(self) -> list[Queue]:
        return [Queue(f"{PROJECT}--{name}", ("load",), 16 if name in self.scenario.ordered else 0) for name in self.scenario.functions]

    def look_for_secrets(self) -> None:
        """The bus's password and a variable of the worker's, in whatever people or functions may see. Reads logs and /proc."""
        password = re.findall("faas:([0-9a-f]+)@", self.url)
        secrets = {"the bus's password": password[0].encode(), "CANARY": self.canary.encode()}
        places: dict[str, Callable[[], bytes]] = {file.name: file.read_bytes for file in self.folder.glob("*.log")}
        for worker in self.workers:
            for zygote in children(worker.pid) if worker.running else []:
                places[f"the environment of {worker.name}'s zygote"] = Path(f"/proc/{zygote}/environ").read_bytes
                for pid in (worker.pid, zygote, *children(zygote)):
                    places[f"the command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes
                for executor in children(zygote):
                    places[f"the environment of executor {executor}"] = Path(f"/proc/{executor}/environ").read_bytes
        for where, read_bytes in places.items():
            with suppress(OSError):  # ended meanwhile
                content = read_bytes()
                self.problems += [("secrets", f"{what} is in {where}") for what, secret in secrets.items() if secret in content]

    async def drain(self) -> None:
        """SIGTERM to every worker: each must end with 0, in time, and leave no process."""
        for worker in self.workers:
            worker.wanted.clear()
            if worker.running:
                family = self.family(worker)
                began = time.monotonic()
                status = await worker.end(signal.SIGTERM)
                if status or time.monotonic() - began > self.scenario.grace + 5:
                    self.problems.append(("drain", f"{worker.name} ended with {status} after {time.monotonic() - began:.1f} s"))
                if await outlive(family, 5.0):
                    self.problems.append(("drain", f"{worker.name} left processes behind"))
            if self.peak.get(worker.name, 0) > WORKER_BYTES:
                self.problems.append(("memory", f"{worker.name} had {self.peak[worker.name] >> 20} MB; {WORKER_BYTES >> 20} are allowed"))
        for process in (*self.servers, *self.workers):
            for status, expected in process.exits:
                if not expected and status not in self.scenario.exits:
                    self.problems.append(("exits", f"{process.name} ended by itself with {status}; see {process.log.name}"))


async def outlive(pids: list[int], seconds: float) -> list[int]:
    """Those that are still there then."""
    with suppress(AssertionError):
        await eventually(lambda: all(state(pid) in ("", "Z") for pid in pids), seconds)
    return [pid for pid in pids if state(pid) not in ("", "Z")]


async def play(scenario: Scenario, seed: int, folder: Path, *, short: bool) -> checker.Verdict:
    network.up()
    run = Run(scenario, seed, folder, short=short)
    stored: list[Stored] = []
    dead: list[Dead] = []
    try:
        async with run.until_over, run.system():
            async with run.load():
                await run.pause(1, 2)
                await scenario.harm(run)
                run.look_for_secrets()
                await run.pause(1, 2)
            await run.quiet()
            stored, dead = await dump(run.url.split(","), PROJECT, len(run.damaged))
            await run.drain()
    except Exception as error:  # red; and what the ledgers say of it is looked at all the same: a server may not come back at all
        traceback.print_exc()
        run.problems.append(("run", f"it broke off, see run.log: {first(error)!r}"))
    ledgers = read(folder)._replace(stored=stored if scenario.keep >= 86400 else [], dead=dead)
    expected = checker.Expected(
        functions=frozenset(scenario.functions),
        ordered=frozenset(scenario.ordered),
        hears=scenario.hears,
        dies=frozenset(id for id in (attempt.id for attempt in ledgers.attempts) if scenario.dies(place(id)[1]) or scenario.doomed(id)),
        dying=frozenset(scenario.dying),
        frozen=run.frozen,
        recovers=scenario.recovers,
        damaged=frozenset(run.damaged),
        duplicates=run.duplicates,
        acknowledged=scenario.acknowledged,
        redelivery=scenario.redelivery,
        gap=scenario.gap,
    )
    verdict = checker.check(ledgers, expected)
    verdict.problems += [*run.problems, *scenario.after(ledgers)]
    (folder / "verdict.json").write_text(json.dumps(dataclasses.asdict(verdict) | {"peak": run.peak, "notes": run.notes}))
    return verdict


def main() -> None:
    """Exit status: 0 green, 1 red; what went wrong with the run itself is a traceback, and red too."""
    name, seed, folder, how = sys.argv[1:]
    logging.getLogger("broker_faas").setLevel(logging.ERROR)  # producers lose their connections all the time
    from .scenarios import find

    verdict = asyncio.run(play(find(name), int(seed), Path(folder), short=how == "short"))
    for check, what in verdict.problems:
        print(f"{check}: {what}")
    sys.exit(not verdict.ok)


if __name__ == "__main__":
    main()
