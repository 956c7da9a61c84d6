"""The network's faults, in the run's own network namespace: nothing outside of it is touched, or can be reached."""

from __future__ import annotations

import re

from .disk import call

TABLE = ("inet", "faults")


def up() -> None:
    call("ip", "link", "set", "lo", "up")


def block(port: int, how: str = "drop") -> None:
    """Packets of TCP connections to `port`. how: drop (a black hole), reject (resets), requests or answers (one way only)."""
    unblock()
    call("nft", "add", "table", *TABLE)
    call("nft", "add", "chain", *TABLE, "in", "{ type filter hook input priority 0; }")
    verdict = ("reject", "with", "tcp", "reset") if how == "reject" else ("drop",)
    if how != "answers":
        call("nft", "add", "rule", *TABLE, "in", "tcp", "dport", str(port), "counter", *verdict)
    if how != "requests":
        call("nft", "add", "rule", *TABLE, "in", "tcp", "sport", str(port), "counter", *verdict)


def unblock() -> None:
    call("nft", "add", "table", *TABLE)  # so that there is one
    call("nft", "delete", "table", *TABLE)


def blocked() -> int:
    """Packets that block() has stopped so far."""
    return sum(int(n) for n in re.findall(r"counter packets (\d+)", call("nft", "list", "table", *TABLE)))
