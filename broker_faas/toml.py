"""A TOML file as a table, and the line of each of its keys (tomllib does not tell)."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError

LARGEST = 1 << 20  # bytes
MAX_PARTS = 20  # of a dotted key: tomllib takes an hour for one of 500,000


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """(the table, line of each key and table header by its path). Raises ConfigError naming file, and line where there is one."""
    text = _text(path)
    try:
        found = lines(text)  # first: it refuses the keys that tomllib would not come back from
        return tomllib.loads(text), found
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply.") from None
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        line, what = len(text.splitlines()), str(error).removesuffix(" (at end of document)")
        if match := re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", what, re.DOTALL):
            line, what = int(match[2]), match[1]
        if what == "Cannot overwrite a value":
            what = "a key is given twice"
        raise ConfigError(f"{path}:{line}: no valid TOML: {what}") from None


def _text(path: Path) -> str:
    """A byte order mark is dropped; line ends are \\n."""
    try:
        # Without O_NONBLOCK a FIFO would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is no regular file.")
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    if len(raw) > LARGEST:
        raise ConfigError(f"{path} has more than {LARGEST:,} bytes. A configuration is smaller; is it the right file?")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:64]:
        raise ConfigError(f"{path} is UTF-16 or binary. Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is no UTF-8. Save the file as UTF-8.") from None


_PART = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
# Possessive: a run of spaces, however long, is looked at once.
_STATEMENT = re.compile(rf"[ \t]*+(?P<table>\[\[?+)?+[ \t]*+(?P<key>{_PART}(?:[ \t]*+\.[ \t]*+{_PART})*+)[ \t]*+[\]=]")
_ENDS_KEY = {"\n", "=", ",", "[", "]", "{", "}"}
_TOKEN = re.compile(
    # Strings that do not end are one token each as well, or every quote in them would begin another look for the end.
    r'''(?P<skip>\#[^\n]*|"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?|\'\'\'.*?(?:'{3,5}|\Z)|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?)|(?P<open>[\[{])|(?P<close>[\]}])|[^\n\[\]{}"'#.=,]+|.''',
    re.DOTALL,
)


def lines(text: str) -> dict[tuple[str, ...], int]:
    """Line (from 1) of each key and table header, by its path. Text that tomllib accepts; keys inside inline tables are left out.

    Of an array of tables the path says which: ("connector", "0", "name") for the first [[connector]].

    Of other text it makes something in linear time. Raises TOMLDecodeError, worded like tomllib's, if a key has too many parts.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    rows: dict[tuple[str, ...], int] = {}
    line, depth, dots, begins = 1, 0, 0, True
    position = 0
    while position < len(text):
        if begins and (statement := _STATEMENT.match(text, position)):
            path = tuple(part.strip("\"'") for part in re.findall(_PART, statement["key"]))
            if statement["table"]:
                if len(statement["table"]) == 2:
                    rows[path] = rows.get(path, -1) + 1
                path = table = _which(path, rows)
            found.setdefault(path if statement["table"] else table + path, line)
        begins = False
        token = _TOKEN.match(text, position)
        assert token is not None  # the last alternative takes any character
        position = token.end()
        depth += bool(token["open"]) - bool(token["close"])
        dots = dots + 1 if token[0] == "." else 0 if token[0] in _ENDS_KEY else dots
        if dots >= MAX_PARTS:
            raise tomllib.TOMLDecodeError(f"a key has more than {MAX_PARTS} parts (at line {line}, column 1)")
        line += token[0].count("\n")
        begins = token[0] == "\n" and depth == 0
    return found


def _which(path: tuple[str, ...], rows: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    """The path with the number of the row behind each array of tables in it."""
    if not rows or len(path) > MAX_PARTS:  # which is refused below
        return path
    found: list[str] = []
    for end, part in enumerate(path, 1):
        found.append(part)
        if path[:end] in rows:
            found.append(str(rows[path[:end]]))
    return tuple(found)
