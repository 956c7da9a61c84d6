"""One round of one contender: fresh server, events published, worker started, waited for, ended; and what that took."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from . import marks as marks_module
from . import procs
from .bench import Sample
from .contenders import Contender
from .marks import Marks
from .servers import Server

STALLED = 15.0  # seconds without progress after which a round is over


@dataclass
class Stage:
    """A contender's server, its folder and its marks."""

    contender: Contender
    folder: Path
    server: Server
    marks: Marks
    log: Path

    @property
    def environ(self) -> dict[str, str]:
        return self.contender.environment(self.server.url, self.folder / "marks")

    async def publish(self, how: str = "publish", *arguments: str, numbers: tuple[int, int] | None = None) -> None:
        """numbers: the first event and the one after the last; all of them if not given."""
        if not self.contender.publish:
            return
        some = {"BENCH_NUMBERS": "{}-{}".format(*numbers)} if numbers else {}
        await procs.finished([*self.contender.publish, how, *arguments], self.environ | some, self.log)

    async def publish_together(self, publishers: int) -> None:
        """All events, by several processes."""
        share = -(-self.marks.total // publishers)
        async with asyncio.TaskGroup() as tasks:
            for start in range(0, self.marks.total, share):
                tasks.create_task(self.publish(numbers=(start, min(start + share, self.marks.total))))

    @property
    def problem(self) -> str:
        repeated = self.marks.repeated()
        return f"{repeated:,} events ran twice" if repeated else ""

    @asynccontextmanager
    async def working(self) -> AsyncIterator[int]:
        """The worker's pid, once it is started; ready or not."""
        async with procs.running(self.contender.work, self.environ, self.log, cwd=self.folder) as process:
            yield process.pid

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[int]:
        """working(), and event 0 has run."""
        await self.publish(numbers=(0, 1))
        async with self.working() as pid:
            await self.until_done(1)
            yield pid

    async def until_said(self, word: str) -> None:
        """Until the worker, or whoever else writes to this log, has said it."""
        async with asyncio.timeout(STALLED):
            while True:
                if word in self.log.read_text(errors="replace"):
                    return
                await asyncio.sleep(0.01)

    async def until_done(self, wanted: int | None = None) -> None:
        """Until every event ran. Raises Failed if nothing moves for STALLED seconds."""
        wanted = self.marks.total if wanted is None else wanted
        seen, moved = 0, monotonic()
        while (done := self.marks.done()) < wanted:
            if done > seen:
                seen, moved = done, monotonic()
            elif monotonic() - moved > STALLED:
                raise procs.Failed(f"{done:,} of {wanted:,} events ran, then nothing for {STALLED:g} s. {procs.tail(self.log)}")
            await asyncio.sleep(0.005)


@asynccontextmanager
async def stage(contender: Contender, events: int) -> AsyncIterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="faas-bench-"))
    try:
        for name, text in contender.files.items():
            (folder / name).write_text(text)
        marks = marks_module.make(folder / "marks", events)
        async with contender.server(folder / "server") as server:
            yield Stage(contender, folder, server, marks, folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def drain(contender: Contender) -> Sample:
    """Everything is published first, then the worker starts. Events a second from the first entry to the last."""
    async with stage(contender, contender.events) as on:
        await on.publish()
        async with on.working() as worker:
            await on.until_done(1)
            started = procs.cpu([worker]), procs.cpu(on.server.pids), on.marks.done()
            await on.until_done()
            ended = procs.cpu([worker]), procs.cpu(on.server.pids), on.marks.done()
            await asyncio.sleep(0.2)  # for events that would come twice
        ran = max(1, ended[2] - started[2])
        return Sample(
            on.marks.total / on.marks.seconds(),
            (ended[0] - started[0]) / ran * 1e6,
            (ended[1] - started[1]) / ran * 1e6 if on.server.url else None,
            on.server.durability,
            on.problem,
        )
