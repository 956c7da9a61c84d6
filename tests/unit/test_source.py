"""What the source may not contain: queues without a bound, and ways to run bytes that somebody sent."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("broker_faas", "workers", "connectors")
    for path in (ROOT / folder).rglob("*.py")
    if "/broker_faas/workers/" not in str(path)
)
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle"}


def unbounded(text: str) -> Iterator[int]:
    """Lines that make a queue that may grow for ever: without a size, and without a word `bounded` that says what limits it."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            sized = any(keyword.arg in ("maxlen", "maxsize") for keyword in node.keywords) or (name != "deque" and node.args)
            made = name in ("deque", "collections.deque", "asyncio.Queue", "queue.Queue", "queue.SimpleQueue")
            if made and not sized and "bounded" not in lines[node.lineno - 1]:
                yield node.lineno


def evaluating(text: str) -> Iterator[int]:
    """Lines that turn bytes into code or arbitrary objects."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "compile", "__import__"):
            yield node.lineno
        if isinstance(node, ast.Import) and FORBIDDEN & {alias.name.partition(".")[0] for alias in node.names}:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN:
            yield node.lineno


def test_every_queue_has_a_bound_or_says_what_bounds_it() -> None:
    found = {f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in unbounded(path.read_text())}

    assert not found


def test_no_bytes_are_ever_unpickled_or_evaluated() -> None:
    found = {f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in evaluating(path.read_text())}

    assert not found


@pytest.mark.parametrize("line", ["a = deque()", "a = asyncio.Queue()", "a: queue.Queue[int] = queue.Queue()", "a = deque([1])"])
def test_a_queue_without_a_bound_is_found(line: str) -> None:
    assert [1] == [*unbounded(line)]
    assert [] == [*unbounded(f"{line}  # bounded by the day")]


@pytest.mark.parametrize("line", ["import pickle", "from marshal import loads", "eval('1')", "exec(data)"])
def test_running_foreign_bytes_is_found(line: str) -> None:
    assert [1] == [*evaluating(line)]
