"""A nats-server that speaks TLS, for tests."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import procs
from broker_faas.embedded import wheel_binary
from tests.certificates import PASSWORD, Certificates
from tests.helpers import eventually
from tests.kafka_server import free_ports


@asynccontextmanager
async def nats_tls(folder: Path, certificates: Certificates, *, optional: bool = False) -> AsyncIterator[int]:
    """Its port. With JetStream, and the user `shop`. optional: clients may do without TLS."""
    folder.mkdir()
    [port] = free_ports(1)
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(folder / "js")},
        "accounts": {"A": {"jetstream": True, "users": [{"user": "shop", "password": PASSWORD}]}},
        "tls": {"cert_file": certificates.server, "key_file": certificates.server_key},
        "allow_non_tls": optional,
        "pid_file": str(folder / "ready"),
    }
    (folder / "nats.conf").write_text(json.dumps(settings))
    async with procs.running([str(wheel_binary()), "-c", str(folder / "nats.conf")], os.environ, folder / "log"):
        await eventually(lambda: "Server is ready" in (folder / "log").read_text(), 30)
        yield port
