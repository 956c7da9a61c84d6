"""`faas worker` as a process: killed, stopped, starved, cut off from its bus. Nothing is lost, nothing grows without bound."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats

from broker_faas.buses.nats import NatsBus
from broker_faas.layout import event_record
from tests.helpers import eventually
from tests.project import Project, event


class Process:
    """A `faas worker` of a project, its log in a file."""

    def __init__(self, project: Project, url: str) -> None:
        self.log = project.folder / f"worker-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            command = [sys.executable, "-m", "broker_faas.cli.main", "worker"]
            self.popen = subprocess.Popen(command, cwd=project.folder, env=os.environ | {"NATS_URL": url}, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self.popen.pid

    async def ready(self) -> None:
        try:
            await eventually(lambda: "worker ready" in self.log.read_text(), timeout=20)
        except AssertionError:
            raise AssertionError(f"the worker is not ready; its log: {self.log.read_text()[-2000:]}") from None

    async def ended(self, timeout: float = 20) -> int:
        await eventually(lambda: self.popen.poll() is not None, timeout=timeout)
        assert self.popen.returncode is not None
        return self.popen.returncode

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)


@asynccontextmanager
async def workers(project: Project, url: str, n: int = 1) -> AsyncIterator[list[Process]]:
    started = [Process(project, url) for _ in range(n)]
    try:
        for process in started:
            await process.ready()
        yield started
    finally:
        for process in started:
            process.popen.kill()
            process.popen.wait()


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    todo = [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            todo += (new := [int(child) for child in task.read_text().split()])
            found += new
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LEDGER = """
    @function(on="a", concurrency=8, retry=RetryPolicy(min_backoff=0.05))
    async def f(event, ctx):
        await asyncio.sleep(0.002)
        note("ran", event.json())
"""


async def publish(url: str, *data: Any, topic: str = "a", first: int = 0) -> None:
    async with NatsBus(url).open() as bus:
        await bus.publish([event_record(topic, event(topic, n, item)) for n, item in enumerate(data, first)])


async def test_a_killed_worker_loses_nothing_and_leaves_no_process_behind(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, LEDGER)
    async with workers(project, bus_url) as (first,):
        await publish(bus_url, *range(600))
        await eventually(lambda: len(project.lines("ran")) > 100)
        family = children(first.pid)
        first.signal(signal.SIGKILL)
        await first.ended()
        await eventually(lambda: not any(alive(pid) for pid in family), timeout=5)
    async with workers(project, bus_url):
        await eventually(lambda: {str(n) for n in range(600)} == set(project.lines("ran")), timeout=50)

    assert len(family) >= 2  # a zygote and an executor


async def test_a_killed_zygote_costs_no_event_an_attempt(bus_url: str, tmp_path: Path) -> None:
    code = LEDGER.replace('note("ran", event.json())', 'note("ran", event.json()); note("attempts", ctx.attempt)')
    project = Project(tmp_path, code)
    async with workers(project, bus_url) as (worker,):
        await publish(bus_url, *range(600))
        await eventually(lambda: len(project.lines("ran")) > 100)
        os.kill(zygote_of(worker.pid), signal.SIGKILL)
        await eventually(lambda: {str(n) for n in range(600)} == set(project.lines("ran")), timeout=30)

    assert {"1"} == set(project.lines("attempts"))


async def test_a_worker_whose_zygote_dies_ends_if_the_code_has_changed_for_it_can_never_run_it(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, LEDGER)
    async with workers(project, bus_url) as (worker,):
        app = tmp_path / "app.py"
        app.write_text(app.read_text() + "# changed")
        os.kill(zygote_of(worker.pid), signal.SIGKILL)

        assert 70 == await worker.ended()


def zygote_of(worker: int) -> int:
    (zygote,) = [pid for pid in children(worker) if "zygote" in Path(f"/proc/{pid}/cmdline").read_text() and parent(pid) == worker]
    return zygote


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_worker_survives_the_death_of_its_bus_without_a_restart(own_nats: Any, tmp_path: Path) -> None:
    server = await own_nats()
    project = Project(tmp_path, LEDGER)
    async with workers(project, server.url) as (worker,):
        await publish(server.url, *range(600))
        await eventually(lambda: len(project.lines("ran")) > 100)
        await server.kill()
        await server.start()
        await publish(server.url, *range(600, 650), first=600)
        await eventually(lambda: {str(n) for n in range(650)} == set(project.lines("ran")), timeout=50)

        assert worker.popen.poll() is None


async def test_a_worker_that_starts_before_its_bus_waits_for_it(own_nats: Any, tmp_path: Path) -> None:
    server = await own_nats()
    url = server.url
    await server.kill()
    worker = Process(Project(tmp_path, LEDGER), url)
    try:
        await eventually(lambda: "the bus cannot be had yet" in worker.log.read_text())
        await server.start()
        await worker.ready()
        worker.signal(signal.SIGTERM)

        assert await worker.ended() == 0
    finally:
        worker.popen.kill()
        worker.popen.wait()


async def test_sigterm_drains_and_ends_with_zero(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a", concurrency=4)
        async def f(event):
            note("start", event.id)
            await asyncio.sleep(0.5)
            note("end", event.id)
    """,
    )
    async with workers(project, bus_url) as (worker,):
        await publish(bus_url, *range(20))
        await eventually(lambda: len(project.lines("start")) >= 4)
        worker.signal(signal.SIGTERM)
        code = await worker.ended()

    assert 0 == code
    assert sorted(project.lines("start")) == sorted(project.lines("end"))
    assert len(project.lines("start")) < 20


