"""An event on the bus as a row: for tables, and for programs."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import orjson

from ..bus import Delivery
from ..errors import EventError
from ..event import CloudEvent
from ..layout import event_headers, origin
from .render import Column, moment


def event_row(delivery: Delivery) -> dict[str, Any]:
    """{sequence, stored (unix seconds), topic, event: its JSON format}; `problem` instead of `event` if it is none."""
    from_ = origin(delivery)
    row: dict[str, Any] = {"sequence": delivery.seq, "stored": delivery.stored_at, "topic": from_.topic}
    try:
        event = CloudEvent.from_headers(event_headers(delivery.headers), delivery.data)
    except EventError as error:
        return row | {"problem": str(error), "data": f"{len(delivery.data):,} bytes"}
    return row | {"id": event.id, "key": event.partitionkey, "event": as_json(event), "data": preview(event)}


def as_json(event: CloudEvent) -> dict[str, Any]:
    """Attributes, and `data` or `data_base64`: the event's JSON format."""
    if event.data is None:
        return dict(event.attributes)
    try:
        return {**event.attributes, "data": orjson.loads(event.data)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {**event.attributes, "data": event.data.decode()}
    except UnicodeDecodeError:
        return {**event.attributes, "data_base64": b64encode(event.data).decode()}


def preview(event: CloudEvent, limit: int = 200) -> str:
    """The data on one line."""
    if event.data is None:
        return "(no data)"
    try:
        text = event.data[: 4 * limit].decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return f"({len(event.data):,} bytes of {event.datacontenttype or 'binary data'})"
        text = event.data[: error.start].decode()
    return text[:limit] + ("…" if len(event.data) > limit else "")


def columns_of_events() -> list[Column]:
    return [
        Column("sequence", "sequence", right=True),
        Column("stored", "stored", moment),
        Column("topic", "topic"),
        Column("id", "id"),
        Column("key", "key"),
        Column("data", "data"),
    ]
