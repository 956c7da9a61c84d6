"""A decoder's process, as the connector sees it. Nothing that it sends is trusted."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...errors import ConfigError, ProtocolError, SourceUnavailable
from ...pipe import Pipe
from .child import NAME, Options
from .frames import Decoded, Given, frame, length, read_answers, read_text

log = logging.getLogger("broker_faas.output")

# Seconds that one record may take. Decoding takes microseconds. What takes seconds is a schema that is fetched; and a source that waits
# must go on before others call it stuck.
DEADLINE = 10.0
LOOKS = 5  # in this time, at whether it still is the same record


class Ended(NamedTuple):
    """Of a process before it had answered. reason: one line. running: the record that it was decoding, from 0; None: none."""

    reason: str
    running: int | None


class Child:
    """One process with the function imported."""

    def __init__(self, process: subprocess.Popen[bytes], page: mmap.mmap, output: Pipe) -> None:
        self.pid = process.pid
        self._process = process
        self._page = page
        self._running = memoryview(page).cast("Q")
        self._output = output
        self._announced: int | None = None  # bytes of the frame that is being read
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    @classmethod
    async def start(cls, function: str, root: Path, environ: Mapping[str, str], place: str, connector: str, patience: float) -> Child:
        """When it can decode. place: where the function is named, for errors. patience: seconds to import it.

        Raises ConfigError; SourceUnavailable: no process to be had.
        """

        def told(text: str) -> None:
            log.info("output", extra={"stream": "output", "pool": connector, "text": text})

        output = Pipe(asyncio.get_running_loop(), told)
        child, ours = cls._spawned(function, root, environ, output)
        try:
            child._reader, child._writer = await asyncio.open_unix_connection(sock=ours)
            await child._ready(function, place, patience)
        except BaseException:
            child.end()
            raise
        return child

    @classmethod
    def _spawned(cls, function: str, root: Path, environ: Mapping[str, str], output: Pipe) -> tuple[Child, socket.socket]:
        with ExitStack() as theirs, ExitStack() as undo:
            ours, end = socket.socketpair()
            theirs.enter_context(end)
            undo.callback(ours.close)
            fd = os.memfd_create("decoder")
            theirs.callback(os.close, fd)
            os.ftruncate(fd, mmap.PAGESIZE)
            page = mmap.mmap(fd, mmap.PAGESIZE)
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, write)
            output.open(read)
            undo.callback(output.close)
            options = msgspec.json.encode(Options(end.fileno(), fd, os.getpid(), str(root), function)).decode()
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", NAME, options],  # -P: the current directory must not shadow what we import
                    pass_fds=[end.fileno(), fd],
                    stdin=subprocess.DEVNULL,
                    stdout=write,
                    stderr=write,
                    env=dict(environ),
                    cwd=root,
                    start_new_session=True,  # Ctrl-C at a terminal is the connector's to handle
                )
            except OSError as error:
                raise SourceUnavailable(f"no process for the decoder can be started: {error.strerror}") from None
            undo.pop_all()
            return cls(process, page, output), ours

    async def _ready(self, function: str, place: str, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                why = read_text(await self._frame())
        except TimeoutError:
            raise ConfigError(f"{place}: importing {function.partition(':')[0]!r} did not end within {patience:g} s") from None
        except (EOFError, OSError, ProtocolError):
            raise ConfigError(f"{place}: the process that imports {function.partition(':')[0]!r} died ({self.end()})") from None
        if why:
            raise ConfigError(f"{place}: {why}")

    async def ask(self, records: Sequence[Given]) -> tuple[list[Decoded], Ended | None]:
        """Answers to the first of them, and, if it ended before it had answered all, how. Cancelled, it is of no use any more."""
        answers: list[Decoded] = []
        self._running[0] = 0
        try:
            self._writer.write(frame(records))
            while len(answers) < len(records):
                answers += read_answers(await self._patiently())
            if len(answers) > len(records):
                raise ProtocolError(f"{len(answers)} answers to {len(records)} records")
        except (EOFError, OSError, ProtocolError) as error:  # TimeoutError is an OSError
            running = self._running[0] - 1
            how = self.end()
            if isinstance(error, TimeoutError) and how == signal.SIGKILL.name:  # by us, just now
                how = f"the decoder took longer than {DEADLINE:g} s"
            elif isinstance(error, ProtocolError):
                how = f"the decoder's process wrote what it must not: {error}"
                running = 0 if len(records) == 1 else -1  # to any fd, so the page says nothing
            else:
                how = f"the decoder's process ended: {how}"
            return answers[: len(records)], Ended(how, running if len(answers) <= running < len(records) else None)
        return answers, None

    def end(self) -> str:
        """SIGKILL to it and what it has started; how it ended."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # also of one that has ended: its number is not used anew before wait()
        code = self._process.wait()
        if hasattr(self, "_writer"):
            self._writer.transport.abort()
        self._output.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    async def _patiently(self) -> bytes:
        """A frame. TimeoutError when one record takes too long."""
        running, looks = self._running[0], 0
        while True:
            try:
                async with asyncio.timeout(DEADLINE / LOOKS):
                    return await self._frame()
            except TimeoutError:
                looks += 1
                if self._running[0] != running:
                    running, looks = self._running[0], 0
                elif looks == LOOKS:
                    raise

    async def _frame(self) -> bytes:
        """Cancelled, it goes on where it was."""
        try:
            if self._announced is None:
                self._announced = length(await self._reader.readexactly(4))
            body = await self._reader.readexactly(self._announced)
        except asyncio.IncompleteReadError:
            raise EOFError from None
        self._announced = None
        return body