async def test_after_sigterm_no_event_is_asked_for(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a")
        async def f(event):
            note("start", event.id)
            await asyncio.sleep(0.5)
    """,
    )
    asked: list[float] = []

    async def seen(message: object) -> None:
        asked.append(time.monotonic())

    async with workers(project, bus_url) as (worker,):
        client = await nats.connect(bus_url)
        await client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", cb=seen)
        await publish(bus_url, 1)
        await eventually(lambda: project.lines("start") and asked)
        worker.signal(signal.SIGTERM)
        signalled = time.monotonic()
        await worker.ended()
        await client.close()

    assert [at for at in asked if at > signalled + 0.1] == []


async def test_a_second_signal_ends_at_once_and_the_event_runs_again(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a")
        async def f(event):
            note("start", event.id)
            if len((HERE / "start").read_text()) < 3: await asyncio.sleep(3600)
            note("end", event.id)
    """,
    )
    async with workers(project, bus_url) as (worker,):
        await publish(bus_url, {})
        await eventually(lambda: project.lines("start"))
        worker.signal(signal.SIGTERM)
        await eventually(lambda: '"drain"' in worker.log.read_text() or "drain" in worker.log.read_text())
        worker.signal(signal.SIGTERM)
        code = await worker.ended(5)
    async with workers(project, bus_url):
        await eventually(lambda: project.lines("end") == ["0"], timeout=20)

    assert 1 == code


async def test_memory_stays_bounded_under_a_backlog_of_large_events_and_a_stalled_function(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path, '@function(on="a", concurrency=500, timeout=600)\nasync def f(event):\n    note("ran", 1)\n    await asyncio.sleep(600)'
    )
    async with workers(project, bus_url) as (worker,):
        async with NatsBus(bus_url, max_bytes=1 << 30).open() as bus:
            for n in range(0, 200, 20):
                await bus.publish([event_record("a", event("a", i, "x" * 1_040_000)) for i in range(n, n + 20)])
        await eventually(lambda: len(project.lines("ran")) >= 8)
        seen = 0
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:  # it would go on growing
            await asyncio.sleep(0.25)
            seen = max(seen, rss(worker.pid))

    assert seen < 200 << 20
    assert len(project.lines("ran")) < 60


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_two_workers_share_a_queue_and_no_event_runs_twice(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, LEDGER)
    async with workers(project, bus_url, 2):
        await publish(bus_url, *range(1000))
        await eventually(lambda: len(project.lines("ran")) >= 1000, timeout=30)

    assert sorted(map(str, range(1000))) == sorted(project.lines("ran"))
