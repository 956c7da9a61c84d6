"""Batch: what one read of a source gave; and the records that it becomes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from ..bus import Record
from ..errors import EventError, TopicInvalid
from ..event import CloudEvent
from ..layout import event_record, event_records, position_record, position_subject, quarantine_record, shortened
from ..topics import check_topic
from ..where import Filter


class Refused(NamedTuple):
    """Something of a source that cannot become an event. where: its position there. headers: of the source, as text. reason: one line.

    event: what it would have been, if that is known.
    """

    where: str
    reason: str
    headers: Mapping[str, str]
    data: bytes
    event: CloudEvent | None = None


Item = CloudEvent | Refused

DROPPED = Refused("", "dropped by where", {}, b"")
"""In the place of what the route's filter has dropped."""


class Raw(NamedTuple):
    """A record as its source gave it. where, headers, data: as of Refused. rest: what else its driver needs to translate it again."""

    where: str
    headers: Mapping[str, str]
    data: bytes
    rest: object  # of what msgpack knows; decoded, it comes back as lists, text, bytes, numbers


class Batch(NamedTuple):
    """What one read of a source gave, in the source's order.

    parts: (name at the source, its events and refusals): the name is the topic on the bus where the connector has no `to`.
    token: the driver's own, for ack(). positions: {partition: position} behind this batch, of a source that can be read again.
    raw: the record that an item was made of, by the numbers of its part and of the item; None: it is not known.
    """

    parts: Sequence[tuple[str, Sequence[Item]]]
    token: object
    positions: Mapping[str, str]
    raw: Callable[[int, int], Raw] | None = None

    @property
    def items(self) -> list[tuple[str, Item]]:
        """(name at the source, item) of each."""
        return [(name, item) for name, items in self.parts for item in items]


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

    @property
    def read(self) -> int:
        return self.stored + self.filtered + self.quarantined


def records(route: Route, batch: Batch, now: float) -> Ready:
    """What is published for a batch: what is quarantined, its events, and how far the source is stored then. Pure. now: unix seconds."""
    events: list[Record] = []
    quarantine: list[Record] = []
    filtered = 0
    for p, (name, items) in enumerate(batch.parts):
        try:
            record = event_records(check_topic(route.to or name))
        except TopicInvalid as error:
            record = _refuse(error)
        for i, item in enumerate(items):
            if isinstance(item, Refused):
                if item is DROPPED:
                    filtered += 1
                else:
                    quarantine.append(_quarantined(route, batch, (p, i), item, now))
            elif route.where is not None and not route.where.matches(item):
                filtered += 1
            else:
                try:
                    events.append(record(item))
                except EventError as error:
                    quarantine.append(_quarantined(route, batch, (p, i), refused(item, error), now))
    stored = len(events)
    events += [position_record(route.name, partition, position) for partition, position in batch.positions.items()]
    return Ready(quarantine, events, batch.token, stored, filtered, len(quarantine))


def record_of(route: Route, name: str, item: Item) -> Record | Refused:
    """What records() makes of one item; DROPPED. Pure."""
    if isinstance(item, Refused):
        return item
    if route.where is not None and not route.where.matches(item):
        return DROPPED
    try:
        return event_record(check_topic(route.to or name), item)
    except EventError as error:
        return refused(item, error)


def refused(event: CloudEvent, why: object) -> Refused:
    """An event that is one for its driver, and not for what comes behind that."""
    return Refused(f"{event.source} {event.id}", str(why), dict(event.attributes), event.data or b"", event)


def _quarantined(route: Route, batch: Batch, place: tuple[int, int], item: Refused, now: float) -> Record:
    """As its source gave it, with what is needed to translate it again; as far as that is known."""
    if batch.raw is not None:
        raw = batch.raw(*place)
        again = _packed(("record", raw.rest))
        return quarantine_record(route.name, raw.where, item.reason, raw.headers, raw.data, now, again)
    name = batch.parts[place[0]][0]
    again = _packed(("event", name, dict(item.event.attributes), item.event.data is None)) if item.event else b""
    return quarantine_record(route.name, item.where, item.reason, item.headers, item.data, now, again)


def _packed(what: object) -> bytes:
    """For replay.py to read; nothing for text that has no encoding, which a connector of one's own may bring."""
    try:
        return msgspec.msgpack.encode(what)
    except UnicodeEncodeError:
        return b""


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
        quarantine=[shortened(record, limit) for record in quarantine],
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
