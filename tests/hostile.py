"""The corpus of hostile input: tests/corpus/*.toml as cases. What is done with them: tests/unit/test_corpus.py and its sister on a bus.

A file is a family. Each `[[case]]` has

    id       unique in all files
    what     one sentence: what somebody tries
    door     where it enters; the file's own `door` if not given
    input    or `inputs`, several for which the same is expected
    expect   "refused": the error of this door | "dead": a dead letter on attempt 1 | "accepted": as it came | "normalised": changed as
             `gives` says | "ignored": as if it had not come
    memory   bytes allocated for one of input, at most; 10 if not given
    says     of what is refused or dead: the error contains it
    gives    of what is not: values that it must have

Values are TOML's own, but {repeat = "[", times = 100000}, {join = [...]}, {base64 = "..."} and {json = "..."} stand for what they make.
"""

from __future__ import annotations

import json
import tomllib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "corpus"
EXPECTATIONS = ("refused", "dead", "accepted", "normalised", "ignored")


@dataclass(frozen=True, slots=True)
class Case:
    family: str
    id: str
    what: str
    door: str
    expect: str
    input: Any = field(repr=False)
    says: str = ""
    memory: int = 10
    gives: dict[str, Any] = field(default_factory=dict)


@cache
def everything() -> tuple[Case, ...]:
    """One Case an input, in the order of files and lines."""
    return tuple(case for path in sorted(FOLDER.glob("*.toml")) for case in _read(path))


def through(*doors: str) -> list[Case]:
    return [case for case in everything() if case.door in doors]


def _read(path: Path) -> Iterator[Case]:
    table = tomllib.loads(path.read_text())
    for said in table["case"]:
        given = {"door": table.get("door")} | said
        ident = given.pop("id")
        inputs = given.pop("inputs", None)
        if inputs is None:
            yield Case(family=path.stem, id=ident, **given)
        else:
            for number, one in enumerate(inputs, 1):
                yield Case(family=path.stem, id=f"{ident}#{number}", input=one, **given)


def made(value: Any) -> Any:
    """What the notation stands for."""
    match value:
        case {"repeat": unit, "times": int(times)}:
            return made(unit) * times
        case {"join": list(parts)}:
            return _joined([made(part) for part in parts])
        case {"base64": str(text)}:
            return b64decode(text, validate=True)
        case {"json": str(text)}:
            return json.loads(text)
        case dict():
            return {name: made(inner) for name, inner in value.items()}
        case list():
            return [made(inner) for inner in value]
    return value


def size(value: Any) -> int:
    """Bytes or characters of all that was made."""
    match value:
        case str() | bytes():
            return len(value)
        case dict():
            return sum(len(name) + size(inner) for name, inner in value.items())
        case list():
            return sum(map(size, value))
    return 8


def _joined(parts: list[Any]) -> str | bytes:
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts)
