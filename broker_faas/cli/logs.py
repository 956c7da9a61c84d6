"""Log lines: for a person on a terminal (time, function, what), as JSON for everything else. Constant messages with fields."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from .render import GREY, RED, YELLOW, clean, colour, duration

# What steers a terminal and JSON does not escape by itself: DEL, the controls of ISO 6429 above it, marks of writing direction, line ends.
_STEERING = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}
CLIENTS = "nats", "aiokafka", "aiormq"  # of a broker that is away they say thirty lines a second; our drivers tell of it themselves
_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}


def start(*, human: bool, level: int = logging.INFO) -> None:
    """Logs of this process go to stdout from now on; `human`: for a person, otherwise one JSON object a line."""
    handler: logging.Handler = _Handler(sys.stdout) if human else Unhindered(sys.stdout.fileno())
    handler.setFormatter(HumanFormatter() if human else JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("broker_faas").setLevel(level)
    logging.getLogger("broker_faas.output").setLevel(logging.INFO)  # what user code prints is always shown
    quiet_clients()


def quiet_clients() -> None:
    for client in CLIENTS:
        logging.getLogger(client).setLevel(logging.CRITICAL)


class _Handler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:
        """A reader of our logs that went away must not stop the work, nor fill stderr."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


class Unhindered(logging.Handler):
    """Writes in a thread of its own: a reader of our logs that hangs holds up no event.

    What it does not take in time is dropped, and counted. size: records that may wait.
    """

    def __init__(self, descriptor: int, size: int = 10_000) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(size)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        told = 0
        while record := self._waiting.get():
            self._write(record)
            if missed := self._dropped - told:
                told += missed
                fields = {"levelname": "WARNING", "name": __name__, "msg": "log lines dropped: nobody read them in time", "lines": missed}
                self._write(logging.makeLogRecord(fields))

    def _write(self, record: logging.LogRecord) -> None:
        # Not through sys.stdout: a thread that hangs in it with its lock held makes Python abort at exit.
        try:
            text = self.format(record)
        except Exception as error:  # the thread must outlive what cannot be written
            fields = {"levelname": "ERROR", "name": __name__, "msg": "log line cannot be written", "where": record.name}
            text = self.format(logging.makeLogRecord(fields | {"reason": type(error).__name__}))
        data = (text + "\n").encode("utf-8", "backslashreplace")
        with suppress(OSError):  # nobody reads any more, and the work goes on
            while data:
                data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """At exit: a moment for what is still to be written."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(1)
        super().close()


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage(), "logger": record.name}
        line |= fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).translate(_STEERING)


class HumanFormatter(logging.Formatter):
    """`12:03:04 reserve      attempt 1 failed: ValueError: no stock; again in 1.1 s`"""

    def format(self, record: logging.LogRecord) -> str:
        said = fields(record)
        who = str(said.pop("function", said.pop("pool", "")))
        code = RED if record.levelno >= logging.ERROR else YELLOW if record.levelno >= logging.WARNING else ""
        match record.getMessage():
            case "output":  # what user code printed
                return line(who, f"| {clean(str(said['text']))}", RED if said["stream"] in ("stderr", "error") else "")
            case "attempt failed":
                then = "a dead letter now" if said["fate"] == "dead" else f"again in {duration(said['delay_s'])}"
                trace = "".join(f"\n  {clean(one)}" for one in said["detail"].splitlines())
                return line(who, f"attempt {said['attempt']} failed: {clean(said['reason'])}; {then}", RED) + colour(trace, GREY)
            case message:
                rest = ", ".join(f"{name} {_plain(value)}" for name, value in said.items() if value not in (None, "", []))
                text = line(who, message + (f" ({rest})" if rest else ""), code)
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def line(who: str, text: str, code: str = "") -> str:
    """One for a person: time, function, what."""
    return f"{colour(time.strftime('%H:%M:%S'), GREY)} {who:<12} {colour(text, code) if code else text}"


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`."""
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else clean(str(value))
