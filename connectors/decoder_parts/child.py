"""The inside of a decoder's process: imports the project's function once, then answers batches. One thread, no event loop.

`python -P -m broker_faas.connectors.decoder_parts.child OPTIONS`; frames.py has what goes over its socket. In the page, which the host
sees as well, stands which record of the batch is being decoded, from 1; 0: none. What is printed goes to fd 1 and 2, which the host logs.
"""

from __future__ import annotations

import importlib
import inspect
import io
import mmap
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from ctypes import CDLL
from itertools import dropwhile
from typing import Any, NoReturn, cast

import msgspec

from ...errors import EventError, EventTooLarge, Reject, Retry
from ...event import CloudEvent
from ...layout import MAX_DATA
from .frames import BYTES, Decoded, Kind, frame, length, read_batch

NAME = "broker_faas.connectors.decoder_parts.child"
_PR_SET_PDEATHSIG = 1
_LONGEST = 20_000  # characters of why it cannot be used
_REASON = 500  # characters of why a record was refused

Function = Callable[[bytes, dict[str, str]], Any]


class Options(msgspec.Struct, frozen=True):
    """argv[1], as JSON. sock, page: fds. parent: the host's pid."""

    sock: int
    page: int
    parent: int
    root: str
    function: str


def main() -> NoReturn:
    options = msgspec.json.decode(sys.argv[1], type=Options)
    CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != options.parent:  # it ended before we asked
        os._exit(70)
    for fd in (options.sock, options.page):
        os.set_inheritable(fd, False)  # what a decoder starts must not hold them open
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    sys.path.insert(0, options.root)
    sock = socket.socket(fileno=options.sock)
    with mmap.mmap(options.page, mmap.PAGESIZE) as page, memoryview(page).cast("Q") as running:
        found = _find(options.function)
        sock.sendall(frame("" if callable(found) else found[-_LONGEST:]))
        if callable(found):
            serve(sock, found, running)
    os._exit(0)  # not through user modules' atexit


def _find(name: str) -> Function | str:
    """The function, or why there is none."""
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"there is no module {module!r} in the project's folder"
        return f"module {module!r} cannot be imported:\n{_traceback(error)}"
    function = getattr(imported, attribute, None)
    if function is None:
        return f"module {module!r} has no function {attribute!r}"
    if not callable(function):
        return f"{name} is no function, but {type(function).__name__}"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return f"{name} is async; a decoder is a plain function: def {attribute}(data, headers)"
    try:
        inspect.signature(function).bind(b"", {})
    except TypeError as error:
        return f"{name} cannot be called with (data, headers): {error}"
    except ValueError:  # of C, and does not say
        pass
    return cast(Function, function)


def serve(sock: socket.socket, function: Function, running: memoryview) -> None:
    """Until the host closes the socket."""
    with sock.makefile("rb") as incoming:
        while head := incoming.read(4):
            answers: list[Decoded] = []
            size = 0
            for n, (data, headers) in enumerate(read_batch(incoming.read(length(head))), 1):
                running[0] = n
                answers.append(answer := decoded(function, data, headers))
                size += len(answer.data)
                if size > BYTES:
                    sock.sendall(frame(answers))
                    answers, size = [], 0
            running[0] = 0
            sock.sendall(frame(answers))


def decoded(function: Function, data: bytes, headers: dict[str, str]) -> Decoded:
    """What it returns, as CloudEvent(data=…) would take it; or what it raises."""
    try:
        made = function(data, headers)
        if made is None:
            return Decoded(Kind.NOTHING, b"", "")
        event = CloudEvent(type="-", source="-", id="-", data=made)
        body = event.data or b""
        if len(body) > MAX_DATA:
            raise EventTooLarge(len(body), MAX_DATA, "decoded data")
        return Decoded(Kind.BYTES if event.datacontenttype is None else Kind.JSON, body, "")
    except Retry as error:
        return Decoded(Kind.AGAIN, b"", _line(str(error)))
    except (Reject, EventError) as error:
        return Decoded(Kind.REFUSED, b"", _line(f"the decoder refused it: {error}" if isinstance(error, Reject) else f"decoder: {error}"))
    except BaseException as error:  # SystemExit, too: what one record asks for must not take the others along
        return Decoded(Kind.REFUSED, b"", _line(_raised(error)))


def _raised(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    *_, (last, line) = traceback.walk_tb(error.__traceback__)
    where = f"{os.path.basename(last.f_code.co_filename)}:{line}"
    return f"the decoder raised {type(error).__name__} ({where})" + (f": {text}" if text else "")


def _line(text: str) -> str:
    return " ".join(text.split())[:_REASON]


def _traceback(error: BaseException) -> str:
    """What of it begins in the module."""
    shown = traceback.TracebackException.from_exception(error)
    ours = (os.path.dirname(__file__) + os.sep, importlib.__file__, "<frozen importlib")
    frames: list[traceback.FrameSummary] = [*shown.stack]
    shown.stack = traceback.StackSummary.from_list([*dropwhile(lambda one: one.filename.startswith(ours), frames)])
    return "".join(shown.format()).rstrip()


if __name__ == "__main__":
    main()
