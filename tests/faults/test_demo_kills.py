"""kill -9 of everything that runs during the demo: no event is lost, and its totals are right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ..demo import Demo

WORKER, ZYGOTE, SERVER = "broker_faas.cli.main worker", "broker_faas.workers.zygote", "nats-server"


def zygote(demo: Demo) -> int:
    """The one whose parent is a worker; its children have its command line."""
    workers = demo.processes(WORKER)
    return next(pid for pid, parent in demo.processes(ZYGOTE).items() if parent in workers)


def executor(demo: Demo) -> int:
    parent = zygote(demo)
    return next(pid for pid, of in demo.processes(ZYGOTE).items() if of == parent)


def worker(demo: Demo) -> int:
    return next(iter(demo.processes(WORKER)))


def server(demo: Demo) -> int:
    return next(iter(demo.processes(f"{SERVER} -c")))


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("nats_binary")
def test_killing_worker_executor_zygote_and_server_during_the_demo_loses_nothing(tmp_path: Path) -> None:
    """The worker is last: what it held comes back when its lease is over, here after 8 s instead of 30."""
    demo = Demo(tmp_path)
    victims: list[tuple[str, Callable[[Demo], int]]] = [
        ("drain", executor),
        ("drain", zygote),
        ("live", executor),
        ("live", server),
        ("live", worker),
    ]
    printed = []
    with demo.start(("broker_faas.workers.host", "ack_wait: float = 30.0", "ack_wait: float = 8.0")) as process:
        assert process.stdout
        for line in process.stdout:
            printed.append(line)
            if victims and line.split()[:1] == [victims[0][0]] and " of " in line:
                os.kill(victims.pop(0)[1](demo), signal.SIGKILL)

    assert (0, [], {}) == (process.returncode, victims, demo.processes()), "".join(printed)
    assert "nats-server (SIGKILL), worker (SIGKILL)" in "".join(printed)
