"""What the demo prints: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from time import monotonic

from broker_faas.cli.render import BLUE, GREEN, GREY, RED, colour, number


class Progress:
    """total: how many there will be, as far as known. One line stays on the screen; in a pipe, a line every quarter."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._tty = sys.stdout.isatty()
        self._started = monotonic()
        self._quarter = 0

    def show(self, done: int) -> None:
        share = min(1.0, done / self.total) if self.total else 1.0
        if self._tty:
            count = f"{number(done):>6} of {number(self.total)}"
            room = max(0, min(32, get_terminal_size().columns - len(count) - 13))  # a line that wraps could not be drawn again
            filled = int(room * share)
            bar = colour("━" * filled, BLUE) + colour("━" * (room - filled), GREY)
            print(f"\r\x1b[K  {self.title:<8} {bar} {count}", end="", flush=True)
        elif int(4 * share) > self._quarter and share < 1:
            self._quarter = int(4 * share)
            print(f"  {self.title:<8} {number(done):>6} of {number(self.total)}", flush=True)

    def end(self, text: str) -> None:
        """In place of the bar."""
        print(("\r\x1b[K" if self._tty else "") + f"  {self.title:<8} {text}", flush=True)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def notice(text: str) -> None:
    """Something that nobody asked for, and that does no harm."""
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + colour(f"  ! {text}", RED), flush=True)


def command(line: str, output: str) -> None:
    """A command that a user could type, and what it printed."""
    print(colour(f"    $ {line}", GREY), *(f"    {line}" for line in output.splitlines()), "", sep="\n", flush=True)


def good(text: str) -> str:
    return colour(text, GREEN)


def bad(text: str) -> str:
    return colour(text, RED)
