"""Runs a copy of examples/earthquakes/demo.py as a user does, and looks at its processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .faults.play import Patch
from .faults.space import HOOK
from .markdown import ROOT

EXAMPLE = ROOT / "examples" / "earthquakes"


class Demo:
    """folder: of the copy. lines: how many of the file's it has; all by default."""

    def __init__(self, folder: Path, lines: int | None = None) -> None:
        self.folder = folder / "earthquakes"
        shutil.copytree(EXAMPLE, self.folder, ignore=shutil.ignore_patterns(".demo", ".faas", "__pycache__"))
        self.data = self.folder / "earthquakes.jsonl"
        if lines:
            self.data.write_text("".join(self.data.read_text().splitlines(keepends=True)[:lines]))

    def start(self, *patches: Patch) -> subprocess.Popen[str]:
        """Its output comes through a pipe, line by line. patches: of the product, see tests/faults/hook."""
        file = self.folder.parent / "patches.json"
        file.write_text(json.dumps(patches))
        return subprocess.Popen(
            [sys.executable, str(self.folder / "demo.py")],
            cwd=self.folder.parent,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HOOK}", "PYTHON_FAULTS_PATCHES": str(file)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *patches: Patch) -> tuple[int, str]:
        """Exit code, and all that it printed."""
        with self.start(*patches) as process:
            printed, _ = process.communicate()
            return process.returncode, printed

    def processes(self, command: str = "") -> dict[int, int]:
        """pid → parent of what runs in the copy's folder, or on a file in it; `command` is part of the command line."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command in line and (str(self.folder) in line or (process / "cwd").readlink().is_relative_to(self.folder)):
                    found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
        return found
