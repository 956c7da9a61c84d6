"""Calls one at a time: plain `def` handlers, without an event loop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextvars import copy_context
from math import inf
from time import monotonic, monotonic_ns

from ..frames import Drain, Inbox, Outcome, Run, RunCall, decode_for_executor
from ..output import Output, Slot, current
from .outbox import LINGER_NS, Outbox, cut_off
from .python import Callee, skipped

_LINGER = LINGER_NS / 1e9


class Deadline(BaseException):
    """Raised inside a handler at its deadline. No Exception: `except Exception` in user code must not swallow it."""


class Blocking:
    """The deadline and the flush of outcomes that wait behind a slow call share SIGALRM: one timer, set once a burst or less."""

    def __init__(self, sock: socket.socket, marks: memoryview, callees: Sequence[Callee], output: Output) -> None:
        self._sock = sock
        self._marks = marks
        self._callees = callees
        self._output = output
        self._outbox = Outbox(output)
        self._slot = Slot(0)
        self._live = False  # user code is running
        self._deadline = inf
        self._overdue = False
        self._alarm_at = inf  # when the timer that is set will fire
        self._burst = 0  # ns when the first outcome since the last flush came; 0: nothing to flush

    def serve(self) -> None:
        """Until the worker drains it. Raises ProtocolError."""
        current.set(self._slot)
        self._output.soon = lambda: self._alarm_by(monotonic() + _LINGER)
        self._output.now = self._flush
        signal.signal(signal.SIGALRM, self._alarm)
        inbox = Inbox()
        while (bodies := inbox.receive(self._sock)) is not None:
            for body in bodies:
                match decode_for_executor(body):
                    case Run(calls):
                        for call in calls:
                            self._run(call)
                    case Drain():
                        self._flush()
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        return
            self._flush()
        cut_off()

    def _run(self, call: RunCall) -> None:
        slot = self._slot
        slot.call = call[0]
        callee = self._callees[call[1]]
        marks = self._marks
        now = monotonic_ns()
        if self._burst and now - self._burst > LINGER_NS:
            self._flush()  # before this call is marked: if that ends it all, it is not to blame
        marks[1] = now
        marks[0] = slot.call
        slot.printed = 0
        seconds = now / 1e9
        self._deadline = deadline = seconds + callee.timeout
        outcome: Outcome | None
        try:
            try:
                self._live = True  # before the timer is looked at: an alarm in between sets it anew
                wanted = seconds + _LINGER if self._burst else deadline
                if wanted < self._alarm_at:
                    self._alarm_by(wanted)
                if entered := callee.enter(call, deadline):
                    arguments, event, ctx = entered
                    # 0.4 µs: a context variable that the handler sets is not there for the next call.
                    outcome = callee.leave(call, copy_context().run(callee.handler, *arguments), event, ctx)
                else:
                    outcome = skipped(slot.call)
            finally:
                self._live = False
        except BaseException as error:
            self._live = False  # the alarm may have come in `finally`; it comes once a call
            outcome = callee.timed_out(slot.call, error) if self._overdue else callee.failed(slot.call, error)
        if self._overdue:
            self._overdue = False
            if outcome is None or not outcome.reason:
                outcome = callee.timed_out(slot.call, None)
        if slot.partial:
            self._output.end(slot)
        if outcome is None:
            self._outbox.ok.append(slot.call)
        else:
            self._outbox.other(outcome)
        slot.call = marks[0] = 0
        if not self._burst:
            self._burst = monotonic_ns()
        if self._outbox.full:
            self._flush()

    def _alarm(self, *_: object) -> None:
        self._alarm_at = inf
        if not self._live:
            return
        now = monotonic()
        if now >= self._deadline:
            self._deadline = inf
            self._overdue = True
            raise Deadline
        self._flush()

    def _alarm_by(self, at: float) -> None:
        """An alarm at `at` or before."""
        if at < self._alarm_at:
            self._alarm_at = at
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, at - monotonic()))

    def _flush(self) -> None:
        """An alarm must not end it halfway: half a frame is garbage."""
        live, self._live = self._live, False
        self._burst = 0
        if frames := self._outbox.take():
            try:
                self._sock.sendall(frames)
            except OSError:
                cut_off()
        self._live = live
        if live:
            self._alarm_by(self._deadline)  # one that came meanwhile was ignored
