"""The system under test and its load: started, kept running, published to."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from broker_faas.client import connect
from broker_faas.errors import FaasError

from ..helpers import eventually
from . import brokers
from .brokers import KEYS, PRODUCERS
from .ledger import Ledger, digest
from .process import Process, children, rss
from .run import PORT, PROJECT, Run

BINARY = "application/octet-stream"


@asynccontextmanager
async def system(run: Run) -> AsyncIterator[None]:
    scenario = run.scenario
    (run.cluster if scenario.nodes > 1 else run.disk).make()
    run.project.mkdir()
    for name, source in {"app": scenario.app, **scenario.modules}.items():
        (run.project / f"{name}.py").write_text(source)
    (run.project / "faas.toml").write_text(
        f'project = "{PROJECT}"\nmodules = {json.dumps(["app", *scenario.modules])}\nkeep = {scenario.keep}\n'
        f"[bus]\nmax_bytes = {scenario.max_bytes // 2}\ndead_bytes = {scenario.max_bytes // 8}\nreplicas = {scenario.nodes}\n"
        f"insecure = {str(scenario.nodes > 1).lower()}\n"
        f'[worker]\nexecutors = 2\ngrace = {scenario.grace}\npass_env = ["LEDGER"]\n{scenario.toml}\n{scenario.connector}\n'
    )
    async with asyncio.TaskGroup() as tasks:
        if scenario.nodes == 1:
            run.server = _process(
                run,
                "nats-server",
                [
                    "-m",
                    "tests.faults.server",
                    f"{run.disk.place / 'nats'}",
                    f"{PORT}",
                    f"{scenario.max_bytes}",
                    *(["kept"] if scenario.kept else []),
                ],
                lambda: _server_ready(run),
            )
        keepers = [tasks.create_task(server.keep()) for server in run.servers]
        if scenario.broker:
            run.broker = brokers.broker(scenario.broker, run.disk.place / "broker", run.folder / "broker.log")
            await run.broker.make()
            keepers.append(tasks.create_task(run.broker.process.keep()))
            async with asyncio.timeout(180):
                await run.broker.process.up.wait()
                await run.broker.settle()
        for server in run.servers:
            await server.up.wait()
        for n in range(scenario.workers):
            worker = _worker(run, f"worker {n}", "worker", "worker ready")
            run.workers.append(worker)
            keepers.append(tasks.create_task(worker.keep()))
        if scenario.connector or scenario.sinks:
            run.source.touch()
            for n in range(scenario.connectors):
                connector = _worker(run, f"connector {n}" if n else "connector", "connect", "connectors run")
                run.connectors.append(connector)
                keepers.append(tasks.create_task(connector.keep()))
        async with asyncio.timeout(120):
            for worker in (*run.workers, *run.connectors):
                await worker.up.wait()
        sampling = tasks.create_task(_sample(run))
        yield
        sampling.cancel()
        for keeper in keepers:
            keeper.cancel()


def _worker(run: Run, name: str, command: str, ready: str) -> Process:
    """A command of `faas` that runs on; ready: what it then has in its log."""
    env = {"NATS_URL": run.url, "CANARY": run.canary, "SOURCE": str(run.source), **(run.broker.environ if run.broker else {})}

    async def is_ready() -> None:
        await eventually(lambda: ready in process.said(), 20)

    process = _process(run, name, ["-m", "broker_faas.cli.main", command], is_ready, env)
    return process


def _process(run: Run, name: str, arguments: list[str], ready: Callable[[], Any], env: dict[str, str] | None = None) -> Process:
    log = run.folder / f"{name.replace(' ', '-')}.log"
    environ = os.environ | {"LEDGER": str(run.folder / "functions")} | run.environ | (env or {})
    return Process(name, [sys.executable, *arguments], environ, run.project, log, ready)


async def _server_ready(run: Run) -> None:
    keeper = run.server.pid
    await eventually(lambda: run.nats in children(keeper))


async def _sample(run: Run) -> None:
    while True:
        for process in (*run.servers, *run.workers, *run.connectors):
            if process.running:
                pid = process.pid
                with suppress(OSError, ValueError, IndexError):
                    if run.scenario.nodes == 1 and process is run.server:
                        pid = run.nats
                    run.peak[process.name] = max(run.peak.get(process.name, 0), rss(pid))
        await asyncio.sleep(0.5)


@asynccontextmanager
async def load(run: Run) -> AsyncIterator[None]:
    ledger = Ledger(run.folder / "producers")
    stop = asyncio.Event()
    seed = run.random.getrandbits(32)
    async with asyncio.TaskGroup() as producers:
        for number in range(PRODUCERS):
            producers.create_task(_produce(run, number, ledger, stop, random.Random(seed + number)))
        yield
        stop.set()
    ledger.close()


async def _produce(run: Run, producer: int, ledger: Ledger, stop: asyncio.Event, rng: random.Random) -> None:
    """One event after the other, so that the order of a key is known; each until the bus has it. Behind its pace it hurries."""
    loop = asyncio.get_running_loop()
    began, n = loop.time(), 0
    if run.broker:
        return await brokers.write(run, producer, ledger, stop, rng)
    if run.scenario.connector:
        return await _write(run, producer, ledger, stop, rng)
    async with connect(run.url, source="/load", patience=60) as bus:
        while not stop.is_set():
            id, key = f"p{producer}-{n}", f"k{producer + PRODUCERS * (n % (KEYS // PRODUCERS))}"
            data = rng.randbytes(rng.choice(run.scenario.sizes))
            delay = run.scenario.delay(n) or None
            ledger.write("attempt", id, "-" if delay else key, digest(data))
            while True:
                try:
                    await bus.publish("load", data, id=id, key=None if delay else key, delay=delay, datacontenttype=BINARY)
                    break
                except FaasError as error:
                    run.refused[type(error).__name__] += 1
                    if stop.is_set():
                        return  # attempted and never acknowledged
                    await asyncio.sleep(0.1)
            ledger.write("ack", id, "-")
            n += 1
            run.published += 1
            due = began + n * PRODUCERS / run.scenario.rate
            await asyncio.sleep(max(0.0, due - loop.time()))


async def _write(run: Run, producer: int, ledger: Ledger, stop: asyncio.Event, rng: random.Random) -> None:
    """To the file that a connector reads: a line an event. It is safe there, as in a broker that acknowledged it."""
    source = os.open(run.source, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    n = 0
    while not stop.is_set():
        id, key = f"p{producer}-{n}", f"k{producer + PRODUCERS * (n % (KEYS // PRODUCERS))}"
        data = rng.randbytes(rng.choice(run.scenario.sizes))
        ledger.write("attempt", id, key, digest(data))
        os.write(source, json.dumps([id, key, data.hex()]).encode() + b"\n")
        ledger.write("ack", id, "-")
        n += 1
        run.published += 1
        await asyncio.sleep(PRODUCERS / run.scenario.rate)
    os.close(source)
