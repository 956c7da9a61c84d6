"""Run functions, their retries and their outputs in memory: no server, no child process, no waiting for delays.

    async with Harness(reserve, notify) as h:
        await h.publish("orders.created", {"id": 1})
        await h.settled()
        assert h.outputs("orders.reserved")[0].json() == {"id": 1}

    result = await run(reserve, {"id": 1})
    assert result.outcome == "done"

Decoding, outputs, retries and dead letters are decided by the code that decides them in production (invoke.py, decide.py), on a
bus that behaves like the real one (buses/memory.py). A function's `timeout` is real time; delays are skipped.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from . import layout, topics
from .bus import Delivery, Queue
from .buses.memory import MemoryBus, MemorySubscription
from .client import Client
from .decide import OK, SKIPPED, TIMEOUT, decide
from .event import CloudEvent
from .function import Context, Function
from .invoke import Failure, Output, classify, outputs, prepare

NEVER = 1e9  # seconds; leases do not end here, since the clock only moves when nothing runs


class Attempt(NamedTuple):
    """One run of one function on one event.

    outcome: "done"; "discarded": its filter said no; "held" or "scheduled": it runs again after `delay` seconds; "dead".
    reason, detail: what went wrong, in one line and as a traceback.
    """

    function: str
    event: CloudEvent
    number: int
    outcome: str
    delay: float = 0.0
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one event in one function. outcome, reason: the last attempt's. outputs: (topic, event), in order."""

    event: CloudEvent
    attempts: list[Attempt]
    outputs: list[Output]

    @property
    def outcome(self) -> str:
        return self.attempts[-1].outcome

    @property
    def reason(self) -> str:
        return self.attempts[-1].reason


async def run(
    function: Function[Any], data: Any = None, *, topic: str | None = None, timeout: float | None = None, **attributes: Any
) -> Result:
    """One event through one function, with its retries. What it sends is not delivered to anybody.

    data, attributes: as Client.publish() takes them. topic: by default the first that the function listens to.
    timeout: seconds, instead of the function's own.
    """
    topic = topic or function.topics[0].replace("*", "any").replace(">", "any")
    if not any(topics.matches(pattern, topic) for pattern in function.topics):
        raise ValueError(f"{function.name} does not listen to {topic!r}, only to {', '.join(function.topics)}")
    async with Harness(function, timeout=timeout, deliver_outputs=False) as harness:
        event = await harness.publish(topic, data, **attributes)
        await harness.settled()
        return Result(event, harness.attempts(), harness.sent)


