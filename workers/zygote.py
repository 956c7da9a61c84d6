"""Zygote: imports a project's modules once and forks executors from there.

It has one thread, no sockets but its control socket, no event loop, and no secrets: executors inherit what it has. A
module that starts a thread or opens a socket when imported is not kept: the zygote starts itself anew without it, and
executors of its functions are fresh interpreters that import it themselves ("spawn").

Control socket (SEQPACKET, one msgpack array a packet):

    worker → zygote   ["beat"]                    without one for `lease` seconds every executor is killed
                      ["fork", n, kind]           kind: fork, spawn or command; + SCM_RIGHTS: socket, page, output pipe
    zygote → worker   ["importing", module]       before each import
                      ["spec", function]          one a function
                      ["spawn", module, warning]  this module's functions need a spawned executor
                      ["broken", module, text]    it cannot be imported: traceback
                      ["loaded"]                  from now on it forks
                      ["forked", n, pid]  ["unforked", n, reason]
                      ["exit", n, status, why]    status as of waitpid; why: "" or why the zygote killed it

At the end of the control socket it kills every executor's process group and exits.
"""

from __future__ import annotations

import asyncio  # noqa: F401  executors need it: imported here, it costs them nothing
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from ctypes import CDLL
from itertools import dropwhile
from typing import Any, NoReturn

import msgspec

from ..errors import ConfigError, FaasError
from ..invoke import Invocation
from . import child
from .output import Output

PACKET = 64 << 10  # bytes of a control packet at most; tracebacks are cut to fit
NUMPY = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # else numpy starts threads when imported

NAME = "broker_faas.workers.zygote"
_ALLOWED = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "TMPDIR", "USER")
_ALLOWED_PREFIXES = ("LC_", "PYTHON")
_PR_SET_PDEATHSIG = 1
_libc = CDLL(None)


def scrubbed(environ: Mapping[str, str], pass_env: tuple[str, ...] = ()) -> dict[str, str]:
    """The variables a zygote, and so every executor, may see: an allow list, and what the project passes on by name."""
    allowed = {*_ALLOWED, *pass_env} - {"NATS_URL"}
    kept = {name: value for name, value in environ.items() if name in allowed or name.startswith(_ALLOWED_PREFIXES)}
    return NUMPY | kept


class Options(msgspec.Struct, frozen=True):
    """argv[1], as JSON. control: its fd. parent: the worker's pid. spawned: modules known to need a fresh interpreter."""

    control: int
    parent: int
    root: str
    modules: list[str]
    lease: float
    spawned: list[str] = []


def main() -> None:
    options = msgspec.json.decode(sys.argv[1], type=Options)
    die_with_parent(options.parent)  # while it imports it cannot hear that the worker is gone
    sys.path.insert(0, options.root)
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    output = Output()
    output.install()  # before the imports: whoever remembers sys.stderr then remembers ours
    functions = _load(options, control)
    child.warm_up()
    _prctl(_PR_SET_PDEATHSIG, 0)  # from now on the socket's end tells, and there is time to kill the groups
    gc.collect()
    gc.freeze()  # so that a collection in a child does not copy the pages of all this
    _send(control, "loaded")
    Forks(options, control, functions, output).run()


