"""To another NATS: a subject for each target, acknowledged by the stream that has it, or plain.

JetStream  delivered is what the stream has acknowledged. What is sent again within the stream's duplicate window is stored once.
core       delivered is what the server has taken: who subscribes gets it, and if nobody does, it is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from ...bus import Record
from ...errors import SinkUnavailable
from ...event import CloudEvent
from ...nats_binding import to_nats
from ..nats_parts.inbox import sink_errors
from ..nats_parts.server import check_server, connected
from ..sink import Outgoing, Undelivered

if TYPE_CHECKING:
    from ...buses.connection import Connection

MAX_WAVE = 500  # messages, and
MAX_BYTES = 4 << 20  # bytes that are in flight
PATIENCE = 10.0  # seconds for the answers to them, beside the time that they take on the slowest link on which it still works:
SLOWEST = 256 << 10  # bytes a second
_HEAD = len("NATS/1.0\r\nNats-Msg-Id: \r\n\r\n") + 32  # bytes of a message beside its headers and data
_FULL = {10077, 10023, 10047, 10028}  # JetStream's err_codes
_TOO_LARGE = 10054


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSink:
    """Options; docs/connectors/nats.md says more.

    url: nats://[user:password@]host:port or tls://…, several of a cluster with commas. credentials: a .creds file. ca: a PEM file.
    core: plain subjects, no stream. format: binary, attributes in headers, or structured, one JSON object.
    """

    url: str = field(repr=False)
    credentials: str | None = None
    ca: str | None = None
    insecure: bool = False
    core: bool = False
    format: Literal["binary", "structured"] = "binary"

    def __post_init__(self) -> None:
        try:
            check_server(self)
        except ValueError as error:
            raise ValueError(f"url {error}") from None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[_Session]:
        """Gone for good when its connection is: the next open() makes a new one. Raises SinkUnavailable, SinkRefused."""
        async with AsyncExitStack() as stack:
            with sink_errors():
                connection = await connected(self, "broker_faas sink", stack)
            session = _Session(self, connection)
            connection.listeners.add(session)
            yield session


class _Session:
    """connectors/sink.py: Sink. Also connection.Listener."""

    most = 1000

    def __init__(self, how: NatsSink, connection: Connection) -> None:
        self._how, self._connection = how, connection
        self._gone = False
        self._denied: set[str] = set()  # subjects, lower case; bounded by one send()

    async def send(self, events: Sequence[Outgoing]) -> Sequence[Undelivered | None]:
        outcomes: list[Undelivered | None] = [None] * len(events)
        self._denied.clear()
        wave: dict[int, Record] = {}  # by position
        size = 0
        for position, (target, event) in enumerate(events):
            record = self._record(target, event)
            each = _HEAD + len(record.headers) + len(record.data)
            if each > self._connection.client.max_payload:
                outcomes[position] = Undelivered(
                    f"a message of {each:,} bytes, and this server takes {self._connection.client.max_payload:,} (max_payload)", again=False
                )
                continue
            if len(wave) == MAX_WAVE or (wave and size + each > MAX_BYTES):
                await self._deliver(wave, outcomes)
                wave, size = {}, 0
            wave[position] = record
            size += each
        await self._deliver(wave, outcomes)
        return outcomes

    def _record(self, target: str, event: CloudEvent) -> Record:
        """Its id is of the target, too: a stream has one window for all its subjects."""
        headers, data = to_nats(event, self._how.format == "structured")
        id = blake2b(f"{target}\0{event.source}\0{event.id}".encode(), digest_size=16)
        return Record(target, id.hexdigest(), headers, data)

    async def _deliver(self, wave: dict[int, Record], outcomes: list[Undelivered | None]) -> None:
        if wave:
            await (self._plainly if self._how.core else self._to_streams)(wave, outcomes)

    async def _to_streams(self, wave: dict[int, Record], outcomes: list[Undelivered | None]) -> None:
        from ...buses.records import frame

        records = list(wave.values())
        async with self._connection.expect([record.subject for record in records]) as replies:
            self._write([frame(record, f"{replies.prefix}{n}", b"") for n, record in enumerate(records)])
            await replies.wait(_patience(records))
            self._check()
        for n, (position, record) in enumerate(wave.items()):
            if n in replies.denied:
                outcomes[position] = _denied(record.subject)
            else:
                outcomes[position] = _outcome(record.subject, replies.answers[n])

    async def _plainly(self, wave: dict[int, Record], outcomes: list[Undelivered | None]) -> None:
        """A server handles what comes on a connection in its order: with its PONG it has taken, or denied, all before."""
        from ...buses.records import frame

        self._write([frame(record, "", b"") for record in wave.values()])
        if not await self._connection.flush(seconds := _patience(wave.values())):
            raise SinkUnavailable(f"NATS did not answer within {seconds:g} s")
        self._check()
        for position, record in wave.items():
            if record.subject.lower() in self._denied:
                outcomes[position] = _denied(record.subject)

    def _write(self, frames: list[bytes]) -> None:
        self._check()
        if not self._connection.write(b"".join(frames)):
            raise SinkUnavailable("there is no connection to NATS")

    def _check(self) -> None:
        if self._gone:
            raise SinkUnavailable("the connection to NATS was lost")

    # --- connection.Listener ---

    def lost(self) -> None:
        self._gone = True

    def restored(self) -> None:
        """Too late: what was on its way may be lost, and whoever opens again sends it again."""

    def refused(self, subject: str) -> None:
        self._denied.add(subject)


def _patience(records: Iterable[Record]) -> float:
    return PATIENCE + sum(len(record.headers) + len(record.data) for record in records) / SLOWEST


def _denied(subject: str) -> Undelivered:
    return Undelivered(f"this NATS user may not publish to {subject}; grant it in the server's permissions")


def _outcome(subject: str, answer: tuple[bytes, bytes] | None) -> Undelivered | None:
    """Of one publish to a stream. Pure."""
    from ...buses.records import verdict

    if answer is None:
        return Undelivered(f"the stream on {subject} did not answer")
    code, text, *_ = verdict(*answer)
    if code == 0:
        return None
    if code == 503:
        return Undelivered(
            f"no stream takes {subject}: make one, like `nats stream add NAME --subjects {subject}`, or say core = true for plain subjects"
        )
    if code in _FULL:
        return Undelivered(f"the stream on {subject} is full ({text}): raise its limits, or let it discard old messages")
    return Undelivered(f"the stream on {subject} refuses it: {text} (err_code {code})", again=code != _TOO_LARGE)
