"""Types a Markdown file's code blocks, from the first to the last, as a reader would.

```sh                run; `cd` stays. ```sh until: again and again, also if it fails, until what is shown next is printed
```sh background     run in another terminal, until the end
```sh skip           not run: it installs something
```python FILE       saved as FILE. Without a name: run. ```toml FILE likewise
```text              what the block before prints: see markdown.looks_like
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .markdown import ROOT, Block, looks_like

PATIENCE = 30.0  # seconds for what is shown to come true


class Typist:
    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._desk = _desk(folder)
        inherited = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
        self._environ = {**inherited, "PATH": f"{self._desk}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **(environ or {})}
        self._background: list[tuple[subprocess.Popen[bytes], Path]] = []

    @contextmanager
    def at_work(self) -> Iterator[Typist]:
        """Ends what runs in the background, as Ctrl-C does. May be entered again."""
        try:
            yield self
        finally:
            ended, self._background = self._background, []
            for process, _ in ended:
                os.killpg(process.pid, signal.SIGINT)
            for process, output in ended:
                assert process.wait(30) in (0, 130, -signal.SIGINT), output.read_text()

    def type(self, blocks: Iterable[Block]) -> None:
        typed = None
        printed = ""
        for block in blocks:
            where = f"line {block.line}"
            match block.language, block.words:
                case _, ("skip",):
                    continue
                case "sh", ("background",):
                    self._start(block.text)
                    continue
                case "sh", words:
                    printed = self._run(block.text, where, until="until" in words)
                case "python" | "toml", (name,):
                    (self.folder / name).write_text(block.text)
                    continue
                case "python", ():
                    printed = self._checked([sys.executable, "-W", "error", "-c", block.text], where)
                case "text", ("background",):
                    self._compare(None, block.text, "", where)
                    continue
                case "text", ():
                    assert typed, where
                    self._compare(typed, block.text, printed, where)
                    continue
                case _:
                    raise AssertionError(f"{where}: nobody knows what to do with a block of {block.language} {block.words}")
            typed = block

    def printed(self, terminal: int) -> str:
        """By what runs in the background, so far. terminal: from 0."""
        return self._background[terminal][1].read_text()

    def _compare(self, typed: Block | None, shown: str, printed: str, where: str) -> None:
        """typed: what printed it; None: what runs in the background."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if typed is None:
                printed = self._background[-1][1].read_text()
            if looks_like(shown, printed):
                return
            patient = (typed is None or "until" in typed.words) and time.monotonic() < deadline
            assert patient, f"{where} shows:\n{shown}\nbut it is:\n{printed}"
            if typed:
                printed = self._run(typed.text, where, until=True)
            time.sleep(0.05)

    def _run(self, text: str, where: str, *, until: bool) -> str:
        pwd = self._desk / "pwd"
        pwd.write_text(str(self.folder))
        printed = self._checked(["bash", "-c", f"set -e\n{text}\npwd >{shlex.quote(str(pwd))}"], where, may_fail=until)
        self.folder = Path(pwd.read_text().strip())
        return printed

    def _checked(self, command: list[str], where: str, *, may_fail: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self._environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        assert may_fail or done.returncode == 0, f"{where}: {command[-1]}\n{done.stdout}"
        return done.stdout

    def _start(self, text: str) -> None:
        output = self._desk / f"background-{len(self._background)}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text.strip()}"], cwd=self.folder, env=self._environ, stdout=file, stderr=file, start_new_session=True
            )
        self._background.append((process, output))


def _desk(folder: Path) -> Path:
    """A folder with `faas` and `python` of this environment, and what we note down ourselves."""
    folder = folder / ".desk"
    folder.mkdir()
    for name, arguments in (("faas", "-m broker_faas.cli.main"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (folder / name).chmod(0o755)
    return folder
