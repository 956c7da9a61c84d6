"""A project with a zygote, and executors whose reports are remembered: for tests of everything between worker and user code."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec

from broker_faas.decide import OK
from broker_faas.event import CloudEvent
from broker_faas.function import Spec
from broker_faas.workers.executor import Call, Executor, Exit, Group, Line
from broker_faas.workers.frames import Outcome
from broker_faas.workers.zygote_handle import Zygote

from .helpers import eventually

REPO = Path(__file__).parent.parent
_ids = count(1)


class Running:
    """An executor and everything it reported."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.executor: Executor
        self.answers: dict[int, Outcome] = {}
        self.exits: list[Exit] = []
        self.bursts = 0  # frames with outcomes

    def outcomes(self, executor: Executor, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        assert not self.exits, "nothing comes after an exit"
        self.bursts += 1
        for call, outcome in [*((call, Outcome(call.id, OK, "", "", None, [])) for calls in done for call in calls), *others]:
            assert call.id not in self.answers, "a call is answered once"
            self.answers[call.id] = outcome

    def exited(self, executor: Executor, exit: Exit) -> None:
        self.exits.append(exit)

    def send(self, *, n: int = 1, function: int = 0, data: Any = None, attempt: int = 1) -> list[int]:
        """n calls in one frame; their ids."""
        event = CloudEvent(type="test", source="/test", id="1", data=data)
        calls = [Call(next(_ids), function, "test.topic", attempt, event.headers(), event.data or b"") for _ in range(n)]
        self.executor.run(calls)
        return [call.id for call in calls]

    async def call(self, **options: Any) -> Outcome:
        (id,) = self.send(**options)
        await eventually(lambda: id in self.answers or self.exits)
        assert id in self.answers, f"no outcome; exits: {self.exits}"
        return self.answers[id]

    async def returned(self, **options: Any) -> Any:
        """What the handler returned; it has `sends`."""
        outcome = await self.call(**options)
        assert outcome.status == 0, outcome
        (_, attributes, data), *_ = outcome.outputs
        return CloudEvent(data=data, **{name: value for name, value in attributes.items() if name != "specversion"}).json()

    async def exit(self, timeout: float = 10.0) -> Exit:
        await eventually(lambda: self.exits, timeout)
        return self.exits[0]

    def printed(self, stream: str = "") -> str:
        return "\n".join(line.text for line in self.lines if stream in ("", line.stream))

    @property
    def lines(self) -> list[Line]:
        return [line for executor, line in self.project.lines if executor is self.executor]


class Project:
    def __init__(self, zygote: Zygote, lines: list[tuple[Executor, Line]] | None = None) -> None:
        self.zygote = zygote
        self.lines = [] if lines is None else lines

    async def start(self, *names: str, env: Mapping[str, str] | None = None, command: tuple[str, ...] = (), **changes: Any) -> Running:
        """An executor for these functions. changes: of their specs, e.g. timeout=0.2."""
        specs = [replaced(next(spec for spec in self.zygote.specs if spec.name == name), changes) for name in names]
        running = Running(self)
        group = Group(name="+".join(names), functions=specs, env=dict(env or {}), sync=specs[0].sync, command=command)
        running.executor = await self.zygote.fork(group, running)
        return running


def replaced(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    return msgspec.structs.replace(spec, **changes)


@asynccontextmanager
async def project(
    folder: Path, import_timeout: float = 30.0, environ: Mapping[str, str] | None = None, **modules: str
) -> AsyncIterator[Project]:
    """modules: name → source, imported in this order."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(dedent(source))
    heard: list[tuple[Executor, Line]] = []

    def remember(executor: Executor, lines: list[Line]) -> None:
        heard.extend((executor, line) for line in lines)

    everything = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPO), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep),
        **(environ or {}),
    }
    async with Zygote.open([*modules], folder, everything, import_timeout, project="test", output=remember) as zygote:
        yield Project(zygote, heard)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
