"""`faas publish`: one event, or the lines of a file or pipe."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ..errors import BusError, EventError
from . import values
from .connection import Place, find, url_option
from .exit import Failed
from .render import Progress, count, duration, moment, number

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus
    from ..event import CloudEvent
    from .lines import Draft, Line

MAX_SHOWN = 5  # bad lines
CHUNK = 1000  # events of one publish: an atomic batch


@click.command()
@click.argument("topic")
@click.argument("data", required=False)
@click.option(
    "-f", "--file", metavar="FILE", help="JSON lines instead of DATA: each is data, or a CloudEvent if it has specversion. '-' is stdin."
)
@click.option(
    "--id",
    metavar="ID",
    help="An id of one source, published to a topic twice within 2 minutes, is stored once. With -f: ID/{line}. [default: drawn]",
)
@click.option("--source", metavar="URI", help="Where it happened. [default: /{project}/publish]")
@click.option("--type", metavar="TYPE", help="[default: the topic]")
@click.option("--subject", metavar="TEXT", help="What it is about, within the source.")
@click.option("--key", metavar="KEY", help="Events of one key keep their order in functions with ordered=True.")
@click.option(
    "--header",
    "headers",
    type=values.pair,
    metavar="NAME=VALUE",
    multiple=True,
    help="An extension attribute, or time, datacontenttype, dataschema.",
)
@click.option("--delay", type=values.duration, metavar="DURATION", help="Deliver it after 30s, 5m, 2h, 1d …")
@click.option("--at", type=values.moment, metavar="TIME", help="Deliver it at a time, like 2030-01-31T08:00:00Z.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N events a second, from a file.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that are no events, and say which.")
@url_option
def publish(
    topic: str,
    data: str | None,
    file: str | None,
    id: str | None,
    source: str | None,
    type: str | None,
    subject: str | None,
    key: str | None,
    headers: tuple[tuple[str, str], ...],
    delay: float | None,
    at: float | None,
    rate: float | None,
    skip_bad: bool,
    url: str | None,
) -> None:
    """Publish an event to TOPIC, or many of them.

    DATA is JSON. A file is checked as a whole before the first of its lines is sent; a pipe is sent as it comes, and ends at the
    first line that is no event.

    \b
    Example:
      faas publish orders.created '{"id": 1}' --key 42
      faas publish orders.created -f orders.jsonl --rate 200
      tail -f app.log.jsonl | faas publish app.logged -f -
      faas publish reminders.due '{"user": 7}' --at 2030-01-31T08:00:00Z
    """
    if file is not None and data is not None:
        raise click.UsageError("give DATA or -f, not both.")
    if rate is not None and not rate > 0:
        raise click.UsageError("--rate must be a number above 0.")
    if file is None and (skip_bad or rate):
        raise click.UsageError("--skip-bad and --rate are for -f.")
    if file == "-" and not os.path.exists("/proc/self/fd/0"):  # before the event loop opens something of its own in its place
        raise click.UsageError("-f -: standard input is closed.")
    if delay is not None and at is not None:
        raise click.UsageError("give --delay or --at, not both.")
    from ..topics import check_topic

    check_topic(topic)
    place = find(url)
    options = {"source": source, "type": type, "subject": subject, "partitionkey": key}
    for name, _ in headers:
        if name in (*options, "id", "data", "specversion"):
            raise click.UsageError(f"--header {name}: this attribute has an option of its own, or cannot be set.")
    attributes = {name: value for name, value in options.items() if value is not None} | dict(headers)
    due = time.time() + delay if delay is not None else at
    asyncio.run(_publish(place, topic, data, file, id, attributes, due, rate, skip_bad))


async def _publish(
    place: Place,
    topic: str,
    data: str | None,
    file: str | None,
    id: str | None,
    attributes: dict[str, str],
    due: float | None,
    rate: float | None,
    skip_bad: bool,
) -> None:
    from ..buses.listing import hears
    from .lines import Draft

    async with place.open(manage=True) as bus:
        draft = Draft(topic, f"/{place.config.project}/publish" if place.config else "/faas/publish", id, attributes)
        sender = Sender(bus, topic, due, rate)
        if file is None:
            event = draft.of_data(data)
            await sender.send([(1, event)])
            click.echo(f"{sender.summary()}; id {event.id}{'' if event.data is not None else '; it has no data'}")
        else:
            await Lines(file, draft, sender, skip_bad).publish()
            click.echo(sender.summary())
        if not await hears(bus, topic):
            note = f"note: no function listens to {topic} yet, so nothing will run. 'faas functions' shows who listens to what."
            click.echo(note, err=True)


@dataclass
class Sender:
    """Stores events, at most `rate` a second, and counts them. at: line of the last that is stored."""

    bus: JetStreamBus
    topic: str
    due: float | None
    rate: float | None
    progress: Progress | None = None
    stored: int = 0
    duplicates: int = 0
    at: int = 0
    started: float = 0.0

    async def send(self, events: list[tuple[int, CloudEvent]]) -> None:
        from ..layout import delayed_record, event_record

        self.started = self.started or time.monotonic()
        step = CHUNK if self.rate is None else max(1, min(CHUNK, int(self.rate / 20)))
        for first in range(0, len(events), step):
            part = events[first : first + step]
            if self.rate:
                await asyncio.sleep(self.started + self.stored / self.rate - time.monotonic())
            records = [event_record(self.topic, e) if self.due is None else delayed_record(self.topic, e, self.due) for _, e in part]
            self.duplicates += await self.bus.publish(records)
            self.stored += len(part)
            self.at = part[-1][0]
            if self.progress:
                self.progress.add(len(part))

    def summary(self) -> str:
        seconds = time.monotonic() - self.started
        text = f"stored {count(self.stored - self.duplicates, 'event')} on {self.topic}"
        if self.stored > 1:
            text += f" in {duration(seconds)} ({number(self.stored / seconds)}/s)"
        if self.due is not None:
            text += f", {'due' if self.due > time.time() else 'due at once:'} {moment(self.due)}"
        if self.duplicates:
            text += f"; {number(self.duplicates)} more were there already (same id within 2 minutes)"
        return text


@dataclass
class Lines:
    """The events of a file or pipe. name: as given, '-' is stdin.

    A regular file with a bad line is refused before anything is sent; a pipe ends at its first bad line. skip_bad: neither.
    """

    name: str
    draft: Draft
    sender: Sender
    skip_bad: bool
    bad: int = 0

    async def publish(self) -> None:
        """Whatever ends it early, stderr says up to which line all is stored. Raises Failed if lines were bad."""
        from .lines import is_file

        with _opened(self.name) as descriptor:
            total = None
            if is_file(descriptor):
                start = os.lseek(descriptor, 0, os.SEEK_CUR)
                total = await self._check(descriptor)
                os.lseek(descriptor, start, os.SEEK_SET)
            self.sender.progress = Progress("events", total)
            try:
                await self._send(descriptor, told=total is not None)
            except (BusError, EventError, asyncio.CancelledError):
                self.sender.progress.clear()
                done = f"everything up to {self._where(self.sender.at)} is stored" if self.sender.stored else "nothing is stored"
                click.echo(f"faas: stopped; {done}.", err=True)
                raise
            self.sender.progress.clear()
        if self.bad and not self.skip_bad:
            raise Failed(f"{self.sender.summary()}, up to the bad line. Mend it, or leave such lines out: --skip-bad.")
        if self.bad:
            click.echo(f"{count(self.bad, 'bad line')} left out", err=True)

    async def _check(self, descriptor: int) -> int:
        """How many lines are events. Raises Failed if others are not, unless they may be skipped."""
        from .lines import lines

        good = 0
        async for batch in lines(descriptor):
            good += sum(event is not None for _, event in self._events(batch, tell=True))
        if self.bad and not self.skip_bad:
            raise Failed(f"{count(self.bad, 'bad line')} in {self.name}; nothing was sent. Mend them, or leave them out: --skip-bad.")
        self.bad = 0
        return good

    async def _send(self, descriptor: int, told: bool) -> None:
        from .lines import lines

        async for batch in lines(descriptor):
            events: list[tuple[int, CloudEvent]] = []
            for at, event in self._events(batch, tell=not told):
                if event:
                    events.append((at, event))
                elif not self.skip_bad:
                    return await self.sender.send(events)
            await self.sender.send(events)

    def _events(self, batch: list[Line], tell: bool) -> Iterator[tuple[int, CloudEvent | None]]:
        for at, line in batch:
            try:
                yield at, self.draft.of_line(at, line)
            except EventError as error:
                self.bad += 1
                if tell and self.bad <= MAX_SHOWN:
                    click.echo(f"{self._where(at)}: {error}", err=True)
                elif tell and self.bad == MAX_SHOWN + 1:
                    click.echo("… and more", err=True)
                yield at, None

    def _where(self, at: int) -> str:
        return f"{'stdin' if self.name == '-' else self.name}:{at}"


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """Raises ConfigError if there is no such file."""
    if name == "-":
        yield 0
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO waits here for a writer, deaf to Ctrl-C
    except OSError as error:
        raise click.UsageError(f"-f {name} cannot be read: {error.strerror}.") from None
    try:
        if os.path.isdir(name):
            raise click.UsageError(f"-f {name} is a folder; name a file of JSON lines.")
        yield descriptor
    finally:
        os.close(descriptor)
