"""A quarantined record as its connector would translate it now. Pure, but for the decoder's part, which is decoder.py's.

What is kept of a record: docs of layout.quarantine_record(), and _packed() in batch.py.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from ..bus import Delivery
from ..errors import EventInvalid
from ..event import CloudEvent
from ..layout import faas_headers
from .batch import Batch, Item, Raw, Refused


@runtime_checkable
class Translator(Protocol):
    """A connector whose batches have `raw`: what it gave can be translated again."""

    def again(self, source: str, data: bytes, rest: object) -> Batch:
        """Of one record, with the id that it had: data and rest are of its Raw. Pure. Raises ValueError if `rest` is none of its own."""


class _Record(msgspec.Struct, array_like=True, tag="record"):
    rest: object


class _Event(msgspec.Struct, array_like=True, tag="event"):
    name: str
    attributes: dict[str, str]
    no_data: bool


_kept: msgspec.msgpack.Decoder[_Record | _Event] = msgspec.msgpack.Decoder(_Record | _Event)


def replayable(told: Mapping[str, str]) -> bool:
    """told: its faas_headers()."""
    return "again" in told


def again(connector: object, source: str, kept: Sequence[Delivery]) -> Batch:
    """As a batch of that connector: a part for each record, of one item. What cannot be translated is Refused."""
    raws: list[Raw] = []
    parts: list[tuple[str, Sequence[Item]]] = []
    for delivery in kept:
        told = faas_headers(delivery.headers)
        try:
            part, raw = _translated(connector, source, told, delivery.data)
        except (ValueError, EventInvalid) as error:  # msgspec's are ValueErrors
            raw = Raw(told.get("position", ""), {}, delivery.data, None)
            part = "", [Refused(raw.where, f"it cannot be replayed: {error}", raw.headers, raw.data)]
        parts.append(part)
        raws.append(raw)
    return Batch(parts, None, {}, lambda part, _: raws[part])


def _translated(connector: object, source: str, told: Mapping[str, str], data: bytes) -> tuple[tuple[str, Sequence[Item]], Raw]:
    if not replayable(told):
        if "cut" in told:
            raise ValueError(f"it was cut ({told['cut']})")
        raise ValueError("its connector, or the version that it had then, keeps too little of a record")
    kept = _kept.decode(b64decode(told["again"], validate=True))
    if isinstance(kept, _Event):
        event = CloudEvent.from_attributes(kept.attributes, None if kept.no_data else data)
        return (kept.name, [event]), Raw(told.get("position", ""), kept.attributes, data, None)
    if not isinstance(connector, Translator):
        raise ValueError(f"{type(connector).__name__} has no method again()")
    batch = connector.again(source, data, kept.rest)
    assert batch.raw
    return batch.parts[0], batch.raw(0, 0)
