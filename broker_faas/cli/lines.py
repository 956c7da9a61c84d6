"""Lines of a file or a pipe, and the events in them."""

from __future__ import annotations

import asyncio
import codecs
import os
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson

from ..codec import from_json
from ..errors import EventInvalid, EventTooLarge
from ..event import CloudEvent
from ..layout import MAX_DATA, MAX_HEADERS, MAX_RECORD

CHUNK = 256 << 10
LONGEST = 4 * MAX_RECORD  # bytes of a line: an event whose data is all \uXXXX escapes or base64

Line = tuple[int, bytes]


async def lines(descriptor: int) -> AsyncIterator[list[Line]]:
    """Batches of (number from 1, line without its end): as many as are there to be read. Empty lines are left out.

    Cancellable while a pipe has nothing to say, and without a thread.
    """
    regular = is_file(descriptor)
    number, rest = 0, b""
    while True:
        if not regular:
            await _readable(descriptor)
        chunk = os.read(descriptor, CHUNK)
        *complete, rest = (rest + chunk).split(b"\n") if chunk else (rest, b"")
        batch = []
        for line in complete:
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if stripped := line.strip():
                batch.append((number, stripped))
        if len(rest) > LONGEST:
            raise EventInvalid(f"line {number + 1} is longer than {LONGEST:,} bytes: no event is. Is this a file of JSON lines?")
        if batch:
            yield batch
        if not chunk:
            return
        await asyncio.sleep(0)


def is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    try:
        loop.add_reader(descriptor, there.set)
    except PermissionError:  # /dev/null and the like never make one wait
        return
    try:
        await there.wait()
    finally:
        loop.remove_reader(descriptor)


@dataclass(frozen=True, slots=True)
class Draft:
    """Makes events of what the command line says: one of DATA, one of each line of a file.

    id: of the only event; of a file, the part before `/{line}`; None: drawn. source: of events that name none.
    attributes: given by options; they win over what a line says.
    """

    topic: str
    source: str
    id: str | None
    attributes: Mapping[str, str]

    def of_data(self, data: str | None) -> CloudEvent:
        """Raises EventInvalid, with what to do, if it is not JSON; with another datacontenttype it is text."""
        if data is None:
            return self._made(None, self.id)
        raw = data.encode("utf-8", "surrogateescape")
        if self._wants_json():
            try:
                orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                raise EventInvalid(
                    f"DATA is not JSON: {error}. Quote it for the shell, like '{{\"id\": 1}}'; "
                    "for other text add --header datacontenttype=text/plain"
                ) from None
        return self._made(raw, self.id)

    def of_line(self, number: int, line: bytes) -> CloudEvent:
        """A CloudEvent if the line is an object with `specversion`; otherwise the line is the data. Raises EventError."""
        identity = f"{self.id}/{number}" if self.id else None
        if self._wants_json():
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise EventInvalid(f"not JSON: {error}") from None
            if isinstance(value, dict) and "specversion" in value:
                return _fitting(from_json(line).replace(**self.attributes, **({"id": identity} if identity else {})))
        return self._made(line, identity)

    def _made(self, raw: bytes | None, identity: str | None) -> CloudEvent:
        given: dict[str, Any] = {
            "type": self.topic,
            "source": self.source,
            "id": identity or uuid4().hex,
            "time": datetime.now(UTC),
        }
        if raw is not None:
            given["datacontenttype"] = "application/json"
        return _fitting(CloudEvent(data=raw, **(given | dict(self.attributes))))

    def _wants_json(self) -> bool:
        return "json" in self.attributes.get("datacontenttype", "json")


def _fitting(event: CloudEvent) -> CloudEvent:
    if (size := len(event.data or b"")) > MAX_DATA:
        raise EventTooLarge(size, MAX_DATA, "data")
    if (size := len(event.headers())) > MAX_HEADERS:
        raise EventTooLarge(size, MAX_HEADERS, "attributes")
    return event
