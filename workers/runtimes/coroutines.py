"""Calls that overlap: `async def` handlers on one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from math import inf
from time import monotonic, monotonic_ns

from ..frames import Drain, Inbox, Outcome, Run, RunCall, decode_for_executor
from ..output import Output, Slot, current
from .outbox import LINGER_NS, MANY, Outbox, cut_off
from .python import Callee, skipped

STALLED = 0.1  # seconds that deadlines are noticed too late, from which on some call must have kept the loop
MAKES_UP = 0.5  # seconds that calls are given at most for such a time; the worker waits for longer (dispatch.KILL_AFTER)


class CoroutineSlot(Slot):
    """deadline: seconds of monotonic(), or inf. overdue: it was cancelled at its deadline."""

    __slots__ = ("deadline", "overdue", "task")

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.deadline = inf
        self.overdue = False
        self.task: asyncio.Task[None]


class Coroutines:
    """Slots are tasks that take calls and await the handler themselves: no task an event, and yet each call runs in one.

    A slot that takes a call while others wait readies another slot first. If the handler never suspends, the other one finds
    nothing left to do: one wake-up a burst. If it does suspend, the other one goes on with the next call.
    """

    def __init__(self, sock: socket.socket, marks: memoryview, callees: Sequence[Callee], slots: int, output: Output) -> None:
        self._sock = sock
        self._marks = marks
        self._callees = callees
        self._limit = slots
        self._output = output
        self._outbox = Outbox(output)
        self._inbox = Inbox()
        self._unsent = bytearray()
        self._blocked = False  # the worker takes nothing for now
        self._todo: deque[RunCall] = deque()  # bounded by what the worker lets one executor hold
        self._slots: list[CoroutineSlot] = []
        self._idle: list[asyncio.Future[None]] = []
        self._coming = False  # a slot was readied and has not run yet
        self._flushing = False
        self._burst = 0  # ns of monotonic_ns() when the first outcome since the last flush came
        self._draining = False
        self._sweep_at = inf
        self._sweep_timer: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Until the worker drains it. Raises ProtocolError."""
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._ended = self._loop.create_future()
        self._output.now = self._flush
        self._output.soon = self._printed
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._readable)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._ended
            for slot in self._slots:
                slot.task.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.setblocking(True)
        self._sock.sendall(self._unsent + self._outbox.take())

    # --- slots

    async def _slot(self, slot: CoroutineSlot) -> None:
        current.set(slot)
        pristine = copy_context()
        todo, callees = self._todo, self._callees
        while True:
            self._coming = False
            while todo:
                now = monotonic_ns()
                if self._flushing and (now - self._burst > LINGER_NS or len(self._outbox.ok) > MANY):
                    self._flush()
                    await asyncio.sleep(0)  # calls that never suspend are many: let the others and their timers go on
                    continue  # they may have taken the next one, too
                call = todo.popleft()
                callee = callees[call[1]]
                if callee.running >= callee.concurrency:
                    callee.parked.append(call)
                    continue
                callee.running += 1
                if todo and not self._coming:
                    self._ready()
                await self._run(slot, callee, call, now)
                if slot.task.cancelling():
                    await _forget_cancellation(slot.task)
                try:
                    changed = copy_context() != pristine  # 0.1 µs: the same tree, unless something was set
                except Exception:  # values of the user's own, whose == may do anything
                    changed = True
                if changed:  # the handler set a context variable: the next call must not see it
                    return self._start(slot)
            wake = self._loop.create_future()
            self._idle.append(wake)
            await wake

    async def _run(self, slot: CoroutineSlot, callee: Callee, call: RunCall, now: int) -> None:
        """now: of monotonic_ns()."""
        marks, mark = self._marks, 2 * slot.index
        slot.call = id = call[0]
        slot.printed = 0
        slot.deadline = deadline = now / 1e9 + callee.timeout
        marks[mark + 1] = now
        marks[mark] = id
        # crash point: call-marked
        if deadline < self._sweep_at:
            self._sweep_by(deadline)
        outcome: Outcome | None
        try:
            if entered := callee.enter(call, deadline):
                arguments, event, ctx = entered
                result = await callee.handler(*arguments)
                outcome = callee.leave(call, result, event, ctx) if result is not None or ctx else None
            else:
                outcome = skipped(id)
            if slot.overdue:
                outcome = callee.timed_out(id, None)
        except BaseException as error:
            outcome = callee.timed_out(id, error) if slot.overdue else callee.failed(id, error)
        # crash point: call-ended
        slot.deadline = inf
        slot.overdue = False
        if slot.partial:
            self._output.end(slot)
        if outcome is None:
            self._outbox.ok.append(id)
        else:
            self._outbox.other(outcome)
            if self._outbox.full:
                self._flush()
        slot.call = marks[mark] = 0
        callee.running -= 1
        if callee.parked:
            self._todo.appendleft(callee.parked.popleft())
        if not self._flushing:
            self._burst = monotonic_ns()
            self._flush_soon()

    def _ready(self) -> None:
        """Some slot that is free will run soon; none if all have a call."""
        if self._idle:
            wake = self._idle.pop()
            if not wake.done():
                wake.set_result(None)
        elif len(self._slots) < self._limit:
            slot = CoroutineSlot(len(self._slots))
            self._slots.append(slot)
            self._start(slot)
        else:
            return
        self._coming = True

    def _start(self, slot: CoroutineSlot) -> None:
        slot.task = self._tasks.create_task(self._slot(slot), context=self._context.copy())

    # --- deadlines: one timer for all calls

    def _sweep_by(self, at: float) -> None:
        if self._sweep_timer:
            self._sweep_timer.cancel()
        self._sweep_at = at
        self._sweep_timer = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        now = monotonic()
        late = now - self._sweep_at
        self._sweep_at = inf
        for slot in self._slots:
            if slot.deadline <= now and late > STALLED:
                slot.deadline = now + min(late, MAKES_UP)  # the loop stood still, for another call perhaps
            elif slot.deadline <= now:
                slot.deadline = inf
                slot.overdue = True
                slot.task.cancel()
        nearest = min(slot.deadline for slot in self._slots)
        if nearest < inf:
            self._sweep_by(nearest)

    # --- the socket

    def _readable(self) -> None:
        try:
            bodies = self._inbox.receive(self._sock)
            if bodies is None:
                cut_off()
            for body in bodies:
                match decode_for_executor(body):
                    case Run(calls):
                        self._todo.extend(calls)
                    case Drain():
                        self._draining = True
                        self._flush_soon()
        except BlockingIOError:
            return
        except Exception as error:
            self._ended.set_exception(error)
            return
        if self._todo and not self._coming:
            self._ready()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _printed(self) -> None:
        """From any thread."""
        if not self._flushing:
            self._loop.call_soon_threadsafe(self._flush_soon)

    def _flush(self) -> None:
        """Writes what came together; what the worker does not take yet waits."""
        self._flushing = False
        # crash point: answers-before-write
        self._unsent += self._outbox.take()
        if not self._blocked:
            self._writable()
        # crash point: answers-written
        if self._draining and not self._todo and not any(callee.running for callee in self._callees) and not self._ended.done():
            self._ended.set_result(None)

    def _writable(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._sock, self._writable)
        except OSError:
            cut_off()
        else:
            if self._blocked:
                self._blocked = False
                self._loop.remove_writer(self._sock)


async def _forget_cancellation(task: asyncio.Task[None]) -> None:
    """A cancellation asked for and not delivered would hit the slot's next call."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling():
        task.uncancel()
