"""`python -m tests`: the whole suite, as `make test` runs it: in three processes side by side, for tests mostly wait.

One has all that breaks the system under test, tests/faults; one has what needs Kafka or RabbitMQ, whose servers take long to start;
and one the rest. What the first two print comes when the third is through. All must be green.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

PYTEST = (sys.executable, "-m", "pytest", "-q", "--durations=5")
HERE = Path(__file__).parent
SYSTEMS = [str(file) for file in sorted(HERE.glob("integration/test_*.py")) if re.search("kafka|rabbit", file.read_text())]
LANES = {
    "tests/faults": ["tests/faults"],
    "what needs Kafka or RabbitMQ": ["tests/contract", *SYSTEMS],
}
REST = [f"--ignore={path}" for paths in LANES.values() for path in paths]


def main() -> int:
    """0 if all are green. SIGINT or SIGTERM ends all."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background job has SIGINT ignored, and so would these have
        signal.signal(ending, signal.default_int_handler)
    red = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lanes = {}
        for number, (name, paths) in enumerate(LANES.items()):
            output = stack.enter_context(open(folder / f"{number}.log", "wb"))
            said = stack.enter_context(open(folder / f"{number}.log"))
            # A cache of its own, or the last to end would say alone what --lf runs.
            command = [*PYTEST, "-o", f"cache_dir=.pytest_cache/{number}", *paths]
            lanes[name] = stack.enter_context(_running(command, output)), said
        rest = stack.enter_context(_running([*PYTEST, *REST], None))
        if rest.wait():
            red.append("the rest, see above")
        for name, (process, said) in lanes.items():
            print(f"\n{name}, beside them:", flush=True)
            over = False
            while not over:
                over = process.poll() is not None  # first: what it printed last must be read, too
                print(said.read(), end="", flush=True)
                time.sleep(0.2)
            if process.returncode:
                red.append(name)
    if red:
        print(f"red: {'; '.join(red)}", flush=True)
    return 1 if red else 0


@contextmanager
def _running(command: Sequence[str], output: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
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
