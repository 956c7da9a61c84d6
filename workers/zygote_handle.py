"""The zygote as the worker sees it: the process that executors are forked from. zygote.py is its inside and has the protocol."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from ..errors import ConfigError, ExecutorError
from ..function import Spec
from .executor import Executor, Group, Line, Listener, signal_name
from .executor import Output as Output
from .zygote import NAME, PACKET, Options, interpreter, scrubbed

log = logging.getLogger("broker_faas.workers")

BEAT = 2.0  # seconds
START_TIMEOUT = 60.0  # seconds for an interpreter and our own imports, which take 0.2 s
READY_TIMEOUT = 60.0  # seconds for an executor's lifespan
SILENCE = 20.0  # seconds with calls, none of them running and no answer, after which an executor is stuck
MAX_HELLO = 64 << 10  # bytes, for a command: it finds hello in the socket's buffer


async def describe(modules: Sequence[str], root: Path, environ: Mapping[str, str], import_timeout: float = 60.0) -> list[Spec]:
    """The functions of a project's modules, without running user code in this process. Raises ConfigError, naming the module."""
    async with Zygote.open(modules, root, environ, import_timeout) as zygote:
        for module, text in zygote.broken.items():
            raise ConfigError(f"module {module!r} cannot be imported:\n{text}")
        return zygote.specs


