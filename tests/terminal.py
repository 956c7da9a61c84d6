"""The `faas` command as a person runs it, in a folder."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from broker_faas.cli.main import run

REPOSITORY = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from broker_faas.cli.main import main; main()"]


class Running:
    """A process and what it has said so far, stdout and stderr together."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as out:
            for line in out:
                self.lines.append(line)

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, timeout: float = 20.0, *, times: int = 1) -> None:
        deadline = time.monotonic() + timeout
        while self.said.count(text) < times:
            if self.process.poll() is not None:
                self._reader.join(5)
                assert self.said.count(text) >= times, f"ended ({self.process.returncode}) without {text!r}:\n{self.said}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout:g} s:\n{self.said}"
            time.sleep(0.01)

    def write(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def stop(self, signum: int = signal.SIGINT, timeout: float = 30.0) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        code = self.process.wait(timeout)
        self.finish()
        return code

    def finish(self) -> None:
        """Read what it has said to its end."""
        self._reader.join(5)


class Done(NamedTuple):
    stdout: str
    stderr: str


class Faas:
    """`faas("lag")` in `folder`. environment: on top of this process's, without NATS_URL."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
        self.environment = kept | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"} | environment

    def __call__(self, *arguments: str, code: int = 0) -> Done:
        """In this process, which is ten times faster than one of its own. Fails unless the exit code is `code`."""
        out, err, codes = io.StringIO(), io.StringIO(), list[int]()
        level = logging.getLogger("broker_faas").level
        thread = threading.Thread(target=lambda: codes.append(run(arguments)))  # it has no event loop, and pytest's is left alone
        environment = patch.dict(os.environ, self.environment, clear=True)
        with chdir(self.folder), environment, patch("sys.stdin", io.StringIO()), redirect_stdout(out), redirect_stderr(err):
            thread.start()
            thread.join()
        logging.getLogger("broker_faas").setLevel(level)
        assert codes == [code], f"faas {' '.join(arguments)}: exit code {codes}\n{out.getvalue()}\n{err.getvalue()}"
        return Done(out.getvalue(), err.getvalue())

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json").stdout)

    @contextmanager
    def running(self, *arguments: str, stdin: int = subprocess.DEVNULL, **environment: str) -> Iterator[Running]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            running.finish()


def project(folder: Path, functions: str, name: str = "shop", toml: str = "") -> Path:
    """A project of one module."""
    folder.mkdir(exist_ok=True)
    (folder / "faas.toml").write_text(f'project = "{name}"\nmodules = ["functions"]\n{toml}')
    (folder / "functions.py").write_text(functions)
    return folder
