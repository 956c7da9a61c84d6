"""Pool: the executors of one group of functions in this worker. Who runs what, how many there are, and who is to blame.

Calls wait here, each function's by themselves, until an executor has room. Of every function an executor gets as many as it
will finish in LOOKAHEAD seconds beyond what it can overlap, so that frames are large under load, nothing queues behind a slow
call, and a slow function takes no room from another. The pool grows when calls have waited GROW_AFTER, and shrinks to nothing
when idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import monotonic

from ..decide import CRASHED, TIMEOUT
from ..errors import ExecutorError
from .executor import Call, Executor, Exit, Group, Outcome

log = logging.getLogger(__name__)

LOOKAHEAD = 0.05  # seconds of work an executor may have queued
REFILL = 0.75  # of its window: an executor that holds more gets nothing yet, and then several calls in one frame
SPREAD = 0.001  # seconds of work that stay together: one frame to one executor costs less than two, and nobody waits longer for it
GROW_AFTER = 0.025  # seconds that calls wait before another executor is worth its fork (1.5 ms, 7 MB)
MEASURE = 0.1  # seconds over which rates are taken, if calls are many
SICK_AFTER = 3  # executors in a row that did not start or died with nothing to blame it on
IDLE = 60.0  # seconds without a call before an executor ends
CLOSE = 5.0  # seconds for executors to leave their lifespan
KILL_AFTER = 2.0  # seconds between the deadline (the executor cancels) and SIGKILL to its process group
WINDOW = 2000  # calls one executor may hold
WINDOW_BYTES = 8 << 20  # bytes of calls one executor may hold; a single larger call is still sent

Fork = Callable[[Group, "Pool"], Awaitable[Executor]]
Settle = Callable[[list[list[Call]], list[tuple[Call, Outcome]]], None]


class Pool:
    """size: executors at most. fork: makes one. settle: called with every call once: those that are done, by function, and other outcomes.

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
        self._fork = fork
        self._settle = settle
        self._tasks = tasks
        self._recycle_events = recycle_events
        self._recycle_bytes = recycle_bytes
        self._waiting: dict[int, deque[Call]] = {}  # of functions that have some
        self._since: dict[int, float] = {}  # since when
        self._suspects: deque[Call] = deque()  # bounded by what feeds hold. Their last executor died under them: each runs alone now
        self._executors: dict[Executor, float] = {}  # → when it last had something to do
        self._alone: dict[Executor, int] = {}  # executors that run one suspect and nothing else → its call
        self._retired: set[Executor] = set()  # they finish what they have
        self._overdue: dict[Executor, int] = {}  # killed for this call's deadline; 0: one of several that were running
        self._forks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._not_before = 0.0
        self._closed = False
        self._gone = asyncio.Event()  # set when an executor ended or did not start
        self._overlap = [1 if group.sync else spec.concurrency for spec in group.functions]
        self._rates = [0.0] * len(self._overlap)  # outcomes a second of one executor, smoothed
        self._answered = [0] * len(self._overlap)
        self._since_measured = 0
        self._enough = sum(self._overlap)  # answers after which the rates are taken anew
        self._measured = monotonic()

    @property
    def executors(self) -> list[Executor]:
        return [*self._executors, *self._alone, *self._retired]

    @property
    def calls(self) -> int:
        """Calls without an outcome."""
        return sum(map(len, self._waiting.values())) + len(self._suspects) + sum(len(e.inflight) for e in self.executors)

    @property
    def sick(self) -> bool:
        """No executor can be had for now. Another node may be luckier."""
        return self._failures >= SICK_AFTER and not self.executors and not self._forks

    def withdraw(self, function: int) -> list[Call]:
        """The calls of this function that no executor has; they are not this pool's any more."""
        self._since.pop(function, None)
        return [*self._waiting.pop(function, ())]

    def submit(self, calls: Sequence[Call], *, alone: bool = False) -> None:
        """calls: of one function."""
        if alone:
            self._suspects.extend(calls)
        else:
            self._queue(calls[0].function).extend(calls)
        self._pump()

    async def close(self) -> None:
        """Ends every executor in order, lifespan included; they have CLOSE seconds. Its calls are over."""
        self._closed = True
        for fork in self._forks:
            fork.cancel()
        for executor in [*self._executors]:
            self._retire(executor)
        try:
            async with asyncio.timeout(CLOSE):
                while self.executors or self._forks:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            self.kill("did not end when asked to")

    def kill(self, why: str) -> None:
        self._closed = True
        for fork in self._forks:
            fork.cancel()
        for executor in self.executors:
            executor.kill(why)

    # --- what executors report

    def outcomes(self, executor: Executor, done: list[list[Call]], others: list[tuple[Call, Outcome]]) -> None:
        if self._closed:
            return  # its events were handed back
        for function, calls in enumerate(done):
            self._answered[function] += len(calls)
            self._since_measured += len(calls)
        for call, _ in others:
            self._answered[call.function] += 1
        self._since_measured += len(others)
        if self._since_measured >= self._enough:
            self._measure(monotonic())
        self._failures = 0
        if not executor.inflight:
            self._alone.pop(executor, None)  # it survived the suspect: an executor like any other
            if executor not in self._retired:
                self._executors[executor] = monotonic()
        self._settle(done, others)
        if self._suspects:
            self._run_suspect()
        if self._recycle_events and executor.events >= self._recycle_events and executor in self._executors:
            self._retire(executor)
        if others and executor in self._executors and any(outcome.status == TIMEOUT for _, outcome in others) and executor.has_children():
            self._retire(executor)  # what a call that was interrupted had started ends with its executor
        if len(self._executors) > self.size and executor in self._executors and not executor.inflight:
            self._retire(executor)  # it was forked for a suspect
        self._pump()

    def exited(self, executor: Executor, exit: Exit) -> None:
        """Only what a call did itself is charged to it: its deadline, or an end while nothing else ran.

        Where one of several is to blame, each of them runs alone, and the guilty one shows.
        Where nobody is to blame, the calls run again; those to which that happens twice run alone from then on.
        """
        self._executors.pop(executor, None)
        asked_to = executor in self._retired
        self._retired.discard(executor)
        self._gone.set()
        alone = self._alone.pop(executor, None)
        if self._closed:
            return
        left = dict(executor.inflight)
        running = {id for id in left if id in exit.running or id == alone}
        guilty, outcome = self._guilty(exit, running, alone, self._overdue.pop(executor, None))
        charged = left.pop(guilty, None)
        if charged is None:
            for call in left.values():
                call.deaths += call.id in running or not exit.zygote_died
        if not running and not exit.zygote_died and (left or not asked_to):
            self._back_off()
        if left or charged:
            fields = {"pool": self.group.name, "reason": exit.reason, "running": len(running), "uncharged": len(left)}
            log.warning("executor died", extra=fields)
        several = len(running) > 1 and not exit.zygote_died and charged is None
        suspects = {id for id, call in left.items() if call.deaths > 1 or (several and id in running)}
        self._suspects.extend(left[id] for id in suspects)
        self._wait_again([call for id, call in left.items() if id not in suspects])
        if charged:
            self._settle([], [(charged, outcome._replace(call=charged.id))])
        self._pump()

    def _guilty(self, exit: Exit, running: set[int], alone: int | None, overdue: int | None) -> tuple[int, Outcome]:
        """The call to charge (0: none), and with what."""
        one = next(iter(running)) if len(running) == 1 else 0
        if overdue is not None:
            return overdue or one, Outcome(0, TIMEOUT, f"still running {KILL_AFTER:g} s after its deadline: killed", "", None, [])
        if exit.zygote_died:
            reason = f"the process that executors are forked from died while only it ran: {exit.reason}"
            return alone or 0, Outcome(0, CRASHED, reason, "", None, [])
        reason = f"executor ended while running it: {exit.reason}"
        return one, Outcome(0, CRASHED, reason, "", None, [])

    # --- what time brings

    def tick(self, now: float) -> None:
        """Deadlines, growth, idleness. Called every 25 ms while there are calls, every 250 ms otherwise."""
        if now - self._measured >= 1.0:
            self._measure(now)
        for executor in self.executors:
            if executor.inflight:
                self._kill_overdue(executor, now)
            if executor in self._executors and (self._is_worn(executor) or self._is_idle(executor, now)):
                self._retire(executor)
        if self._since and now - min(self._since.values()) > GROW_AFTER:
            self._grow(max(-(-len(waiting) // self._overlap[function]) for function, waiting in self._waiting.items()))
        self._pump()

    def _kill_overdue(self, executor: Executor, now: float) -> None:
        if executor in self._overdue:
            return
        running = executor.running()
        for id, started in running.items():
            call = executor.inflight.get(id)
            if call and now > (deadline := started + self.group.functions[call.function].timeout) + KILL_AFTER:
                # What answered or began a call after this one's deadline had cancelled it by then. What did not hangs in one of those
                # it was in, perhaps another: a coroutine that does not yield keeps its neighbours from their ends.
                sure = len(running) == 1 or max(executor.moved, *running.values()) > deadline
                self._overdue[executor] = id if sure else 0
                log.warning("call ignores its deadline; executor killed", extra={"function": self.group.functions[call.function].name})
                return executor.kill("deadline")

    def _measure(self, now: float) -> None:
        """How fast calls end: over a second, or over the first few rounds, if that takes less."""
        share = 1 / max(0.001, now - self._measured) / max(1, len(self._executors))
        self._rates = [max(n * share, (rate + n * share) / 2) for n, rate in zip(self._answered, self._rates, strict=True)]
        self._answered, self._measured = [0] * len(self._answered), now
        self._since_measured, self._enough = 0, int(sum(self._overlap) + sum(self._rates) * MEASURE) * max(1, len(self._executors))

    # --- who runs what

    def _wait_again(self, calls: Iterable[Call]) -> None:
        """Before those that wait already."""
        for call in reversed([*calls]):
            self._queue(call.function).appendleft(call)

    def _queue(self, function: int) -> deque[Call]:
        waiting = self._waiting.get(function)
        if waiting is None:
            waiting = self._waiting[function] = deque()  # bounded by what feeds hold
            self._since[function] = monotonic()
        return waiting

    def _pump(self) -> None:
        if self._suspects:
            self._run_suspect()
        if not self._waiting:
            return
        if not self._executors:
            return self._grow() if not self._forks else None
        free = [executor for executor in self._executors if not executor.paused]
        batches: dict[Executor, list[Call]] = {executor: [] for executor in free}
        sizes = {executor: executor.inflight_bytes for executor in free}
        for function, waiting in [*self._waiting.items()]:
            window = min(WINDOW, self._overlap[function] + int(self._rates[function] * LOOKAHEAD))
            free.sort(key=lambda executor: -executor.load[function])
            evenly = -(-(len(waiting) + sum(executor.load[function] for executor in free)) // max(1, len(free)))
            share = max(evenly, int(self._rates[function] * SPREAD))
            for executor in free:
                if executor.load[function] > max(self._overlap[function], window * REFILL):
                    continue
                batch = batches[executor]
                room = min(window, share) - executor.load[function]
                if self._recycle_events:
                    room = min(room, self._recycle_events - executor.events - len(executor.inflight) - len(batch))
                size = sizes[executor]
                while room > 0 and waiting:
                    call = waiting.popleft()
                    size += len(call.data) + len(call.headers)
                    if size > WINDOW_BYTES and (batch or executor.inflight):
                        waiting.appendleft(call)
                        break
                    batch.append(call)
                    room -= 1
                sizes[executor] = size
            if not waiting:
                del self._waiting[function], self._since[function]
        for executor, batch in batches.items():
            if batch:
                executor.run(batch)

    def _run_suspect(self) -> None:
        """One suspect an executor. An idle executor serves; else one more is forked, even beyond `size`."""
        for executor in [e for e in self._executors if not e.inflight and not e.paused]:
            if not self._suspects:
                return
            call = self._suspects.popleft()
            del self._executors[executor]
            self._alone[executor] = call.id
            executor.run([call])
        if self._suspects and len(self._alone) + len(self._forks) < 2:
            self._grow(even_if_full=True)

    # --- how many

    def _grow(self, wanted: int = 1, *, even_if_full: bool = False) -> None:
        """Executors on their way become `wanted`, as far as `size` goes."""
        if self._closed or monotonic() < self._not_before:
            return  # tick() asks again
        room = 1 if even_if_full else self.size - len(self._executors) - len(self._forks)
        for _ in range(min(wanted - len(self._forks), room)):
            fork = self._tasks.create_task(self._add())
            self._forks.add(fork)
            fork.add_done_callback(self._forked)

    def _forked(self, fork: asyncio.Task[None]) -> None:
        self._forks.discard(fork)
        self._gone.set()
        if not self._closed and not fork.cancelled():
            self._pump()

    async def _add(self) -> None:
        try:
            executor = await self._fork(self.group, self)
        except ExecutorError as error:  # e.g. its lifespan failed: the events wait, and lag shows it
            self._back_off()
            wait = round(self._not_before - monotonic(), 1)
            log.error("executor did not start", extra={"pool": self.group.name, "reason": str(error), "retry_s": wait})
            return
        self._executors[executor] = monotonic()
        if self._closed:
            self._retire(executor)

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
