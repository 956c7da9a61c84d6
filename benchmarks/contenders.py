"""Who is measured, and how each is told to publish and to work. The scripts are as their projects' documentation advises."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from . import servers
from .marks import PATH
from .servers import Server

HERE = Path(__file__).parent
OURS = Path(sys.executable).parent
PEERS = servers.PEERS / "bin"


@dataclass(frozen=True)
class Contender:
    """server: opens a fresh one in a folder. publish, work: argv. events: of one drain, so that it takes a few seconds.

    cwd: the folder that the worker runs in, filled by `files`.
    """

    name: str
    server: Callable[[Path], AbstractAsyncContextManager[Server]]
    publish: tuple[str, ...]
    work: tuple[str, ...]
    events: int
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def environment(self, url: str, marks: Path) -> dict[str, str]:
        return {**environment(url), PATH: str(marks), **self.environ}


def environment(url: str) -> dict[str, str]:
    """Of every contender's processes."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TZ")}
    return {**kept, "BENCH_URL": url, "NATS_URL": url, "PYTHONPATH": f"{HERE.parent}:{HERE / 'peers'}"}


def ours(module: str = "noop", events: int = 100_000, *, name: str = "ours", server: str = "nats", **environ: str) -> Contender:
    """`faas worker`, as shipped, on a project with one module of benchmarks/ours."""
    passed = [PATH, "BENCH_MS", "BENCH_FUNCTIONS"]
    project = f'project = "bench"\nmodules = ["{module}"]\n\n[worker]\npass_env = {passed!r}\n'
    return Contender(
        name,
        getattr(servers, server),
        (str(OURS / "python"), str(HERE / "ours/publish.py")),
        (str(OURS / "faas"), "worker"),
        events,
        environ,
        {"faas.toml": project, f"{module}.py": (HERE / f"ours/{module}.py").read_text()},
    )


def loop(*how: str, events: int = 100_000, name: str = "hand-written loop", server: str = "nats", **environ: str) -> Contender:
    script = (str(OURS / "python"), str(HERE / "loop.py"))
    return Contender(name, getattr(servers, server), script, (*script, *(how or ("work",))), events, environ)


def _peer(name: str, server: str, script: str, work: str, events: int) -> Contender:
    """work: a command of the peers' environment."""
    command, *arguments = work.split()
    publish = (str(PEERS / "python"), str(HERE / "peers/publish.py"), script)
    return Contender(name, getattr(servers, server), publish, (str(PEERS / command), *arguments), events)


CELERY = "celery -A celery_app worker -c 2 --without-gossip --without-mingle --without-heartbeat -l warning"
PEERS_OF = {  # PEERS=… names these
    "celery": (
        _peer("Celery+Redis", "redis", "celery_app", CELERY, 3_000),
        _peer("Celery+RabbitMQ", "rabbitmq", "celery_app", CELERY, 6_000),
    ),
    "dramatiq": (_peer("Dramatiq+RabbitMQ", "rabbitmq", "dramatiq_app", "dramatiq dramatiq_app -p 2 -t 8", 20_000),),
    "taskiq": (
        _peer(
            "Taskiq+NATS",
            "nats",
            "taskiq_app",
            "taskiq worker taskiq_app:broker -w 2 --ack-type when_executed --max-async-tasks 200 --max-prefetch 200 --log-level WARNING",
            20_000,
        ),
    ),
    "faststream": (_peer("FastStream+NATS", "nats", "faststream_app", "faststream run faststream_app:app --workers 2", 20_000),),
    "arq": (_peer("arq", "redis", "arq_app", "arq arq_app.Settings", 3_000),),
}
