"""Cron: an event whenever a schedule says so. Any number of replicas fire the same ids at the same times, and the bus keeps one.

    the last fire stored ──▶ those due since then, as catch_up has it ──▶ the next one: wait, ask the bus what is stored, fire

When it fires follows from the options alone (schedule.py); nothing is drawn, elected or locked. The position of the only partition,
"fires", is the last fire time that is stored, in RFC 3339.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from typing import Any, ClassVar, Literal, Protocol

from ..errors import BusUnavailable, EventInvalid, SourceRefused, SourceUnavailable
from ..event import CloudEvent
from ..options import number
from ..schedule import Schedule
from .batch import Batch
from .pump import Positions

PARTITION = "fires"
NAME = "cron"  # at the source: the topic without a `to`
HORIZON = 3600.0  # seconds that a missed fire is caught up for
LONGEST_JITTER = HORIZON / 2  # so that what is on time is no older than that
MOST = 100  # missed fires that are caught up at once
ON_TIME = 10.0  # seconds that a fire may be late and counts as none that was missed: a slow moment is no outage
LOOK = 1.0  # seconds until the wall clock is looked at again: somebody may have set it
AHEAD = 86400.0  # seconds that the last fire stored may be ahead of the clock, which then has been set back
LARGEST = 64 << 10  # bytes of data, which a hundred events caught up have at once
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall clock, aware."""

    async def sleep(self, seconds: float) -> None:
        """Whatever happens to the wall clock meanwhile."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class CronConnector:
    """schedule: see schedule.py. tz: IANA name. data: of every event, JSON or text; None: no data.

    catch_up: of fires that were missed, "last" gives the latest, "all" the latest hundred, "skip" none; what is more than an hour old
    is never given. jitter: seconds that fires are spread over, each by what its source and time say; the event has the nominal time.
    """

    schedule: str
    tz: str = "UTC"
    catch_up: Literal["last", "skip", "all"] = "last"
    jitter: float = 0.0
    data: Any = field(default=None, repr=False)
    event_type: str = "cron.fired"
    clock: ClassVar[Clock] = SystemClock()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option."""
        Schedule(self.schedule, self.tz)
        try:
            number(0, LONGEST_JITTER, "seconds")(self.jitter)
        except ValueError as error:
            raise ValueError(f"jitter {error}") from None
        try:
            event = self._event("/project/name", datetime(2000, 1, 1, tzinfo=UTC))
        except EventInvalid as error:
            raise ValueError(f"makes no event: {error}") from None
        if len(event.data or b"") > LARGEST:
            raise ValueError(f"data of {len(event.data or b''):,} bytes is more than {LARGEST:,}: have the function fetch it")

    @asynccontextmanager
    async def open(self, source: str, positions: Positions) -> AsyncIterator[Fires]:
        fires = Fires(self, source, positions)
        await fires.begin()
        yield fires

    async def peek(self, source: str, n: int) -> Batch:
        times = islice(Schedule(self.schedule, self.tz).after(self.clock.now()), n)
        return Batch([(NAME, [self._event(source, time) for time in times])], None, {})

    def _event(self, source: str, time: datetime) -> CloudEvent:
        """source: /{project}/{name of the connector}."""
        name, at = source.rpartition("/")[2], written(time)
        return CloudEvent(
            type=self.event_type,
            source=source,
            id=f"{name}/{at}",
            time=at,
            data=self.data,
            datacontenttype="text/plain; charset=utf-8" if isinstance(self.data, str) else None,
            partitionkey=name,  # an ordered function runs one at a time
        )

    def _delay(self, source: str, time: datetime) -> timedelta:
        """Of this fire, from [0, jitter): the same in every replica."""
        if not self.jitter:
            return timedelta()
        drawn = int.from_bytes(blake2b(f"{source}\0{written(time)}".encode(), digest_size=4).digest())
        return timedelta(seconds=self.jitter * drawn / (1 << 32))


class Fires:
    """An open schedule: pump.Source."""

    def __init__(self, options: CronConnector, source: str, positions: Positions) -> None:
        self._options = options
        self._source = source
        self._positions = positions
        self._schedule = Schedule(options.schedule, options.tz)
        self._last = _LONG_AGO  # fires up to this one are given, stored or none of ours
        self._next = _LONG_AGO  # when the first one behind `_last` that is not due yet will be

    async def begin(self) -> None:
        """Reads how far it is stored. Before the first fire was stored there is none to be caught up."""
        self._passed(await self._stored() or self._options.clock.now())

    async def __aiter__(self) -> AsyncIterator[Batch]:
        clock = self._options.clock
        while True:
            now = clock.now()
            due, upcoming = self.due(now)
            # Asked each time, and not only by one that wakes late: a replica that is cut off from the bus has nothing on its way when
            # it is back, and what fell due meanwhile is for catch_up.
            if due and (stored := await self._stored()) and stored >= due[0]:
                self._passed(stored)
                continue
            if due:
                self._passed(due[-1])
            self._next = upcoming
            if due:
                yield Batch([(NAME, [self._options._event(self._source, time) for time in due])], None, {PARTITION: written(due[-1])})
            else:
                await clock.sleep(min((upcoming - now).total_seconds(), LOOK))

    def due(self, now: datetime) -> tuple[list[datetime], datetime]:
        """Fires to be given now, oldest first; and when the one behind them will be due."""
        if now < self._next:  # thousands of schedules look every second
            return [], self._next
        options = self._options
        late: deque[datetime] = deque(maxlen=MOST if options.catch_up == "all" else 1)
        due: list[datetime] = []
        upcoming = now + timedelta(days=1)  # if the calendar ends
        for time in self._schedule.after(max(self._last, now - timedelta(seconds=HORIZON))):
            at = time + options._delay(self._source, time)
            if at > now:
                upcoming = at
                break
            if (now - at).total_seconds() <= ON_TIME:
                due.append(time)
            else:
                late.append(time)
        match options.catch_up:
            case "all":
                due = [*late, *due][-MOST:]
            case "last":
                due = due or list(late)
        return due, upcoming

    def _passed(self, time: datetime) -> None:
        """Fires up to this one are given or stored: they never are again, whatever happens to the clock."""
        if time > self._last:
            self._last, self._next = time, _LONG_AGO

    async def ack(self, token: object) -> None:
        """The position says it."""

    async def lag(self) -> int | None:
        return None

    async def _stored(self) -> datetime | None:
        try:
            text = await self._positions(PARTITION)
        except BusUnavailable as error:
            raise SourceUnavailable(f"the bus cannot tell which fires it has: {error}", waited=True) from None
        if text is None:
            return None
        try:
            time = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            raise SourceRefused(f"the position stored for partition {PARTITION!r}, {text[:40]!r}, is no time") from None
        if (time - self._options.clock.now()).total_seconds() > AHEAD:  # it would be silent until then
            raise SourceRefused(
                f"the last fire stored, {written(time)}, is more than a day ahead of this machine's clock: set the clocks right"
            )
        return time


def written(time: datetime) -> str:
    """RFC 3339, whole seconds in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
