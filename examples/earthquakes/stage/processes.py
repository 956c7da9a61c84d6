"""What a supervisor such as systemd does: the server and the worker run, and whichever of them ends is started again."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from broker_faas.embedded import EmbeddedNats
from broker_faas.service import first

from .console import notice

_libc = ctypes.CDLL(None)


@dataclass
class Supervisor:
    """project: the folder with faas.toml. ended: what ended without being asked to."""

    project: Path
    ended: list[str] = field(default_factory=list)
    _url: str = ""

    @asynccontextmanager
    async def server(self) -> AsyncIterator[str]:
        """NATS with JetStream; its url, the same after it was started again."""
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def keep() -> None:
            port = 0
            while True:
                async with EmbeddedNats(self.project / ".faas", port=port).open() as nats:
                    port = nats.port
                    if not started.done():
                        started.set_result(nats.url)
                    status = await nats.exited()
                self._again("nats-server", status)

        async with _beside(keep()):
            self._url = await started
            yield self._url

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        """`faas worker`. Leaving drains it."""

        async def keep() -> None:
            early = 0
            with (self.project / "worker.log").open("ab") as log:
                while early < 3:
                    began = monotonic()
                    # A session of its own: Ctrl-C is for the demo, which then stops the worker.
                    async with self._started("worker", stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True) as process:
                        status = await process.wait()
                    self._again("worker", status)
                    early = early + 1 if monotonic() - began < 2 else 0
                    await asyncio.sleep(0.2)
            last = (self.project / "worker.log").read_text().splitlines()[-1:]
            raise RuntimeError("\n".join(["the worker ends as soon as it is started; it says:", *last]))

        async with _beside(keep()):
            yield

    async def faas(self, *arguments: str) -> str:
        """What `faas …` prints. Raises RuntimeError with its complaint."""
        async with self._started(*arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
            output, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"faas {' '.join(arguments)}: {errors.decode().strip()}")
        return output.decode()

    async def idle(self) -> bool:
        """Whether the bus has nothing that a function still has to do. False while it cannot be asked."""
        try:
            queues = json.loads(await self.faas("lag", "-o", "json"))
        except RuntimeError:
            return False
        return not any(queue["total"] for queue in queues)

    @asynccontextmanager
    async def _started(self, *arguments: str, **options: Any) -> AsyncIterator[Process]:
        """A `faas` of this environment. Leaving ends it: SIGTERM, and SIGKILL after 10 s."""
        faas = (sys.executable, "-m", "broker_faas.cli.main", *arguments)
        environment = {**os.environ, "NATS_URL": self._url}
        process = await asyncio.create_subprocess_exec(*faas, cwd=self.project, env=environment, preexec_fn=_die_with_us, **options)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    def _again(self, what: str, status: int) -> None:
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        self.ended.append(f"{what} ({how})")
        notice(f"{what} ended ({how}) and is started again; the events it had come back when their lease ends, within 30 s")


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` while the context is open; what goes wrong in either comes out as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            yield
            task.cancel()
    except BaseExceptionGroup as failures:
        raise first(failures) from None


def _die_with_us() -> None:
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a demo that is killed leaves anything behind
