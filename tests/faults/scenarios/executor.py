"""Poison under load: events whose function crashes, hangs or fills its executor. Each becomes one dead letter; nobody else notices."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterable, Mapping

from ...helpers import eventually
from .. import checks, steps
from ..ledger import HANDLER, Ledgers
from ..run import Run
from ..scenario import scenario

ATTEMPTS = 2
EVERY = 40  # of so many events of a producer one is poison; 8 producers, one after the other: each kind comes soon


def kind(id: str, kinds: list[str], every: int) -> str:
    """The deed of this event, "" if it is none. Its source is part of the functions under test."""
    producer, n = map(int, id[1:].split("-"))
    return kinds[(producer + 8 * (n // every)) % len(kinds)] if n % every == (producer + 1) * every // 9 else ""


# `plain` and `blocking` do what their event says; `ordered` shares its executors with `plain`, and has nothing to do with it.
POISON = """
import asyncio, ctypes, os, re, resource, signal, socket, subprocess, sys, threading
from broker_faas import Reject, RetryPolicy, function

KINDS = {kinds!r}
RETRY = RetryPolicy(max_attempts={attempts}, min_backoff=0.1)
leaked = []

{kind}

def worker_socket():
    for fd in range(3, 256):
        try:
            one = socket.socket(fileno=os.dup(fd))
            one.getpeername()
            if one.type == socket.SOCK_STREAM:
                return fd
        except OSError:
            pass

def forever():
    while True:
        try:
            while True: pass
        except Exception:
            pass

def act(deed):
    match deed:
{deeds}

@function(on="load", concurrency=16, timeout={timeout}, retry=RETRY, sends="out")
async def plain(event, ctx):
    start(event, ctx)
    if deed := kind(event.id, KINDS, {every}):
        return act(deed)
    await asyncio.sleep(0.01)
    end(event, ctx)

@function(on="load", concurrency=2, timeout={timeout}, retry=RETRY, sends="out")
def blocking(event, ctx):
    start(event, ctx)
    if deed := kind(event.id, KINDS, {every}):
        return act(deed)
    end(event, ctx)

@function(on="load", ordered=True, timeout={timeout})
async def ordered(event, ctx):
    start(event, ctx)
    await asyncio.sleep(0.01)
    end(event, ctx)
