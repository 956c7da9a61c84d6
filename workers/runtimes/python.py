"""How a Python function is called: from a run frame's fields to its arguments, from its result to an outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Any

from ...decide import FAILED, OK, SKIPPED, TIMEOUT
from ...event import CloudEvent
from ...function import Context, Spec
from ...invoke import Failure, Invocation, Output, classify, outputs
from ..frames import Outcome, RunCall


class Callee:
    """One function in an executor. spec: with the project's overrides, which the module's own declaration lacks.

    running, parked: of the runtime that overlaps calls.
    """

    __slots__ = (
        "_arguments",
        "_project",
        "_wants_ctx",
        "_where",
        "concurrency",
        "function",
        "handler",
        "name",
        "parked",
        "running",
        "timeout",
    )

    def __init__(self, spec: Spec, invocation: Invocation, project: str) -> None:
        self.function = invocation.function
        self.handler = invocation.handler
        self._arguments = invocation.arguments
        self.name = spec.name
        self.timeout = spec.timeout
        self.concurrency = spec.concurrency
        self._wants_ctx = invocation.wants_ctx
        self._where = invocation.function.where
        self._project = project
        self.running = 0
        self.parked: deque[RunCall] = deque()  # bounded by what the worker lets one executor hold

    def enter(self, call: RunCall, deadline: float) -> tuple[tuple[Any, ...], CloudEvent, Context | None] | None:
        """The handler's arguments, and what leave() wants; None if the function's filter says no. Raises EventInvalid.

        A context is made only for a handler that takes one: 0.4 µs.
        """
        event = CloudEvent.from_headers(call[4], call[5])
        if self._where is not None and not self._where.matches(event):
            return None
        ctx = self._context(event, call, deadline) if self._wants_ctx else None
        return self._arguments(event, ctx), event, ctx

    def leave(self, call: RunCall, result: Any, event: CloudEvent, ctx: Context | None) -> Outcome | None:
        """None: succeeded and sends nothing. Raises Reject if what it returned cannot be sent."""
        if result is None and (ctx is None or not ctx.outputs):
            return None
        sent = outputs(self.function, result, event, ctx or self._context(event, call, inf))
        return _sending(call[0], sent) if sent else None

    def _context(self, event: CloudEvent, call: RunCall, deadline: float) -> Context:
        _, _, topic, attempt, _, _ = call
        return Context(event, function=self.name, topic=topic, attempt=attempt, deadline=deadline, project=self._project)

    def failed(self, call: int, error: BaseException) -> Outcome:
        """Whatever user code raised, SystemExit and KeyboardInterrupt too, is a failed attempt and not the executor's end."""
        try:
            failure = classify(error)
        except BaseException:  # str(error) of the user's own class may raise anything
            failure = Failure(FAILED, type(error).__name__, "", None)
        return Outcome(call, *failure, [])

    def timed_out(self, call: int, error: BaseException | None) -> Outcome:
        """error: what interrupted it; its traceback says where it was."""
        detail = self.failed(call, error).detail if error else ""
        return Outcome(call, TIMEOUT, f"timeout after {self.timeout:g} s", detail, None, [])


def skipped(call: int) -> Outcome:
    return Outcome(call, SKIPPED, "", "", None, [])


def _sending(call: int, sent: Iterable[Output]) -> Outcome:
    return Outcome(call, OK, "", "", None, [(topic, event.attributes.copy(), event.data) for topic, event in sent])