class Zygote:
    """specs: the functions of all modules. warnings: for people. broken: module → traceback of its import.

    closed: set when its process is gone; whoever opened it opens another one, with back-off.
    """

    def __init__(self, project: str, output: Output, lease: float) -> None:
        self.specs: list[Spec] = []
        self.warnings: list[str] = []
        self.broken: dict[str, str] = {}
        self.closed = asyncio.Event()
        self.pid = 0
        self._pidfd = -1
        self._project = project
        self._output = output
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._control: socket.socket
        self._process: subprocess.Popen[bytes]
        self._executors: dict[int, Executor] = {}
        self._numbers = count(1)
        self._spawned: set[str] = set()  # modules
        self._module_of: dict[str, str] = {}  # function → the module it was found in
        self._importing = ""
        self._loaded = False
        self._news = asyncio.Event()
        self._beats: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        modules: Sequence[str],
        root: Path,
        environ: Mapping[str, str],
        import_timeout: float = 60.0,
        *,
        project: str = "",
        pass_env: tuple[str, ...] = (),
        output: Output | None = None,
        lease: float = 20.0,
    ) -> AsyncIterator[Zygote]:
        """Starts it, imports `modules` there, and yields when it can fork. Leaving kills every executor.

        environ: of this process; only an allow list of it, and what pass_env names, reaches user code. import_timeout: seconds a
        module. output: gets what user code prints and logs (default: the logger broker_faas.output). lease: seconds without a beat
        of this process after which the zygote kills every executor. Raises ConfigError: an import that does not return or kills the
        zygote. A module that raises is in `broken`, and the others work.
        """
        zygote = cls(project, output or log_output, lease)
        try:
            zygote._start([*modules], root, scrubbed(environ, pass_env))
            await zygote._load(import_timeout)
            zygote._beat()
            yield zygote
        finally:
            await zygote._close()

    async def fork(self, group: Group, listener: Listener) -> Executor:
        """An executor that is ready for calls: about 3 ms, and what its lifespan takes.

        Raises ExecutorError: no process to be had, its lifespan failed, the zygote is gone; the listener then hears nothing.
        """
        kind = "fork"
        if group.command:
            kind = "command"
        elif any(self._module_of.get(spec.name) in self._spawned for spec in group.functions):
            kind = "spawn"
        number = next(self._numbers)
        executor = Executor(number, group, listener, self._output, self._executors.pop)

        def send(fds: list[int]) -> None:
            self._send(["fork", number, kind], fds)
            self._executors[number] = executor  # from now on it is told what becomes of its process

        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await executor.open(self._project, send)
        except TimeoutError:
            executor.kill(f"not ready after {READY_TIMEOUT:g} s")
            raise ExecutorError(f"executor of {group.name} was not ready after {READY_TIMEOUT:g} s: does lifespan() return?") from None
        except BaseException:
            executor.kill("not wanted any more")
            raise
        return executor

    # --- the process

    def _start(self, modules: list[str], root: Path, environ: dict[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = Options(theirs.fileno(), os.getpid(), str(root), modules, self._lease)
        try:
            self._process = subprocess.Popen(
                [*interpreter(), "-m", NAME, msgspec.json.encode(options).decode()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # prints of modules at import: our standard output may be a listing in JSON
                env=environ,
                cwd=root,
                start_new_session=True,  # Ctrl-C at a terminal is the worker's to handle
            )
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._readable)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._exited)

    async def _load(self, timeout: float) -> None:
        while not self._loaded and not self.closed.is_set():
            self._news.clear()
            try:
                async with asyncio.timeout(timeout if self._importing else START_TIMEOUT):
                    await self._news.wait()
            except TimeoutError:
                if not self._importing:
                    raise ConfigError(f"the process that imports the project's modules did not start within {START_TIMEOUT:g} s") from None
                hint = "what takes time or waits belongs into lifespan() or the handler, not at module level"
                raise ConfigError(f"importing module {self._importing!r} did not end within {timeout:g} s; {hint}") from None
        if not self._loaded:
            raise ConfigError(f"the process that imports the project's modules died ({self._how()}) while importing {self._importing!r}")

    async def _close(self) -> None:
        if self._beats:
            self._beats.cancel()
        if not hasattr(self, "_process"):
            return
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        if not self._loaded:
            self._process.kill()  # it is not listening yet
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self.closed.wait()
        self._died()
        for executor in self._executors.values():
            executor.abort()
        await asyncio.sleep(0)  # their transports' last words

    def _exited(self) -> None:
        """Its end of the socket may live on, in a process that a module forked when it was imported."""
        self._readable()
        self._died()

    def _died(self) -> None:
        """Nothing more comes from the zygote: it ended, or it is ended here. Its executors go with it."""
        if self.closed.is_set():
            return
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and what modules started when they were imported
        self._process.kill()
        self._process.wait()
        self.closed.set()
        self._news.set()
        for executor in [*self._executors.values()]:
            executor.ended(None, f"its zygote ended ({self._how()})")

    def _how(self) -> str:
        code = self._process.returncode
        return signal_name(-code) if code < 0 else f"exit code {code}"

    def _beat(self) -> None:
        """Every BEAT seconds: renews the executors' lease, and looks for those that are stuck outside of any call."""
        self._send(["beat"])
        now = monotonic()
        for executor in self._executors.values():
            if executor.inflight and now - executor.moved > SILENCE and not executor.running():
                executor.kill(f"no answer for {SILENCE:g} s while no call was running: is its event loop blocked by a task of its own?")
        self._beats = self._loop.call_later(BEAT, self._beat)

    # --- the control socket

    def _send(self, message: list[Any], fds: Sequence[int] = ()) -> None:
        if self.closed.is_set():
            raise ExecutorError("the zygote is gone")
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(message)], fds)
        except OSError as error:  # full: it has not read for long; or gone, which its end of the socket tells as well
            if fds:
                raise ExecutorError(f"the zygote does not take requests: {error.strerror}") from None

    def _readable(self) -> None:
        while not self.closed.is_set():
            try:
                packet = self._control.recv(PACKET)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self._died()
                return
            try:
                self._told(msgspec.msgpack.decode(packet))
            except (msgspec.DecodeError, ValueError):  # user code writes to its sockets
                log.exception("zygote says what cannot be understood; it is ended")
                self._died()

    def _told(self, message: list[Any]) -> None:
        match message:
            case ["importing", module]:
                self._importing = module
            case ["spec", raw]:
                spec = msgspec.convert(raw, Spec)
                if spec.name not in self._module_of:
                    self.specs.append(spec)
                    self._module_of[spec.name] = self._importing
            case ["spawn", module, warning]:
                self._spawned.add(module)
                self.warnings.append(warning)
                log.warning("module cannot be forked", extra={"module_name": module, "reason": warning})
            case ["broken", module, text]:
                self.broken[module] = text
            case ["loaded"]:
                self._loaded = True
            case ["forked", number, pid]:
                if executor := self._executors.get(number):
                    executor.forked(pid)
            case ["unforked", number, reason]:
                if executor := self._executors.get(number):
                    executor.ended(None, reason)
            case ["exit", number, status, why]:
                if executor := self._executors.get(number):
                    executor.ended(status, why)
        self._news.set()


def log_output(executor: Executor, lines: list[Line]) -> None:
    """The default `output`: one record a line, with the function and the event's id."""
    for call, stream, text in lines:
        extra: dict[str, Any] = {"stream": stream, "executor_pid": executor.pid, "pool": executor.group.name, "text": text}
        if call:
            extra |= {"function": executor.group.functions[call.function].name, "event": _event_id(call.headers), "attempt": call.attempt}
        logging.getLogger("broker_faas.output").log(_LEVELS.get(stream, logging.INFO), "output", extra=extra)


_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


def _event_id(headers: bytes) -> str:
    for line in headers.split(b"\r\n"):
        if line[:6].lower() == b"ce-id:":
            return line[6:].strip().decode("utf-8", "replace")
    return ""
