"""Executor: a process that runs user code, as the worker sees it. Nothing that it sends is trusted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Protocol, cast

import msgspec

from ..decide import OK, TIMEOUT
from ..errors import MAX_DELAY, ExecutorError, ProtocolError
from ..function import Spec
from ..pipe import Pipe
from .frames import SLOTS, VERSION, Done, Drain, Failed, Hello, Log, Ready, Setup, Splitter, decode_for_worker, encode, run_frames
from .frames import Outcome as Outcome
from .page import Page

HIGH_WATER = 4 << 20  # bytes not taken yet by an executor, above which it is `paused`
SOCKET_BUFFER = 1 << 20  # bytes on their way to it; the kernel may allow less (net.core.wmem_max)
HANGS_UP = 1.0  # seconds between the end of its socket and its own
MAX_REASON = 1000  # characters; MAX_DETAIL likewise: what a dead letter could keep at most
MAX_DETAIL = 16 << 10


class Call(msgspec.Struct, gc=False, eq=False):
    """One event for one function. id: unique in this worker, not 0. Subclasses may hang anything on it.

    function: its place in the group's functions. deaths: of executors that had it, and that nobody was to blame for.
    """

    id: int
    function: int
    topic: str
    attempt: int
    headers: bytes
    data: bytes
    deaths: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Functions that share executors. env: variables of these alone. sync: `def` handlers, one call at a time.

    command: run this program instead of Python functions; it speaks docs/reference/executor-protocol.md on fd 3.
    """

    name: str
    functions: Sequence[Spec]
    env: dict[str, str]
    sync: bool
    command: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Calls that one executor may overlap."""
        return 1 if self.sync else min(SLOTS, sum(spec.concurrency for spec in self.functions))


class Exit(NamedTuple):
    """reason: one line for people. running: calls it was in when it ended, from the page; only one of them can be to blame.

    zygote_died: it ended for a reason outside of it (zygote or worker gone, no beats); nothing is to be charged.
    detail: e.g. the traceback of its lifespan.
    """

    reason: str
    running: set[int]
    zygote_died: bool
    detail: str


class Line(NamedTuple):
    """What user code printed or logged. call: None outside of a call. stream: stdout, stderr, output (both) or a log level."""

    call: Call | None
    stream: str
    text: str


Output = Callable[["Executor", list[Line]], None]


class Listener(Protocol):
    def outcomes(self, executor: Executor, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        """Answers of one frame; the calls are no longer in flight. done: by function; they succeeded and send nothing, as nearly all."""

    def exited(self, executor: Executor, exit: Exit) -> None:
        """Exactly once, last. What it did not answer is still in `inflight`."""


class Executor(asyncio.Protocol):
    """inflight: calls sent and not answered; load: how many of each function. paused: it takes nothing for now; send no more.

    events: calls answered so far.
    """

    def __init__(self, id: int, group: Group, listener: Listener, output: Output, forget: Callable[[int], object]) -> None:
        """forget: called with the id when all is over."""
        self.id = id
        self.group = group
        self.pid = 0
        self.inflight: dict[int, Call] = {}
        self.inflight_bytes = 0
        self.load = [0] * len(group.functions)
        self.paused = False
        self.events = 0
        self.moved = monotonic()  # when it last answered, or was given something while idle
        self._listener = listener
        self._output = output
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._page: Page
        self._splitter = Splitter()
        self._transport: asyncio.Transport
        self._pipe = Pipe(self._loop, lambda text: self._output(self, [Line(None, "output", text)]))
        self._why = ""  # why we killed it
        self._failed = Failed("", "")  # what it said itself before it exited
        self._broken = False
        self._drained = False
        self._closed = False
        self._status: int | None = None
        self._zygote_died = False

    def run(self, calls: Sequence[Call]) -> None:
        """Sends calls, in as few frames as is good. Of an executor that has ended, they stay in flight until exited() is called."""
        if not self.inflight:
            self.moved = monotonic()
        self.inflight.update({call.id: call for call in calls})
        size = sum([len(call.headers) + len(call.data) for call in calls])
        self.inflight_bytes += size
        if len(self.load) == 1:
            self.load[0] += len(calls)
        else:
            for call in calls:
                self.load[call.function] += 1
        self._send_calls(calls)

    def running(self) -> dict[int, float]:
        """The calls it is in, and since when: seconds of time.monotonic()."""
        return {id: started for id, started in self._page.running().items() if id in self.inflight}

    def rss(self) -> int:
        """Bytes of memory, shared pages included; 0 if it has ended."""
        try:
            with open(f"/proc/{self.pid}/statm") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            return 0

    def has_children(self) -> bool:
        """Whether processes that it started are still there."""
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):
                if task.read_bytes():
                    return True
        return False

    def drain(self) -> None:
        """It answers what it has and exits; exited() follows."""
        self._drained = True
        if not self._transport.is_closing():
            self._transport.write(encode(Drain()))

    def kill(self, why: str) -> None:
        """SIGKILL to its process group. why: becomes the exit's reason."""
        self._why = self._why or why
        if self.pid and self._status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    # --- what the zygote's side tells

    async def open(self, project: str, send: Callable[[list[int]], None]) -> None:
        """send: hands fds (socket, page, output pipe) to the zygote. Returns when it is ready for calls. Raises ExecutorError."""
        try:
            await self._hand_over(send)
        except BaseException as error:
            self._pipe.close()
            if isinstance(error, OSError):
                raise ExecutorError(f"no executor can be made: {error.strerror}") from None
            raise
        group = self.group
        setup = Setup(VERSION, project, [*group.functions], group.env, group.slots, group.sync, [*group.command])
        self._transport.write(encode(Hello(setup)))
        await self._started

    async def _hand_over(self, send: Callable[[list[int]], None]) -> None:
        with ExitStack() as theirs:
            with ExitStack() as undo:
                self._page = Page(self.group.slots)
                theirs.callback(os.close, self._page.fd)
                undo.callback(self._page.close)
                ours, end = socket.socketpair()
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
                theirs.enter_context(end)
                undo.callback(ours.close)
                read, write = os.pipe2(os.O_CLOEXEC)
                theirs.callback(os.close, write)
                self._pipe.open(read)
                await self._loop.create_unix_connection(lambda: self, sock=ours)
                undo.pop_all()
            try:
                send([end.fileno(), self._page.fd, write])
            except BaseException:
                self._transport.abort()
                self._page.close()
                raise

    def forked(self, pid: int) -> None:
        self.pid = pid
        if self._why:
            self.kill(self._why)

    def ended(self, status: int | None, why: str) -> None:
        """status: as of waitpid; None: the zygote died before it could tell."""
        if self._status is not None:
            return
        if status is None:
            self.kill("")  # what its group left behind
        self._status = -1 if status is None else status
        self._zygote_died = bool(why)
        self._why = self._why or why
        # What it had written is read first. A process that left the group may hold the socket open for ever.
        self._loop.call_later(0.2, self._transport.abort)
        self._report()

    def abort(self) -> None:
        """Nobody waits for what it may still say."""
        self._transport.abort()

    def _report(self) -> None:
        if not self._closed or self._status is None:
            return
        self._forget(self.id)
        self._pipe.close()
        exit = Exit(self._reason(self._status), set(self.running()), self._zygote_died, self._failed.detail)
        self._page.close()
        if not self._started.done():
            self._started.set_exception(ExecutorError(exit.reason + (f"\n{exit.detail}" if exit.detail else "")))
        elif not self._started.cancelled():  # else fork() was given up, and the listener never knew this executor
            self._listener.exited(self, exit)

    def _reason(self, status: int) -> str:
        if self._failed.reason:
            return self._failed.reason
        if status < 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and self._why):
            return self._why
        if os.WIFSIGNALED(status):
            name = signal_name(os.WTERMSIG(status))
            return name + (" (out of memory?)" if name == "SIGKILL" else "")
        code = os.WEXITSTATUS(status)
        return "drained" if code == 0 and self._drained else f"exit code {code}"

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            for body in self._splitter.feed(data):
                match decode_for_worker(body):
                    case Done(ok, others):
                        self._done(ok, others)
                    case Log(lines):
                        self._output(self, [Line(self.inflight.get(call), stream[:16], text) for call, stream, text in lines])
                    case Ready():
                        if not self._started.done():
                            self._started.set_result(None)
                    case Failed() as failed:
                        self._failed = Failed(failed.reason[:MAX_REASON], failed.detail[-MAX_DETAIL:])
        except ProtocolError as error:
            self._broken = True
            self.kill(f"wrote garbage to its socket: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        # Its end closes the socket too, and the zygote is about to tell: a process of 1 GB takes 0.2 s to end. If it does not tell, the
        # executor lives and cannot be talked to.
        self._loop.call_later(HANGS_UP, self._hung_up)
        self._report()

    def _hung_up(self) -> None:
        if self._status is None:
            self.kill("closed its socket")

    # --- outcomes

    def _done(self, ok: list[int], others: list[Outcome]) -> None:
        inflight = self.inflight
        done: list[list[Call]] = [[] for _ in self.load]
        pairs: list[tuple[Call, Outcome]] = []
        try:
            for id in ok:
                if (call := inflight.pop(id, None)) is None:
                    raise _unknown(id)
                done[call.function].append(call)
            for outcome in others:
                checked = _checked(outcome)  # first: a call that is popped and not reported would be lost
                if (call := inflight.pop(outcome.call, None)) is None:
                    raise _unknown(outcome.call)
                pairs.append((call, checked))
        finally:
            for function, calls in enumerate(done):
                self.load[function] -= len(calls)
                self.inflight_bytes -= sum([len(call.headers) + len(call.data) for call in calls])
            for call, _ in pairs:
                self.load[call.function] -= 1
                self.inflight_bytes -= len(call.headers) + len(call.data)
            self.moved = monotonic()
            # crash point: outcomes-arrived
            if answered := sum(map(len, done)) + len(pairs):
                self.events += answered
                self._listener.outcomes(self, done, pairs)

    def _send_calls(self, calls: Sequence[Call]) -> None:
        if self._transport.is_closing():
            return
        pieces = run_frames([(call.id, call.function, call.topic, call.attempt, call.headers, call.data) for call in calls])
        # crash point: calls-before-write
        self._transport.writelines(pieces)
        # crash point: calls-written


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _unknown(id: int) -> ProtocolError:
    return ProtocolError(f"an outcome of call {id}, which it does not have")


def _checked(outcome: Outcome) -> Outcome:
    if not OK <= outcome.status <= TIMEOUT:
        raise ProtocolError(f"status {outcome.status}")
    if outcome.after is not None and not 0 <= outcome.after <= MAX_DELAY:
        raise ProtocolError(f"after {outcome.after}")
    if len(outcome.reason) > MAX_REASON or len(outcome.detail) > MAX_DETAIL:
        return outcome._replace(reason=outcome.reason[:MAX_REASON], detail=outcome.detail[-MAX_DETAIL:])
    return outcome
