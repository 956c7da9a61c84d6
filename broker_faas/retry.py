"""RetryPolicy: when what failed is tried again. And the checks that declarations share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import MAX_DELAY, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed event runs again.

    max_attempts: how often it runs at all. Seconds before attempt n+1: min(max_backoff, min_backoff * factor ** (n - 1)),
    moved by up to ± jitter (a fraction), so that what failed together does not come back together.
    """

    max_attempts: int = 5
    min_backoff: float = 1.0
    max_backoff: float = 300.0
    factor: float = 2.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        low, high = self.min_backoff, self.max_backoff
        require("max_attempts", self.max_attempts, "be a whole number of at least 1", is_count(self.max_attempts))
        require("min_backoff", low, "be seconds, 0 or more, at most 30 days", is_number(low) and 0 <= low <= MAX_DELAY)
        require("max_backoff", high, "be seconds, min_backoff or more, at most 30 days", is_number(high) and low <= high <= MAX_DELAY)
        require("factor", self.factor, "be a number of at least 1", is_number(self.factor) and self.factor >= 1)
        require("jitter", self.jitter, "lie between 0 and 1", is_number(self.jitter) and 0 <= self.jitter <= 1)

    def delay(self, attempt: int, spread: float = 0.0) -> float | None:
        """Seconds to wait after the `attempt`-th attempt (from 1) failed; None: no attempts are left. spread: -1..1, scales the jitter."""
        if attempt >= self.max_attempts:
            return None
        try:
            grown = self.min_backoff * self.factor ** (attempt - 1)
        except OverflowError:
            grown = self.max_backoff
        return min(self.max_backoff, grown) * (1 + self.jitter * spread)


def require(option: str, value: object, rule: str, ok: bool) -> None:
    """Raises ConfigError."""
    if not ok:
        raise ConfigError(f"{option}={value!r} must {rule}")


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