"""


def poison(
    deeds: Mapping[str, tuple[str, str, int]], *, timeout: float = 5.0, every: int = EVERY, waits: float = 5.0
) -> Mapping[str, object]:
    """Options of a scenario. deeds: kind → what is done, the reason it dies of (a regular expression), and after how many attempts.

    waits: seconds that all its attempts together may wait for an executor.
    """
    body = "\n".join(f"        case {name!r}:\n            {code}" for name, (code, _, _) in deeds.items())
    kinds = [*deeds]

    def after(run: Ledgers) -> Iterable[tuple[str, str]]:
        of: Callable[[str], str] = lambda id: kind(id, kinds, every)  # noqa: E731
        for function in ("plain", "blocking"):
            yield from checks.reasons(run, function, {name: (reason, n) for name, (_, reason, n) in deeds.items()}, of)
        yield from checks.uncharged(run, lambda id: bool(of(id)))
        # Once more than its attempts: when it took others with it, each of them runs alone before one is charged.
        yield from checks.leaves(run, (ATTEMPTS + 1) * (timeout + 2.0) + 0.2 + waits)

    app = HANDLER + POISON.format(kinds=kinds, attempts=ATTEMPTS, kind=inspect.getsource(kind), deeds=body, timeout=timeout, every=every)
    return {
        "app": app, "functions": ("plain", "blocking", "ordered"), "dying": ("plain", "blocking"), "after": after,
        "doomed": lambda id: bool(kind(id, kinds, every)), "short_lease": 10.0,
    }  # fmt: skip


async def _until_all_came(run: Run, kinds: int, *, deaths: bool, every: int = EVERY, long: int = 10) -> None:
    """Each kind at least twice; in the long form `long` times that. deaths: each attempt ends an executor, with what it had just done."""
    rounds = max(1, -(-2 * kinds // 8)) * run.times(long, short=1)
    async with run.fault("poison") as seen:
        while run.published < 8 * every * rounds:
            await run.pause(0.1, 0.2)
        if deaths:
            run.duplicates += 8 * (rounds + 2) * 2 * (ATTEMPTS + 1) * 4  # those whose outcomes were not written yet
        seen(f"{8 * rounds} events that are poison for two functions")


ENDED = "executor ended while running it: "
CRASHES = {
    "exit 0": ("os._exit(0)", ENDED + "exit code 0", ATTEMPTS),
    "exit 3": ("os._exit(3)", ENDED + "exit code 3", ATTEMPTS),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", ENDED + "SIGKILL", ATTEMPTS),
    "abort": ("os.abort()", ENDED + "SIGABRT", ATTEMPTS),
    "segfault": ("ctypes.string_at(0)", ENDED + "SIGSEGV", ATTEMPTS),
    "close": ("os.closerange(3, 256); time.sleep(30)", ENDED + "(closed its socket|exit code 70)", ATTEMPTS),
    "garbage": ('os.write(worker_socket(), b"GET / HTTP/1.1" * 9); time.sleep(30)', ENDED + "wrote garbage to its socket", ATTEMPTS),
    "daemon": ("os.fork() or os.fork() or time.sleep(600); os._exit(1)", ENDED + "exit code 1", ATTEMPTS),
}


@scenario(
    "F36",
    "events end the executor they run in, in 8 ways: each is a dead letter with its reason, their neighbours run again uncharged",
    proves=("I-P2", "I-P3", "I-D1", "I-O1"),
    **poison(CRASHES),
)
async def crashes(run: Run) -> None:
    await _until_all_came(run, len(CRASHES), deaths=True)


FAILURES = {
    "sys.exit": ("sys.exit(3)", "SystemExit: 3", ATTEMPTS),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", ATTEMPTS),
    "recursion": ("(lambda f: f(f))(lambda f: f(f))", "RecursionError", ATTEMPTS),
    "memory": ('resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); b"x" * (2 << 30)', "MemoryError", ATTEMPTS),
    "reject": ('raise Reject("never")', "never", 1),
    "unserialisable": ("return threading.Lock()", "returned lock that cannot be sent", 1),
    "too large": ('return "x" * (3 << 19)', "its output cannot be published", 1),
    "prints": ('[os.write(1, b"x" * (1 << 20)) for _ in range(50)]; raise ValueError("printed")', "ValueError: printed", ATTEMPTS),
    "leaks": (
        'resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); [leaked.append(open("/dev/null")) for _ in range(300)]',
        r"OSError: \[Errno 24\]", ATTEMPTS,
    ),
}  # fmt: skip


@scenario(
    "F37",
    "events fail in 9 ways, from sys.exit to 50 MB of output: each is a dead letter with its reason, at once if it can never succeed",
    proves=("I-P1", "I-P3", "I-P8", "I-B1"),
    **poison(FAILURES),
)
async def failures(run: Run) -> None:
    await _until_all_came(run, len(FAILURES), deaths=False)


LATE = r"timeout after [\d.]+ s|still running 2 s after its deadline"
HANGS = {
    "loop": ("forever()", LATE, ATTEMPTS),
    "regex": ('re.match(r"(a+)+$", "a" * 40 + "b")', LATE, ATTEMPTS),
    "blocks SIGTERM": ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); forever()", LATE, ATTEMPTS),
    "child": ('subprocess.run(["sleep", "600"])', LATE, ATTEMPTS),
}


@scenario(
    "F38",
    "events hang in a loop, in C, in a child, with every signal blocked: they and what they started end with their deadline",
    proves=("I-L7", "I-P1", "I-D1", "I-O1"),
    alone=True,
    **poison(HANGS, timeout=0.5, every=160, waits=10.0),  # for one another: a worker runs two suspects at a time
)
async def hangs(run: Run) -> None:
    await _until_all_came(run, len(HANGS), deaths=True, every=160)


BOMBS = {
    "fork bomb": (
        "while True:\n                try: os.fork()\n                except OSError: time.sleep(0.2)", LATE, ATTEMPTS,
    ),
    # Under its limit the kernel looks for pages to free before it kills, and that may take longer than the call has.
    "memory hog": ('leaked.append(b"x" * (1 << 30))', f"{ENDED}SIGKILL|{LATE}", ATTEMPTS),
}  # fmt: skip


@scenario(
    "F37-limits",
    "events start as many processes, or take as much memory, as their control group allows: they alone end, and are dead letters",
    needs=("root", "cgroup"),
    proves=("I-P2", "I-B1", "I-X5"),
    short=False,
    alone=True,
    quiet=300.0,  # for minutes little else runs
    **poison(BOMBS, timeout=2.0, every=2000, waits=20.0),  # while a bomb fills its group, nothing can be forked there
)
async def bombs(run: Run) -> None:
    for worker in run.workers:
        await run.until_over.enter_async_context(steps.limited(run, worker, "pids", "pids.max", 60))
        await run.until_over.enter_async_context(steps.limited(run, worker, "memory", "memory.limit_in_bytes", 400 << 20))
    await _until_all_came(run, len(BOMBS), deaths=True, every=2000, long=4)


def _kills_workers(id: str) -> bool:
    return id == "p3-20"


@scenario(
    "P2-worker",
    "an event kills the worker that runs it: after so many deliveries it is dead, and those that were there with it are not",
    proves=("I-P2", "I-D1"),
    short=False,
    lease=4.0,
    app=HANDLER
    + """
import asyncio, os, signal
from broker_faas import RetryPolicy, function

@function(on="load", concurrency=16, retry=RetryPolicy(max_attempts=2))
async def plain(event, ctx):
    start(event, ctx)
    if event.id == "p3-20":
        zygote = os.getppid()
        with open(f"/proc/{zygote}/stat") as stat:
            os.kill(int(stat.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
        time.sleep(60)
    await asyncio.sleep(0.01)
    end(event, ctx)
""",
    functions=("plain",),
    ordered=(),
    doomed=_kills_workers,
    exits=(-signal.SIGKILL,),
    after=lambda run: checks.reasons(run, "plain", {"kills": ("delivered 8 times without an outcome", 8)}, lambda id: "kills"),
)
async def kills_workers(run: Run) -> None:
    async with run.fault("an event that kills workers") as seen:
        await eventually(lambda: sum(status == -signal.SIGKILL for worker in run.workers for status, _ in worker.exits) >= 7, 90)
        run.duplicates += 7 * run.in_flight
        seen("workers died")
