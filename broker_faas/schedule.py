"""Schedule: when a cron expression fires in a time zone. Pure: it depends on the expression, the zone and tzdata alone.

    30 2 * * *            minute, hour, day of month, month, day of week
    */10 * * * * *        six fields: seconds first
    0 9 * * MON#1         the first Monday; 5L: the last Friday; L, LW: the month's last day, its last day from Monday to Friday
    @daily                and @hourly, @midnight, @weekly, @monthly, @yearly, @annually

Days as Debian's cron has them: if both the day of month and the day of week are given, one of them is enough; if either begins with
a star, both must fit. A local time that the clocks skip fires at the first instant after the gap, once for all that the gap holds.
One that comes twice fires the first time, and both times if the hour is a wildcard or a step: every 15 minutes stays every 15 minutes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from heapq import heappop, heappush
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
LONGEST = 1000  # characters of an expression
LAST_YEAR = 9998  # of datetime: a day later is one, too
_FIELDS = {
    "second": (0, 59, "0 to 59"),
    "minute": (0, 59, "0 to 59"),
    "hour": (0, 23, "0 to 23"),
    "day-of-month": (1, 31, "1 to 31, L or LW"),
    "month": (1, 12, "1 to 12 or JAN to DEC"),
    "day-of-week": (0, 7, "0 to 7 (0 and 7 are Sunday) or SUN to SAT, with #2 for the second of a month, 5L for the last Friday"),
}
_NOT_EVERYWHERE = ("localtime", "posix", "right", "Factory")  # zones of one machine's own, or with leap seconds
_SECOND = timedelta(seconds=1)


class Schedule:
    """zone: the IANA name as a ZoneInfo. Raises ValueError, naming the field and what it may hold."""

    __slots__ = ("_both", "_days", "_every", "_hours", "_minutes", "_months", "_seconds", "_weekdays", "expression", "zone")

    def __init__(self, expression: str, tz: str = "UTC") -> None:
        parsed = _parsed(expression)
        self.expression = expression
        self.zone = _zone(tz)
        self._seconds, self._minutes, self._hours = (tuple(sorted(one)) for one in (parsed.seconds, parsed.minutes, parsed.hours))
        # Tuples, and not the sets of cronsim: ten thousand schedules are a tenth of the memory.
        self._months, self._days, self._weekdays = tuple(sorted(parsed.months)), tuple(parsed.days), tuple(parsed.weekdays)
        self._both = parsed.day_and
        hours = parsed.parts[2]
        self._every = "*" in hours or "/" in hours or len(self._hours) == 24
        if not self._possible():
            raise ValueError(
                f"schedule {expression!r} never fires: no month has such a day. Mend the day of month, the month or the day of week"
            )

    def after(self, instant: datetime) -> Iterator[datetime]:
        """Fire times later than this aware instant, in UTC, ascending. Ends with the calendar only."""
        here = instant.astimezone(self.zone).replace(tzinfo=None, microsecond=0)
        first, second = self._offsets(here)
        if first > second:  # what was passed may come a second time
            here -= first - second
        return self._fires(here, instant.astimezone(UTC))

    def names(self, local: datetime) -> bool:
        """Whether the expression has this local time, without regard to gaps and folds."""
        there = local.second in self._seconds and local.minute in self._minutes and local.hour in self._hours
        return there and local.month in self._months and local.day in self._month(local.year, local.month)

    def _fires(self, start: datetime, last: datetime) -> Iterator[datetime]:
        """Those after `last`. start: a local time before which no time fires after `last`."""
        again: list[datetime] = []  # second occurrences, which come behind the first ones of later local times
        behind: datetime | None = start  # local times before this one are in a gap that has fired
        local = self._local(start)
        while behind is not None:
            behind = None
            for naive in local:
                first, second = self._offsets(naive)
                instant = (naive - first).replace(tzinfo=UTC)
                if first < second:
                    instant = self._transition(naive, first, second)
                    behind = (instant + second).replace(tzinfo=None)
                while again and again[0] < instant:
                    if (one := heappop(again)) > last:
                        yield (last := one)
                if instant > last:
                    yield (last := instant)
                if behind is not None:
                    local = self._local(behind)
                    break
                if first > second and self._every:
                    heappush(again, (naive - second).replace(tzinfo=UTC))

    def _transition(self, naive: datetime, first: timedelta, second: timedelta) -> datetime:
        """The instant after the gap that this local time is in."""
        low = (naive - second).replace(tzinfo=UTC)  # at the latest there it has not begun
        span = range(int((second - first) / _SECOND) + 1)
        passed = bisect_left(span, True, key=lambda n: (low + n * _SECOND).astimezone(self.zone).utcoffset() == second)
        return low + passed * _SECOND

    def _offsets(self, naive: datetime) -> tuple[timedelta, timedelta]:
        """Of UTC at this local time, before and after a transition that makes it ambiguous or skips it; otherwise the same."""
        first, second = self.zone.utcoffset(naive), self.zone.utcoffset(naive.replace(fold=1))
        assert first is not None
        assert second is not None
        return first, second

    def _local(self, start: datetime) -> Iterator[datetime]:
        """Local times from `start` on that the expression has."""
        for day in self._dates(start.date()):
            for hour in self._hours:
                at = datetime(day.year, day.month, day.day, hour, 59, 59)
                if at < start:
                    continue
                for minute in self._minutes:
                    at = at.replace(minute=minute, second=59)
                    if at < start:
                        continue
                    for second in self._seconds:
                        at = at.replace(second=second)
                        if at >= start:
                            yield at

    def _dates(self, start: date) -> Iterator[date]:
        for year in range(start.year, LAST_YEAR + 1):
            for month in self._months:
                if (year, month) >= (start.year, start.month):
                    first = start.day if (year, month) == (start.year, start.month) else 1
                    for day in self._month(year, month, first):
                        yield date(year, month, day)

    def _month(self, year: int, month: int, first: int = 1) -> Iterator[int]:
        """Days of this month that fit, from the `first` on."""
        weekday, length = monthrange(year, month)
        return (day for day in range(first, length + 1) if self._fits(day, (weekday + day - 1) % 7 + 1, length))

    def _fits(self, day: int, weekday: int, length: int) -> bool:
        """weekday: 1 is Monday, 7 Sunday, which an expression may also call 0."""
        friday = (weekday + length - day - 1) % 7 - 4  # days that the month's last one is behind Friday, if above 0
        of_month = (
            day in self._days
            or (CronSim.LAST in self._days and day == length)
            or (CronSim.LAST_WEEKDAY in self._days and day == length - max(0, friday))
        )
        if not of_month and self._both:
            return False
        if of_month and not self._both:
            return True
        nth = (day - 1) // 7 + 1
        names = (weekday, 0) if weekday == 7 else (weekday,)
        return any(
            name in self._weekdays or (name, nth) in self._weekdays or (day + 7 > length and (name, CronSim.LAST) in self._weekdays)
            for name in names
        )

    def _possible(self) -> bool:
        """Months are alike if they are as long and begin on the same weekday; the calendar has all of these, and goes on."""
        lengths = {length for month in self._months for length in ((28, 29) if month == 2 else (monthrange(2000, month)[1],))}
        return any(
            self._fits(day, (weekday + day - 1) % 7 + 1, length)
            for length in lengths
            for weekday in range(7)
            for day in range(1, length + 1)
        )


# --- reading ------------------------------------------------------------------------------------------------


def _parsed(expression: str) -> CronSim:
    """cronsim reads the fields. What it lets through is refused before: other scripts' letters and digits, newlines, L/2, */100."""
    label = f"schedule {expression if len(expression) <= 60 else expression[:57] + '...'!r}"
    if len(expression) > LONGEST:
        raise ValueError(f"{label} has {len(expression):,} characters; {LONGEST:,} are enough for any")
    text = MACROS.get(expression.strip(" \t"), expression)
    if text.lstrip().startswith("@"):
        raise ValueError(f"{label} is no name of one: there are {', '.join(MACROS)}")
    if found := re.search(r"[^A-Za-z0-9*,/# \t-]", text):
        raise ValueError(f"{label} has {found[0]!r}: a schedule is made of digits, names like MON and JAN, and * , - / # L")
    fields = text.upper().split()
    if len(fields) not in (5, 6):
        raise ValueError(f"{label} has {len(fields)} fields: write minute, hour, day of month, month, day of week; or second before them")
    for name, field in zip(list(_FIELDS)[-len(fields) :], fields, strict=True):
        low, high, range_ = _FIELDS[name]
        steps = [int(step) for step in re.findall(r"/([0-9]{1,9})", field)]
        if max(steps, default=1) > high - low + 1 or re.search(r"LW?/", field):
            raise ValueError(f"{label}: {name} {field[:40]!r} has a step that is none: {name} is {range_}; a step is a part of that")
    try:
        # cronsim reads 5-5/3 as 5/3, which is 5, 8, 11 and so on.
        return CronSim(re.sub(r"\b([A-Za-z0-9]+)-\1/0*[1-9][0-9]*", r"\1", text), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        for name, field in zip(list(_FIELDS)[-len(fields) :], fields, strict=True):
            if str(error) == f"Bad {name}":
                if name == "day-of-month" and re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", field) and int(field.split(",")[0]) in (30, 31):
                    raise ValueError(f"{label} never fires: no month that it names has such a day") from None
                raise ValueError(f"{label}: {name} {field[:40]!r} is none: it is {_FIELDS[name][2]}, or *") from None
        raise ValueError(f"{label} is none: {error}") from None


def _zone(name: str) -> ZoneInfo:
    if re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name) and not name.startswith(_NOT_EVERYWHERE):
        try:
            return ZoneInfo(name)
        except (LookupError, OSError, ValueError):
            pass
    known = {zone.lower(): zone for zone in available_timezones() if not zone.startswith(_NOT_EVERYWHERE)}
    likely = get_close_matches(name[:60].lower(), known, 1)
    hint = f"; did you mean {known[likely[0]]!r}?" if likely else ". Write one like 'Europe/Berlin', or 'UTC'"
    raise ValueError(f"tz {name[:60]!r} is no time zone{hint}")
