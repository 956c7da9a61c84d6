"""Every error of the library, as one tree: its type says what happens next.

FaasError
├── ConfigError        the user mends a file or an option; exit 78
├── EventError         this event can never be accepted: refused at the edge, dead letter on the bus
│   ├── EventInvalid       breaks a rule of CloudEvents 1.0.2, or is no event at all
│   ├── TopicInvalid       is no dot-separated topic
│   └── EventTooLarge      more bytes than the bus takes
├── BusError           the bus's answer, not the event's fault
│   ├── BusUnavailable     try again later; nothing is known to be stored; exit 75
│   ├── BusFull            no space: back-pressure, try again when the reaper has freed some; exit 75
│   ├── Overtaken          somebody else has stored a position meanwhile: read it anew, and go on behind it
│   └── BusRefused         permissions or a missing stream: an operator mends it; exit 78
├── SourceError        what a connector reads from
│   ├── SourceUnavailable  try again later
│   └── SourceRefused      permissions, a missing queue, an offset out of range: an operator mends it; exit 78
├── SinkError          what a sink sends to
│   ├── SinkUnavailable    try again later
│   └── SinkRefused        permissions, something missing there: an operator mends it; exit 78
├── ExecutorError      user code ended without an outcome: one failed attempt
│   ├── ExecutorCrashed    exit code or signal
│   └── ProtocolError      bytes on the socket that are no frame
├── Retry              raised by a function: run me again
└── Reject             raised by a function: dead letter now
"""

from __future__ import annotations

MAX_DELAY = 30 * 86400.0  # seconds until another attempt


class FaasError(Exception):
    """Root of the tree. str(error) says what, where and what to do."""


class ConfigError(FaasError):
    """A file, option or function declaration that cannot be used. Never retried."""


class EventError(FaasError):
    """This event can never be accepted; sending it again does not help."""


class EventInvalid(EventError):
    """Breaks a rule of CloudEvents 1.0.2; the message names the attribute and the rule."""


class TopicInvalid(EventError):
    """Not a dot-separated topic."""


class EventTooLarge(EventError):
    """size, limit: bytes."""

    def __init__(self, size: int, limit: int, what: str = "event") -> None:
        super().__init__(
            f"{what} of {size:,} bytes exceeds the bus limit of {limit:,}; "
            "store the data elsewhere and send a reference (CloudEvents 'dataref')"
        )
        self.size, self.limit = size, limit


class BusError(FaasError):
    """The bus's answer, not the event's fault."""


class BusUnavailable(BusError):
    """Not reachable or not answering. What was sent may or may not be stored: send it again with the same id."""


class BusFull(BusError):
    """No space left for this kind of event. Of several that were published together, others may be stored."""


class Overtaken(BusError):
    """A position of the publish is not behind the one that its caller knows: another has stored what lies between. Nothing is stored."""


class BusRefused(BusError):
    """The server says no: permissions, a missing stream, a limit. code: JetStream's err_code, 0 if none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class SourceError(FaasError):
    """Of a system that a connector reads from."""


class SourceUnavailable(SourceError):
    """Not reachable, or gone while it was read: connected to again, after a pause; a short one if it was waited for already (waited)."""

    def __init__(self, message: str, *, waited: bool = False) -> None:
        super().__init__(message)
        self.waited = waited


class SourceRefused(SourceError):
    """It says no, and would again: permissions, nothing of that name, events that are not there any more."""


class SinkError(FaasError):
    """Of a system that a sink sends to."""


class SinkUnavailable(SinkError):
    """Not reachable, or gone while it was sent to: what was not confirmed is sent again, after a pause."""


class SinkRefused(SinkError):
    """It says no, and would again: a login, something of a name that is not there."""


class ExecutorError(FaasError):
    """User code ended without an outcome."""


class ExecutorCrashed(ExecutorError):
    """reason: 'exit code 3', 'SIGSEGV', …"""


class ProtocolError(ExecutorError):
    """Bytes on the executor's socket that are no frame of docs/reference/executor-protocol.md."""


class Retry(FaasError):
    """Raised by a function: run this event again. Counts as an attempt.

    after: seconds from now; None leaves it to the function's RetryPolicy.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and not 0 <= after <= MAX_DELAY:
            raise ValueError(f"Retry(after={after}) must lie between 0 and 30 days (2,592,000 seconds)")
        super().__init__(reason or "the function asked for another attempt")
        self.after = after


class Reject(FaasError):
    """Raised by a function: this event can never succeed; it becomes a dead letter at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
