"""Pool: the executors of one group of functions in this worker. Who runs what, how many there are, and who is to blame.

Calls wait here until an executor has room. An executor gets as many as it will finish in LOOKAHEAD seconds beyond what
it can overlap, so that frames are large under load and nothing queues behind a slow call. The pool grows when calls
have waited GROW_AFTER, and shrinks to nothing when idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic

from ..decide import CRASHED, TIMEOUT
from ..errors import ExecutorError
from .executor import Call, Executor, Exit, Group, Outcome

log = logging.getLogger(__name__)

LOOKAHEAD = 0.05  # seconds of work an executor may have queued
GROW_AFTER = 0.025  # seconds a call waits before another executor is worth its fork (1.5 ms, 7 MB)
IDLE = 60.0  # seconds without a call before an executor ends
CLOSE = 5.0  # seconds for executors to leave their lifespan
KILL_AFTER = 2.0  # seconds between the deadline (the executor cancels) and SIGKILL to its process group
WINDOW = 2000  # calls one executor may hold: frames of 500 stay below its 32 MiB with 16 KiB events
WINDOW_BYTES = 8 << 20  # bytes of calls one executor may hold; a single larger call is still sent

Fork = Callable[[Group, "Pool"], Awaitable[Executor]]
Settle = Callable[[list[tuple[Call, Outcome]]], None]


class Pool:
    """size: executors at most. fork: makes one. settle: called with every outcome, exactly once a call.

    recycle_events, recycle_bytes: an executor ends after so many events, or above so much memory; 0: never.
    """

    def __init__(
        self,
        group: Group,
        size: int,
        fork: Fork,
        settle: Settle,
        tasks: asyncio.TaskGroup,
        recycle_events: int = 0,
        recycle_bytes: int = 0,
    ) -> None:
        self.group = group
        self.size = size
        self.rate = 0.0  # outcomes a second of one executor, smoothed
        self._fork = fork
        self._settle = settle
        self._tasks = tasks
        self._recycle_events = recycle_events
        self._recycle_bytes = recycle_bytes
        self._waiting: deque[tuple[float, Call]] = deque()
        self._suspects: deque[Call] = deque()  # their last executor died under them: each runs alone now
        self._executors: dict[Executor, float] = {}  # → when it last had something to do
        self._alone: dict[Executor, int] = {}  # executors that run one suspect and nothing else → its call
        self._retired: set[Executor] = set()  # they finish what they have
        self._overdue: dict[Executor, int] = {}  # killed for this call's deadline
        self._forking = 0
        self._failures = 0
        self._not_before = 0.0
        self._closed = False
        self._gone = asyncio.Event()  # set when an executor ended or did not start
        self._answered = 0
        self._measured = monotonic()
        self._overlap = 1 if group.sync else max((spec.concurrency for spec in group.functions), default=1)

    @property
    def executors(self) -> list[Executor]:
        return [*self._executors, *self._alone, *self._retired]

    @property
    def calls(self) -> int:
        """Calls without an outcome."""
        return len(self._waiting) + len(self._suspects) + sum(len(e.inflight) for e in self.executors)

    def submit(self, calls: list[Call], *, alone: bool = False) -> None:
        if alone:
            self._suspects.extend(calls)
        else:
            now = monotonic()
            self._waiting.extend((now, call) for call in calls)
        self._pump()

    async def close(self) -> None:
        """Ends every executor in order, lifespan included; they have CLOSE seconds. Its calls are over."""
        self._closed = True
        for executor in [*self._executors]:
            self._retire(executor)
        try:
            async with asyncio.timeout(CLOSE):
                while self.executors or self._forking:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            self.kill("did not end when asked to")

    def kill(self, why: str) -> None:
        self._closed = True
        for executor in self.executors:
            executor.kill(why)

    # --- what executors report

    def outcomes(self, executor: Executor, pairs: list[tuple[Call, Outcome]]) -> None:
        if self._closed:
            return  # its events were handed back
        self._answered += len(pairs)
        self._failures = 0
        if not executor.inflight:
            self._alone.pop(executor, None)  # it survived the suspect: an executor like any other
            if executor not in self._retired:
                self._executors[executor] = monotonic()
        self._settle(pairs)
        if self._suspects:
            self._run_suspect()
        if len(self._executors) > self.size and executor in self._executors and not executor.inflight:
            self._retire(executor)  # it was forked for a suspect
        self._pump()

    def exited(self, executor: Executor, exit: Exit) -> None:
        """Only what a call did itself is charged to it: its deadline, or a crash while nothing else ran."""
        self._executors.pop(executor, None)
        self._retired.discard(executor)
        self._gone.set()
        alone = self._alone.pop(executor, None)
        if self._closed:
            return
        overdue = self._overdue.pop(executor, None)
        left = dict(executor.inflight)
        charged: list[tuple[Call, Outcome]] = []
        if overdue is not None:
            if call := left.pop(overdue, None):  # else it ended at the last moment
                timeout = self.group.functions[call.function].timeout
                reason = f"still running {KILL_AFTER:g} s after its deadline of {timeout:g} s: killed"
                charged.append((call, Outcome(call.id, TIMEOUT, reason, "", None, [])))
        elif exit.zygote_died:
            log.warning("zygote died; its executors went with it, nothing is charged", extra={"pool": self.group.name, "calls": len(left)})
        else:
            running = [left.pop(id) for id in [*left] if id in exit.running or id == alone]
            if len(running) == 1:
                call = running[0]
                charged.append((call, Outcome(call.id, CRASHED, f"executor ended while running it: {exit.reason}", "", None, [])))
            else:
                self._suspects.extend(running)
            if not running:
                self._back_off()
            if left or running:
                log.warning(
                    "executor died", extra={"pool": self.group.name, "reason": exit.reason, "running": len(running), "uncharged": len(left)}
                )
        now = monotonic()
        self._waiting.extendleft((now, call) for call in reversed(left.values()))
        if charged:
            self._settle(charged)
        self._pump()

    # --- what time brings

    def tick(self, now: float) -> None:
        """Deadlines, growth, idleness. Called every 25 ms while there are calls, every 250 ms otherwise."""
        if now - self._measured >= 0.1:
            fresh = self._answered / (now - self._measured) / max(1, len(self._executors))
            self.rate = fresh if fresh > self.rate else self.rate * 0.7 + fresh * 0.3
            self._answered, self._measured = 0, now
        for executor in self.executors:
            if executor.inflight:
                self._kill_overdue(executor, now)
            if executor in self._executors and (self._is_worn(executor) or self._is_idle(executor, now)):
                self._retire(executor)
        if self._waiting and now - self._waiting[0][0] > GROW_AFTER and not self._forking:
            self._grow()
        self._pump()

    def _kill_overdue(self, executor: Executor, now: float) -> None:
        if executor in self._overdue:
            return
        for id, started in executor.running().items():
            call = executor.inflight.get(id)
            if call and now > started + self.group.functions[call.function].timeout + KILL_AFTER:
                self._overdue[executor] = id
                log.warning("call ignores its deadline; executor killed", extra={"function": self.group.functions[call.function].name})
                return executor.kill("deadline")

    # --- who runs what

    def _window(self) -> int:
        return min(WINDOW, self._overlap + int(self.rate * LOOKAHEAD))

    def _pump(self) -> None:
        if self._suspects:
            self._run_suspect()
        if not self._waiting:
            return
        if not self._executors:
            return self._grow() if not self._forking else None
        window = self._window()
        free = sorted((e for e in self._executors if not e.paused), key=lambda e: len(e.inflight))
        share = -(-(len(self._waiting) + sum(len(e.inflight) for e in free)) // max(1, len(free)))  # evenly, not all to the first
        for executor in free:
            room = min(window, share) - len(executor.inflight)
            size = executor.inflight_bytes
            calls: list[Call] = []
            while room > len(calls) and self._waiting:
                _, call = self._waiting[0]
                size += len(call.data) + len(call.headers)
                if size > WINDOW_BYTES and (calls or executor.inflight):
                    break
                self._waiting.popleft()
                calls.append(call)
            if calls:
                executor.run(calls)

    def _run_suspect(self) -> None:
        """One suspect an executor. An idle executor serves; else one more is forked, even beyond `size`."""
        for executor in [e for e in self._executors if not e.inflight and not e.paused]:
            if not self._suspects:
                return
            call = self._suspects.popleft()
            del self._executors[executor]
            self._alone[executor] = call.id
            executor.run([call])
        if self._suspects and len(self._alone) + self._forking < 2:
            self._grow(even_if_full=True)

    # --- how many

    def _grow(self, even_if_full: bool = False) -> None:
        if self._closed or monotonic() < self._not_before:
            return  # tick() asks again
        if not even_if_full and len(self._executors) + self._forking >= self.size:
            return
        self._forking += 1
        self._tasks.create_task(self._add())

    async def _add(self) -> None:
        try:
            executor = await self._fork(self.group, self)
        except ExecutorError as error:  # e.g. its lifespan failed: the events wait on the bus, and lag shows it
            self._back_off()
            wait = round(self._not_before - monotonic(), 1)
            log.error("executor did not start", extra={"pool": self.group.name, "reason": str(error), "retry_s": wait})
            return
        finally:
            self._forking -= 1
            self._gone.set()
        self._executors[executor] = monotonic()
        if self._closed:
            return self._retire(executor)
        self._pump()

    def _back_off(self) -> None:
        """An executor that died with nothing to blame it on: the next one waits 0.5, 1, 2, … 30 s. Any outcome resets it."""
        self._failures += 1
        self._not_before = monotonic() + min(30.0, 0.25 * 2**self._failures)

    def _is_idle(self, executor: Executor, now: float) -> bool:
        return not executor.inflight and now - self._executors[executor] > IDLE

    def _is_worn(self, executor: Executor) -> bool:
        if self._recycle_events and executor.events >= self._recycle_events:
            return True
        return bool(self._recycle_bytes and executor.rss() > self._recycle_bytes)

    def _retire(self, executor: Executor) -> None:
        """It answers what it has and exits; new calls go to others."""
        del self._executors[executor]
        self._retired.add(executor)
        executor.drain()
