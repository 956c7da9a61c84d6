"""`decode = "module:function"` of a connector: (data, headers) -> data, a function of the project's, in a process of its own.

Apart, since it may hang, crash, leak or keep the interpreter to itself, and must not see what the connector knows: its environment is
that of executors. A batch at a time goes there, in the source's order. A process that dies or hangs while it decodes is replaced, the
batch goes on, and the record it was at is tried once more, alone: only what ends a process by itself is refused.

A record of 200 bytes takes 12 µs of CPU here, and 16 there with a function that does nothing, in batches of 500; starting takes 0.4 s (best
of 400 batches, two cores that were far from idle, Python 3.11).

decoder_parts/process.py  the process, from outside
decoder_parts/child.py    from inside
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SourceUnavailable
from ..event import CloudEvent
from .batch import DROPPED, Batch, Item, Route, refused
from .decoder_parts.frames import LARGEST, Decoded, Given, Kind, batches
from .decoder_parts.process import Child, Ended

TRIES = 3  # processes that end one after another without a record to blame, after which nothing more is started

Waits = Callable[[str], Awaitable[None]]
"""Pauses, when a decoder asks for another try: why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """function: `module:name`, importable from `root`. place: `faas.toml:12: connector 'orders'`, where it is named. environ: all it sees.

    import_timeout: seconds.
    """

    function: str
    root: Path
    place: str
    connector: str
    environ: Mapping[str, str] = field(repr=False)
    import_timeout: float = 60.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Decoding]:
        """When the function is imported. Raises ConfigError, SourceUnavailable."""
        decoding = Decoding(self)
        try:
            await decoding.start()
            yield decoding
        finally:
            decoding.end()
            await asyncio.sleep(0)  # its transport's last words


class Decoding:
    """An open decoder. pid: of its process, 0 while there is none."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._child: Child | None = None
        self._fresh: Child | None = None  # takes over with the next batch

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    async def start(self) -> None:
        self._child = await self._started()

    async def renew(self) -> None:
        """Import the function anew, for the batches that come. Raises ConfigError, SourceUnavailable: then the one before goes on."""
        fresh = await self._started()
        if self._fresh:
            self._fresh.end()
        self._fresh = fresh

    def end(self) -> None:
        for child in (self._child, self._fresh):
            if child:
                child.end()
        self._child = self._fresh = None

    async def _started(self) -> Child:
        one = self._decoder
        return await Child.start(one.function, one.root, one.environ, one.place, one.connector, one.import_timeout)

    async def decode(self, records: Sequence[Given]) -> list[Decoded]:
        """One for each, in order. One caller at a time. Raises ConfigError, SourceUnavailable: there is no process any more."""
        found: list[Decoded] = []
        for batch in batches(records):
            found += await self._decoded(batch)
        return found

    async def _decoded(self, batch: Sequence[Given]) -> list[Decoded]:
        found: list[Decoded] = []
        suspects: set[int] = set()  # records that a process ended with, which are tried alone
        blameless = 0
        while (at := len(found)) < len(batch):
            if len(batch[at][0]) > LARGEST:
                found.append(
                    Decoded(Kind.REFUSED, b"", f"{len(batch[at][0]):,} bytes are more than the {LARGEST:,} that a decoder is given")
                )
                continue
            alone = at in suspects
            to = at + 1 if alone else min((n for n in suspects if n > at), default=len(batch))
            answers, ended = await self._ask(batch[at:to])
            found += answers
            if ended is None:
                continue
            if ended.running is None:
                blameless += 1
                suspects.update(range(len(found), to))
                if blameless == TRIES:
                    raise SourceUnavailable(f"decoder {self._decoder.function} does not work: {ended.reason}")
            elif alone:
                found.append(Decoded(Kind.REFUSED, b"", ended.reason))
            else:
                suspects.add(at + ended.running)
        return found

    async def _ask(self, records: Sequence[Given]) -> tuple[list[Decoded], Ended | None]:
        if self._fresh:
            if self._child:
                self._child.end()
            self._child, self._fresh = self._fresh, None
        if self._child is None:
            await self.start()
        assert self._child
        try:
            answers, ended = await self._child.ask(records)
        except BaseException:  # its answers would be taken for those to the next batch
            self.end()
            raise
        if ended:
            self._child = None
        return answers, ended


async def decoded(route: Route, batch: Batch, decoding: Decoding, waits: Waits | None = None) -> Batch:
    """The batch with decoded data. Where `route.where` drops an event, or its data cannot be decoded, stands that.

    waits: called while the decoder asks for another try; without it, that is a refusal.
    """
    parts: list[tuple[str, list[Item]]] = [(name, list(items)) for name, items in batch.parts]
    todo: list[tuple[int, int, CloudEvent, Given]] = []
    for p, (_, items) in enumerate(parts):
        for i, item in enumerate(items):
            if isinstance(item, CloudEvent):
                if route.where is not None and not route.where.matches(item):
                    items[i] = DROPPED
                elif item.data is not None:
                    headers = batch.raw(p, i).headers if batch.raw else dict(item.attributes)
                    todo.append((p, i, item, (item.data, headers)))
    while todo:
        again = []
        for one, answer in zip(todo, await decoding.decode([given for *_, given in todo]), strict=True):
            p, i, event, _ = one
            if answer.kind == Kind.AGAIN and waits:
                again.append((one, answer.text))
            else:
                parts[p][1][i] = _became(event, answer)
        if again and waits:
            await waits(again[0][1])
        todo = [one for one, _ in again]
    return batch._replace(parts=parts)


def _became(event: CloudEvent, answer: Decoded) -> Item:
    if answer.kind in (Kind.REFUSED, Kind.AGAIN):
        return refused(event, answer.text)
    kept = {name: value for name, value in event.attributes.items() if name != "contentencoding"}
    if answer.kind == Kind.JSON:  # in the order in which headers on the bus are plain ones
        first = {name: kept.pop(name) for name in ("specversion", "id", "source", "type")}
        kept.pop("datacontenttype", None)
        kept = first | {"datacontenttype": "application/json"} | kept
    return CloudEvent.from_attributes(kept, None if answer.kind == Kind.NOTHING else answer.data)
