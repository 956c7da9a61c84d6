"""An executor's life after the fork: takes its hello, enters its modules' lifespans, serves calls until it is drained.

`python -m broker_faas.workers.child` is the same in a fresh interpreter, for modules that cannot be imported before a fork.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import msgspec

from ..errors import ConfigError, ProtocolError
from ..function import discover
from ..invoke import Invocation, classify, prepare
from ..service import new_event_loop
from .frames import MAX_FRAME, VERSION, About, Failed, Hello, Ready, Setup, decode_for_executor, encode
from .output import Output
from .page import marks
from .runtimes.blocking import Blocking
from .runtimes.coroutines import Coroutines
from .runtimes.python import Callee

SOCKET, PAGE = 3, 4  # fds of an executor that is another program


def run(functions: Mapping[str, Invocation], output: Output, sock_fd: int, page_fd: int) -> int:
    """Returns the exit status. Why it cannot work goes to the worker as a `failed` frame."""
    sock = socket.socket(fileno=sock_fd)
    try:
        setup = _hello(sock)
        os.environ.update(setup.env)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()  # `random` does it by itself: siblings must not draw the same numbers
        output.install_logging()
        callees = [Callee(spec, _find(functions, spec.name), setup.project) for spec in setup.functions]
        ready = encode(Ready(About(os.getpid(), [spec.name for spec in setup.functions])))
        if setup.sync:
            with _lifespans(setup):
                sock.sendall(ready)
                Blocking(sock, marks(page_fd), callees, output).serve()
        else:
            coroutines = Coroutines(sock, marks(page_fd), callees, setup.slots, output)
            _run_loop(_with_lifespans(setup, lambda: sock.sendall(ready), coroutines.serve))
    except BaseException as error:
        sock.setblocking(True)
        sock.sendall(encode(_failed(error)))
        return 70
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return 0


def become_interpreter(root: str, modules: list[str], sock_fd: int, page_fd: int) -> NoReturn:
    """main() in a fresh interpreter, with this process's id, group and environment."""
    for fd in (sock_fd, page_fd):
        os.set_inheritable(fd, True)
    options = msgspec.json.encode(Options(root, modules, sock_fd, page_fd)).decode()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "broker_faas.workers.child", options])


def become_command(sock_fd: int, page_fd: int) -> NoReturn:
    """The executor that hello names: another program, with the socket as fd 3 and the page as fd 4. It reads hello itself."""
    sock = socket.socket(fileno=sock_fd)
    size = int.from_bytes(sock.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL), "big")
    hello = decode_for_executor(sock.recv(4 + size, socket.MSG_PEEK | socket.MSG_WAITALL)[4:])
    assert isinstance(hello, Hello)
    # Above both targets first: each may lie where the other belongs.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (sock_fd, page_fd)]
    os.dup2(high[0], SOCKET)
    os.dup2(high[1], PAGE)
    command = hello.setup.command
    try:
        os.execvpe(command[0], command, os.environ | hello.setup.env)
    except OSError as error:
        socket.socket(fileno=high[0]).sendall(encode(Failed(f"command {command[0]!r} cannot be started: {error.strerror}", "")))
        os._exit(70)


class Options(msgspec.Struct, frozen=True):
    root: str
    modules: list[str]
    sock: int
    page: int


def main() -> None:
    """argv[1]: Options as JSON. A module that cannot be imported is passed over: the zygote has reported it."""
    options = msgspec.json.decode(sys.argv[1], type=Options)
    for fd in (options.sock, options.page):
        os.set_inheritable(fd, False)
    sys.path.insert(0, options.root)
    output = Output()
    output.install()
    functions: dict[str, Invocation] = {}
    for module in options.modules:
        with suppress(BaseException):
            functions |= import_functions(module, functions)
    try:
        os._exit(run(functions, output, options.sock, options.page))
    finally:
        os._exit(70)


def import_functions(module: str, known: Mapping[str, Invocation]) -> dict[str, Invocation]:
    """The functions of a module, by name. ConfigError if another one in `known` has the same name, or one cannot be called."""
    found = {function.name: prepare(function) for function in discover(importlib.import_module(module))}
    for name in sorted(found.keys() & known.keys()):
        one, two = known[name].function, found[name].function
        if one is not two:
            raise ConfigError(f"two functions are named {name!r}: {one.location} and {two.location}; rename one, or give it name=…")
    return found


def warm_up() -> None:
    """What every executor does first, done once before the forks: 1 ms less for each."""
    new_event_loop().close()
    setup = Setup(VERSION, "", [], {}, 1, False, [])
    decode_for_executor(bytes(encode(Hello(setup))[4:]))


# --- lifespans ----------------------------------------------------------------------------------------------


class LifespanError(Exception):
    """module: whose lifespan() could not be entered. The cause says why."""


def _lifespan_factories(setup: Setup) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in dict.fromkeys(spec.module for spec in setup.functions):
        if lifespan := getattr(sys.modules.get(name), "lifespan", None):
            yield name, lifespan


@contextmanager
def _lifespans(setup: Setup) -> Iterator[None]:
    """For blocking handlers. An async lifespan gets a loop that runs while it is entered and left."""
    with ExitStack() as stack:
        runner: asyncio.Runner | None = None
        for module, factory in _lifespan_factories(setup):
            with _named(module):
                manager = factory()
                if hasattr(manager, "__aenter__"):
                    runner = runner or stack.enter_context(asyncio.Runner())
                    entered = AsyncExitStack()
                    runner.run(entered.enter_async_context(manager))
                    stack.callback(_leave, runner, entered)
                else:
                    stack.enter_context(manager)
        yield


def _leave(runner: asyncio.Runner, entered: AsyncExitStack) -> None:
    runner.run(entered.aclose())


async def _with_lifespans(setup: Setup, ready: Callable[[], None], serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with AsyncExitStack() as stack:
        for module, factory in _lifespan_factories(setup):
            with _named(module):
                manager = factory()
                if hasattr(manager, "__aenter__"):
                    await stack.enter_async_context(manager)
                else:
                    stack.enter_context(manager)
        ready()
        await serve()


@contextmanager
def _named(module: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raise LifespanError(module) from error


# --- helpers ------------------------------------------------------------------------------------------------


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run, on uvloop where it is installed; but sys.exit() or a KeyboardInterrupt in a task of the user's does not end the loop."""
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt):
            if not task.done():
                traceback.print_exc()
    task.result()


def _hello(sock: socket.socket) -> Setup:
    """Only hello: what follows it is the runtime's to read."""
    size = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
    if size > MAX_FRAME:
        raise ProtocolError(f"hello announces {size:,} bytes")
    match decode_for_executor(sock.recv(size, socket.MSG_WAITALL)):
        case Hello(setup):
            return setup
        case other:
            raise ProtocolError(f"the first frame is {type(other).__name__}, not hello")


def _find(functions: Mapping[str, Invocation], name: str) -> Invocation:
    if name not in functions:
        raise ConfigError(f"function {name!r} is in none of the project's modules")
    return functions[name]


def _failed(error: BaseException) -> Failed:
    prefix = ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LifespanError) and error.__cause__:
        prefix, error = f"lifespan() of {error} failed: ", error.__cause__
    failure = classify(error)
    return Failed(prefix + failure.reason, failure.detail or "".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main()
