"""Exit codes, and the error that carries one."""

from __future__ import annotations

OK = 0
FAILED = 1  # what was asked for did not succeed
USAGE = 2
INTERNAL = 70  # a bug of ours, or the bus is closed for good: a supervisor starts a fresh process
UNAVAILABLE = 75  # the bus: try again later
CONFIG = 78  # a file, an option or a permission is to be mended
INTERRUPTED = 130  # Ctrl-C


class Failed(Exception):
    """A command that did not succeed, said in one line. code: of this module."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
