"""The code blocks of a Markdown file, so that tests run what readers type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    """```` ```language word word ````: words say what a test does with it; a browser shows nothing of them."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    found = []
    text = path.read_text()
    for match in re.finditer(r"^```(\S*) *(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        found.append(Block(match[1], tuple(match[2].split()), match[3], text[: match.start()].count("\n") + 1))
    return found


def looks_like(shown: str, real: str) -> bool:
    """Whether what was printed is what the text shows: `…` stands for anything within a line, a line `…` for any lines."""
    pattern = ""
    for line in shown.strip().splitlines():
        words = r"\s+".join(re.escape(word).replace("…", ".*?") for word in line.split())
        # Whole lines: one that may end anywhere took 5 s of CPU to see that thirty lines do not look like nine.
        pattern += r"(?:.*\n)*?" if line.strip() == "…" else rf"[^\S\n]*{words}[^\S\n]*\n"
    return re.search(rf"(?m)^{pattern}", real.rstrip() + "\n") is not None
