"""Python runs this at start when its folder is in PYTHONPATH: the product's modules are changed while they are imported.

PYTHON_FAULTS_CRASH_AT   "name:n …": SIGKILL to this process when it reaches crash point `name` for the n-th time, once a run. In the
                         product a point is the comment `# crash point: name`, and nothing else.
PYTHON_FAULTS_SIGNAL     another than SIGKILL, like SIGSTOP
PYTHON_FAULTS_CRASHED    file that gets the line `name pid` just before
PYTHON_FAULTS_PATCHES    file: JSON [[module, old source text, new source text], …]. A text that is not there ends the process.

The names begin with PYTHON because a worker passes such variables on to its executors. Nothing on disk is changed, and no bytecode of
what is changed here is read or written.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

PACKAGE = "broker_faas"
PAUSE = 1.0  # seconds between two crashes of a run
POINT = re.compile(r"^( *)# crash point: ([\w-]+)$", re.MULTILINE)
_reached: Counter[str] = Counter()


def reached(name: str) -> None:
    if name not in _crashes:
        return
    _reached[name] += 1
    if _reached[name] < _crashes[name]:
        return
    with open(os.environ["PYTHON_FAULTS_CRASHED"], "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held until this process is gone
        file.seek(0)
        crashed = file.read().split()[::2]
        if name not in crashed and time.time() - os.fstat(file.fileno()).st_mtime > PAUSE * bool(crashed):
            file.write(f"{name} {os.getpid()}\n")
            file.flush()
            os.kill(os.getpid(), getattr(signal, os.environ.get("PYTHON_FAULTS_SIGNAL", "SIGKILL")))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path).decode()
        for module, old, new in _patches:
            if module == fullname:
                if old not in text:
                    os.write(2, f"{module} has no text {old!r} to be patched\n".encode())
                    os._exit(99)
                text = text.replace(old, new)
        if _crashes:
            text = POINT.sub(r'\1__import__("sitecustomize").reached("\2")', text)
        return compile(text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE or not (_crashes or fullname in _patched):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


_crashes = {
    name: int(number) for name, _, number in (point.partition(":") for point in os.environ.get("PYTHON_FAULTS_CRASH_AT", "").split())
}
_patches: list[tuple[str, str, str]] = []
if file := os.environ.get("PYTHON_FAULTS_PATCHES"):
    with open(file) as patches:
        _patches = [tuple(patch) for patch in json.load(patches)]
_patched = {module for module, _, _ in _patches}
if _crashes or _patches:
    sys.meta_path.insert(0, _Finder())
