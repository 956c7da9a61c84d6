"""One durable consumer as its reader sees it: what it has delivered, and what it may still deliver."""

from __future__ import annotations

from typing import Any

from ..bus import Delivery


class Held(Delivery, gc=False, eq=False):
    """until: loop time, when its lease ends. size: bytes. Sequence and time are in the token, and rarely asked for."""

    consumer: Durable
    until: float
    size: int

    @property  # type: ignore[misc]
    def seq(self) -> int:  # type: ignore[override]
        return int(fields(self.token)[3])

    @property  # type: ignore[misc]
    def stored_at(self) -> float:  # type: ignore[override]
        return int(fields(self.token)[5]) / 1e9


def fields(token: str) -> list[str]:
    """[stream, durable, deliveries, stream sequence, consumer sequence, time, pending, …] of an acknowledgement's subject.

    $JS.ACK. and those; where JetStream domains are in use .{domain}.{account} after ACK, and .{random} at the end.
    """
    parts = token.split(".")
    return parts[2:] if len(parts) == 9 else parts[4:]


class Durable:
    """What one durable has delivered and may still deliver. asked: events requested and not yet here."""

    __slots__ = (
        "arrived",
        "asked",
        "busy",
        "first",
        "heard",
        "not_before",
        "oversized",
        "partition",
        "requests",
        "source",
        "subject",
        "unsettled",
    )

    def __init__(self, stream: str, config: dict[str, Any]) -> None:
        durable = config["durable_name"]
        self.source = f"{stream}/{durable}"
        self.subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self.first = f"$JS.ACK.{stream}.{durable}.1."  # how the token of a first delivery begins, without domains
        self.partition = config["max_ack_pending"] == 1
        self.arrived = 0  # in this turn of the loop
        self.unsettled = 0
        self.asked = 0
        self.requests: dict[int, tuple[int, float]] = {}  # number: (events, when sent)
        self.busy = False  # delivered during its last request
        self.heard = 0.0
        self.not_before = 0.0  # the server refused for now: no request until then
        self.oversized = False  # a record is larger than MAX_PULL: ask for it alone, without a limit

    def delivered(self, now: float) -> None:
        """Once a turn of the loop, for all that arrived in it."""
        count, self.arrived = self.arrived, 0
        self.heard = now
        self.busy = True
        self.oversized = False
        self.unsettled += count
        self.asked = max(0, self.asked - count)
        if not self.asked:
            self.requests.clear()

    def ended(self, number: int | None, pending: int) -> None:
        if number is None:
            self.requests.clear()
        else:
            self.requests.pop(number, None)
        self.asked = max(0, self.asked - pending) if self.requests else 0


def nak(token: str, delay: float) -> str:
    body = f'-NAK {{"delay":{int(delay * 1e9)}}}' if delay > 0 else "-NAK"
    return f"PUB {token} {len(body)}\r\n{body}\r\n"
