"""Batch: what one read of a source gave; and the records that it becomes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from ..bus import Record
from ..errors import EventError, TopicInvalid
from ..event import CloudEvent
from ..layout import event_records, position_record, position_subject, quarantine_record
from ..topics import check_topic
from ..where import Filter


class Refused(NamedTuple):
    """Something of a source that cannot become an event. where: its position there. headers: of the source, as text. reason: one line."""

    where: str
    reason: str
    headers: Mapping[str, str]
    data: bytes


class Batch(NamedTuple):
    """What one read of a source gave, in the source's order.

    parts: (name at the source, its events and refusals): the name is the topic on the bus where the connector has no `to`.
    token: the driver's own, for ack(). positions: {partition: position} behind this batch, of a source that can be read again.
    """

    parts: Sequence[tuple[str, Sequence[CloudEvent | Refused]]]
    token: object
    positions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """name: of the connector. source: of the events it makes. to: topic on the bus; None: the name at the source. where: else dropped."""

    name: str
    source: str
    to: str | None = None
    where: Filter | None = None


@dataclass(slots=True)
class Known:
    """What a connector knows of a partition since it asked: the sequence of the last position record, 0 if there was none."""

    sequence: int


class Ready(NamedTuple):
    """A batch as it goes to the bus. events: and behind them the positions. stored: of events, those that are.

    known: by partition, what was known of it when the batch was read, and is by what was stored since.
    """

    quarantine: list[Record]
    events: list[Record]
    token: object
    stored: int
    filtered: int = 0
    quarantined: int = 0
    known: Mapping[str, Known] = MappingProxyType({})


def records(route: Route, batch: Batch, now: float) -> Ready:
    """What is published for a batch: what is quarantined, its events, and how far the source is stored then. Pure. now: unix seconds."""
    events: list[Record] = []
    quarantine: list[Record] = []
    filtered = 0
    for name, items in batch.parts:
        try:
            record = event_records(check_topic(route.to or name))
        except TopicInvalid as error:
            record = _refuse(error)
        for item in items:
            if isinstance(item, Refused):
                quarantine.append(quarantine_record(route.name, item.where, item.reason, item.headers, item.data, now))
            elif route.where is not None and not route.where.matches(item):
                filtered += 1
            else:
                try:
                    events.append(record(item))
                except EventError as error:
                    where, headers = f"{item.source} {item.id}", dict(item.attributes)
                    quarantine.append(quarantine_record(route.name, where, str(error), headers, item.data or b"", now))
    stored = len(events)
    events += [position_record(route.name, partition, position) for partition, position in batch.positions.items()]
    return Ready(quarantine, events, batch.token, stored, filtered, len(quarantine))


def _refuse(error: TopicInvalid) -> Callable[[CloudEvent], Record]:
    def refuse(event: CloudEvent) -> Record:
        raise error

    return refuse


def smaller(route: Route, ready: Ready, limit: int, now: float) -> Ready:
    """Without the events of more than `limit` bytes: they are quarantined, as much of them as there is room for. Pure."""
    large = [record for record in ready.events if _size(record) > limit]
    quarantine = [*ready.quarantine]
    for record in large:
        reason = f"{_size(record)} bytes are more than the {limit} that this server takes"
        quarantine.append(quarantine_record(route.name, record.msg_id, reason, {}, record.data, now))
    return ready._replace(
        quarantine=[record._replace(data=record.data[: max(0, limit - len(record.headers))]) for record in quarantine],
        events=[record for record in ready.events if _size(record) <= limit],
        stored=ready.stored - len(large),
        quarantined=ready.quarantined + len(large),
    )


def following(route: Route, ready: Ready) -> tuple[list[Record], dict[str, int]]:
    """What is published, and by the subject of each position in it, the sequence that it must follow. Pure.

    A position that follows another one is another record: an operator who sets a source back within two minutes gets it stored again.
    """
    last = {position_subject(route.name, partition): known.sequence for partition, known in ready.known.items()}
    if not last:
        return ready.events, last
    events = [
        record if (sequence := last.get(record.subject)) is None else record._replace(msg_id=f"{record.msg_id}:{sequence}")
        for record in ready.events
    ]
    return events, last


def _size(record: Record) -> int:
    return len(record.headers) + len(record.data)
