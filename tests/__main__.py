"""`python -m tests`: the whole suite, as `make test` runs it: in two processes side by side, for tests mostly wait.

One has all that breaks the system under test, tests/faults; the other one has the rest. What the first one prints comes when the
second is through. Both must be green.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PYTEST = (sys.executable, "-m", "pytest", "-q", "--durations=5")
FAULTS = (*PYTEST, "-o", "cache_dir=.pytest_cache/faults", "tests/faults")  # or the last to end would say alone what --lf runs
REST = (*PYTEST, "--ignore=tests/faults")


def main() -> int:
    """0 if both are green. SIGINT or SIGTERM ends both."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background job has SIGINT ignored, and so would the two have
        signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "faults.log"
        with open(log, "wb") as output, open(log) as said, _running(FAULTS, output) as faults, _running(REST, None) as rest:
            rest.wait()
            print("\ntests/faults, beside them:", flush=True)
            over = False
            while not over:
                over = faults.poll() is not None  # first: what it printed last must be read, too
                print(said.read(), end="", flush=True)
                time.sleep(0.2)
    if rest.returncode:
        print("red, too: what is not in tests/faults, see above", flush=True)
    return 1 if rest.returncode or faults.returncode else 0


@contextmanager
def _running(command: tuple[str, ...], output: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    """If the body is left before it ends, it is interrupted, and has the time that it needs to end what it started."""
    process = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
