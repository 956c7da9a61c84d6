"""Memory of `faas connect` whose bus stands still while its source has no end of messages of 900 kB.

python -m benchmarks.connector_memory
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from broker_faas.embedded import EmbeddedNats
from tests import kafka_server

from . import procs

SIZE, COUNT, PARTITIONS = 900_000, 600, 4
TOPIC = "large"
SETTLED = 8.0  # seconds in which it reads as far as it ever will


async def of_kafka(broker: kafka_server.OwnKafka, folder: Path) -> float:
    """Bytes: the most that it had."""
    await _fill(broker.servers)
    folder.mkdir(parents=True)
    toml = f'[[connector]]\nname = "c"\ntype = "kafka"\nservers = "{broker.servers}"\ngroup = "{folder.name}"\ntopics = ["{TOPIC}"]\n'
    (folder / "faas.toml").write_text(f'project = "bench"\nmodules = ["functions"]\n{toml}')
    async with EmbeddedNats(folder / ".faas").open() as bus:
        argv = [sys.executable, "-m", "broker_faas.cli.main", "connect"]
        async with procs.running(argv, os.environ | {"NATS_URL": bus.url}, folder / "log", cwd=folder) as process:
            async with asyncio.timeout(30):
                while "connectors run" not in (folder / "log").read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            os.kill(bus.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(SETTLED)
                return _most(process.pid)
            finally:
                os.kill(bus.pid, signal.SIGCONT)


def _most(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


async def _fill(servers: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        if TOPIC in await admin.list_topics():
            return
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=servers, max_request_size=1 << 20) as producer:
        for start in range(0, COUNT, 20):
            sent = [await producer.send(TOPIC, os.urandom(SIZE), partition=n % PARTITIONS) for n in range(start, start + 20)]
            await asyncio.gather(*sent)


async def main() -> None:
    with TemporaryDirectory() as name:
        async with kafka_server.running(Path(name) / "kafka") as broker:
            print(f"{await of_kafka(broker, Path(name) / 'project') / 1e6:.0f} MB")


if __name__ == "__main__":
    asyncio.run(main())