class Forks:
    def __init__(self, options: Options, control: socket.socket, functions: dict[str, Invocation], output: Output) -> None:
        self._options = options
        self._control = control
        self._functions = functions
        self._output = output
        self._children: dict[int, int] = {}  # pid → n
        self._why: dict[int, str] = {}  # pid → why it was killed here
        self._unsent: deque[bytes] = deque()  # bounded: two packets an executor

    def run(self) -> NoReturn:
        """Until the worker closes the control socket or is gone."""
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, or the wake-up is not written
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._control.setblocking(False)
        self._private = [self._control.fileno(), self._wakeup, wakeup]
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        heard = time.monotonic()
        while True:
            poll.register(self._control, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            ready = dict(poll.poll(1000 * max(0.1, heard + self._options.lease - time.monotonic()) if self._children else None))
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
            if self._control.fileno() in ready:
                while (packet := self._receive()) is not None:
                    heard = time.monotonic()
                    message, fds = packet
                    if not message:
                        self._kill_all("the worker is gone")
                        os._exit(0)  # not through user modules' atexit
                    self._handle(msgspec.msgpack.decode(message), fds)
            self._reap()
            self._write()
            if self._children and time.monotonic() - heard > self._options.lease:
                self._kill_all(f"no beat from the worker for {self._options.lease:g} s")

    def _receive(self) -> tuple[bytes, list[int]] | None:
        try:
            message, fds, _, _ = socket.recv_fds(self._control, PACKET, 3)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b"", []
        return message, fds

    def _handle(self, message: Any, fds: list[int]) -> None:
        match message:
            case ["beat"]:
                pass
            case ["fork", int(n), str(kind)] if len(fds) == 3:
                try:
                    self._fork(n, kind, fds)
                except OSError as error:
                    self._queue("unforked", n, f"fork: {error.strerror}")
                for fd in fds:
                    os.close(fd)
            case _:
                raise ConfigError(f"no message of the zygote protocol: {message!r:.200}")

    def _fork(self, n: int, kind: str, fds: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_executor(parent, kind, fds)
        with suppress(OSError):  # it has execed or is dead already
            os.setpgid(pid, pid)  # the child does it too: whoever is first, the group exists before anyone is told
        # crash point: forked
        self._children[pid] = n
        self._queue("forked", n, pid)

    def _become_executor(self, parent: int, kind: str, fds: list[int]) -> NoReturn:
        """In the child. Never returns into the zygote's loop, whatever happens."""
        code = 70
        try:
            os.setpgid(0, 0)
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for fd in self._private:
                os.close(fd)
            default_signals()
            with open(os.devnull) as null:
                os.dup2(null.fileno(), 0)
            os.dup2(fds[2], 1)
            os.dup2(fds[2], 2)
            os.close(fds[2])
            match kind:
                case "spawn":
                    child.become_interpreter(self._options.root, self._options.modules, fds[0], fds[1])
                case "command":
                    child.become_command(fds[0], fds[1])
                case _:
                    code = child.run(self._functions, self._output, fds[0], fds[1])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        for pid in [*self._children]:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # crash point: executor-ended
            _kill_group(pid)  # what it left behind; its zombie keeps the group's number from being used anew
            _, status = os.waitpid(pid, 0)
            self._queue("exit", self._children.pop(pid), status, self._why.pop(pid, ""))

    def _kill_all(self, why: str) -> None:
        for pid in self._children:
            self._why.setdefault(pid, why)
            _kill_group(pid)

    def _queue(self, *message: Any) -> None:
        self._unsent.append(msgspec.msgpack.encode(message))
        self._write()

    def _write(self) -> None:
        """As much as fits: a worker that does not read must not stop the zygote from watching the lease."""
        while self._unsent:
            try:
                self._control.send(self._unsent[0])
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return
            self._unsent.popleft()


# --- importing ----------------------------------------------------------------------------------------------


def _load(options: Options, control: socket.socket) -> dict[str, Invocation]:
    """The functions of all modules that can be forked. Starts itself anew without a module that cannot."""
    functions: dict[str, Invocation] = {}
    for module in options.modules:
        if module in options.spawned:
            continue
        before = _sockets()
        _send(control, "importing", module)
        found: dict[str, Invocation] = {}
        try:
            found = child.import_functions(module, functions)
            for invocation in found.values():
                _send(control, "spec", invocation.function.spec())
        except BaseException as error:
            found = {}
            _send(control, "broken", module, _why(error))
        if why := _unforkable(_sockets() - before):
            warning = (
                f"module {module!r} {why} when it is imported, so its functions cannot be forked from a warm process: each of their "
                "executors starts a fresh interpreter (about 0.3 s instead of 2 ms). Create it in lifespan() instead"
            )
            _send(control, "spawn", module, warning)
            options = msgspec.structs.replace(options, spawned=[*options.spawned, module])
            os.set_inheritable(options.control, True)
            os.execv(sys.executable, [*interpreter(), "-m", NAME, msgspec.json.encode(options).decode()])
        functions |= found
    return functions


def _why(error: BaseException) -> str:
    """For whoever wrote the module: our own errors name the line themselves; of a traceback, what begins in the module."""
    if isinstance(error, FaasError):
        return str(error)[: PACKET // 8]
    shown = traceback.TracebackException.from_exception(error)
    ours = (os.path.dirname(__file__) + os.sep, importlib.__file__, "<frozen importlib")
    frames: list[traceback.FrameSummary] = [*shown.stack]
    shown.stack = traceback.StackSummary.from_list([*dropwhile(lambda frame: frame.filename.startswith(ours), frames)])
    text = "".join(shown.format()).rstrip().encode("utf-8", "replace")  # what str(error) is may be anything
    return text[-PACKET // 2 :].decode("utf-8", "ignore")


def _unforkable(sockets: set[str]) -> str:
    if len(os.listdir("/proc/self/task")) > 1:
        return "starts a thread"
    return "opens a socket or makes an event loop" if sockets else ""


def _sockets() -> set[str]:
    """The sockets this process has open, as `socket:[inode]`."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
        if link.startswith("socket:"):
            found.add(link)
    return found


# --- processes ----------------------------------------------------------------------------------------------


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent ends, even if it was killed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(70)


def default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, value, 0, 0, 0)


def interpreter() -> list[str]:
    return [sys.executable, "-P"]  # -P: the current directory must not shadow what we import


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _send(control: socket.socket, *message: Any) -> None:
    """Blocking: only before the loop. Raises ConfigError for what fits into no packet."""
    packet = msgspec.msgpack.encode(message)
    if len(packet) > PACKET:
        raise ConfigError(f"{message[0]} of {len(packet):,} bytes; the limit is {PACKET:,}")
    control.send(packet)


if __name__ == "__main__":
    main()