class Harness:
    """Functions on a bus in memory: what one sends, the others that listen get. `lifespan()` of their modules is entered.

    timeout: seconds, instead of each function's own. limit: runs in one settled() before it says that functions feed each other.
    """

    def __init__(
        self,
        *functions: Function[Any],
        project: str = "test",
        timeout: float | None = None,
        limit: int = 10_000,
        deliver_outputs: bool = True,
    ) -> None:
        self.sent: list[Output] = []  # (topic, event), in the order the functions sent them
        self._functions = functions
        self._project = project
        self._timeout = timeout
        self._limit = limit
        self._deliver_outputs = deliver_outputs
        self._attempts: list[Attempt] = []
        self._blocked: list[tuple[_Place, Delivery]] = []
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._now = time.time()
        async with AsyncExitStack() as stack:
            self._bus = await stack.enter_async_context(MemoryBus(clock=self._clock).open())
            self._client = Client(self._bus, "/test", clock=self._clock)
            self._delayed = await stack.enter_async_context(self._bus.subscribe(Queue("publish", ()), 1000))
            self._places = []
            for function in self._functions:
                queue = Queue(f"{self._project}--{function.name}", function.topics, function.ordered, ack_wait=NEVER)
                self._places.append(_Place(function, queue, await stack.enter_async_context(self._bus.subscribe(queue, 10_000))))
            for lifespan in filter(None, {_lifespan(function) for function in self._functions}):
                context = lifespan()
                if hasattr(context, "__aenter__"):
                    await stack.enter_async_context(context)
                else:
                    stack.enter_context(context)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._open.__aexit__(*error)

    async def publish(self, topic: str, data: Any = None, **attributes: Any) -> CloudEvent:
        """As Client.publish(), delay= and at= included. Nothing runs before settled()."""
        return await self._client.publish(topic, data, **attributes)

    async def settled(self) -> None:
        """Run what is waiting, and all that follows from it, until every event is done or dead. Delays pass at once.

        An ordered function's event that ran out of attempts with on_failure="block" is left; the next settled() tries it once more.
        Raises AssertionError after `limit` runs.
        """
        for place, delivery in self._blocked:
            place.subscription.settle((), [(delivery, 0)])
        self._blocked.clear()
        started = len(self._attempts)
        while True:
            await self._relay(self._delayed.take())
            work = [(place, delivery) for place in self._places for delivery in place.subscription.take()]
            if work:
                async with asyncio.TaskGroup() as group:
                    for place, delivery in work:
                        group.create_task(self._attempt(place, delivery))
            elif (due := self._bus.due()) is None or due > self._now + NEVER / 2:
                return
            else:
                self._now = max(self._now, due)
                self._bus.wake()
            if len(self._attempts) - started > self._limit:
                counts = Counter(attempt.function for attempt in self._attempts[started:]).most_common(3)
                busiest = ", ".join(f"{name} ({count:,})" for name, count in counts)
                raise AssertionError(
                    f"more than {self._limit:,} runs and events are still waiting; most of them: {busiest}. "
                    "Do their outputs come back to them? If not, give Harness a higher limit."
                )

    def outputs(self, topic: str | None = None) -> list[CloudEvent]:
        """What the functions sent (to one topic), in order."""
        return [event for where, event in self.sent if topic in (None, where)]

    def attempts(self, function: Function[Any] | None = None) -> list[Attempt]:
        """Every run (of one function), in order."""
        return [attempt for attempt in self._attempts if function is None or attempt.function == function.name]

    def dead(self, function: Function[Any] | None = None) -> list[Attempt]:
        """The last attempts of events that became dead letters (of one function)."""
        return [attempt for attempt in self.attempts(function) if attempt.outcome == "dead"]

    def _clock(self) -> float:
        return self._now

    async def _relay(self, due: list[Delivery]) -> None:
        """Delayed publishes whose time has come, as any worker does it."""
        for delivery in due:
            event = CloudEvent.from_headers(delivery.headers, delivery.data)
            await self._bus.publish([layout.event_record(layout.origin(delivery).topic, event)])
        self._delayed.settle(due)

    async def _attempt(self, place: _Place, delivery: Delivery) -> None:
        function, subscription = place.function, place.subscription
        origin = layout.origin(delivery)
        number = origin.attempts + delivery.deliveries
        event = CloudEvent.from_headers(delivery.headers, delivery.data)
        async with place.slots:
            failure, sent = await self._call(place, event, origin.topic, number)
        policy: dict[str, Any] = {"ordered": bool(function.ordered), "on_failure": function.on_failure}
        decision = decide(failure.status, failure.reason, failure.after, number, function.retry, **policy)
        self._attempts.append(Attempt(function.name, event, number, decision.fate, decision.delay, failure.reason, failure.detail))
        self.sent.extend(sent)
        if sent and self._deliver_outputs:
            await self._bus.publish([layout.event_record(topic, output) for topic, output in sent], output=True)
        match decision.fate:
            case "held" if function.retry.delay(number) is None:
                self._blocked.append((place, delivery))
            case "held":
                subscription.settle((), [(delivery, decision.delay)])
            case "scheduled":
                await self._bus.publish([layout.retry_record(place.queue, delivery, number, self._now + decision.delay)], output=True)
                subscription.settle([delivery])
            case _:
                subscription.settle([delivery])

    async def _call(self, place: _Place, event: CloudEvent, topic: str, number: int) -> tuple[Failure, list[Output]]:
        function = place.function
        if function.where is not None and not function.where.matches(event):
            return Failure(SKIPPED, "", "", None), []
        seconds = self._timeout or function.timeout
        deadline = time.monotonic() + seconds
        ctx = Context(event, function=function.name, topic=topic, attempt=number, deadline=deadline, project=self._project)
        try:
            arguments = place.invocation.arguments(event, ctx)
            async with asyncio.timeout(seconds) as limit:
                # A plain function may call asyncio.run(), so it gets a thread; past its timeout that thread is left behind.
                result = await (asyncio.to_thread(function.handler, *arguments) if function.sync else function.handler(*arguments))
            if not limit.expired():
                return Failure(OK, "", "", None), outputs(function, result, event, ctx)
        except Exception as error:
            if not (isinstance(error, TimeoutError) and limit.expired()):
                return classify(error), []
        return Failure(TIMEOUT, f"timeout after {seconds:g} s", "", None), []


class _Place:
    """A function and its queue."""

    def __init__(self, function: Function[Any], queue: Queue, subscription: MemorySubscription) -> None:
        self.function = function
        self.queue = queue
        self.subscription = subscription
        self.invocation = prepare(function)
        self.slots = asyncio.Semaphore(1 if function.sync else function.concurrency)


def _lifespan(function: Function[Any]) -> Any:
    """What the handler's module offers to be entered before its functions run, once an executor; None if it offers nothing."""
    return getattr(inspect.unwrap(function.handler), "__globals__", {}).get("lifespan")
