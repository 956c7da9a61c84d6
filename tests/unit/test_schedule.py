"""Schedule against an oracle that looks at every second's local time, and shares no line with it."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_faas.schedule import LONGEST, MACROS, Schedule

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Asia/Kathmandu",  # moved by 15 minutes in 1986
    "Africa/Casablanca",  # back for Ramadan: twice a year, and never on the same days
    "Pacific/Apia",  # had no 30 December 2011
    "America/Sao_Paulo",  # summer time began at midnight
    "UTC",
]
MINUTE = timedelta(minutes=1)
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEK = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
ARABIC, LONG_S = "\u0660", "\u017f"  # int() takes the one, upper() makes an S of the other

# --- the oracle ---------------------------------------------------------------------------------------------


class Oracle:
    """Walks over the instants, a minute a step, and asks of each what the clock on the wall says."""

    def __init__(self, expression: str, tz: str) -> None:
        self.zone = ZoneInfo(tz)
        minute, hour, self.dom, month, self.dow = expression.split()
        self.minutes, self.hours, self.months = values(minute, 0, 59), values(hour, 0, 23), values(month, 1, 12)
        self.every = "*" in hour or "/" in hour
        self.days: dict[tuple[int, int, int], bool] = {}

    def between(self, start: datetime, end: datetime) -> list[datetime]:
        """Fires in (start, end]; both are whole minutes in UTC."""
        return [start + n * MINUTE for n in range(1, (end - start) // MINUTE + 1) if self.fires(start + n * MINUTE)]

    def fires(self, instant: datetime) -> bool:
        wall = self.wall(instant)
        before = self.wall(instant - MINUTE)
        skipped = (before + n * MINUTE for n in range(1, (wall - before) // MINUTE))
        if any(self.says(one) for one in skipped):
            return True
        if not self.says(wall):
            return False
        return self.every or not any(self.wall(instant - n * timedelta(minutes=30)) == wall for n in (1, 2, 3, 4))

    def wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self.zone).replace(tzinfo=None)

    def says(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months or wall.second:
            return False
        day = (wall.year, wall.month, wall.day)
        if day not in self.days:
            by_month = any(self.is_day_of_month(wall, part) for part in self.dom.split(","))
            by_week = any(self.is_day_of_week(wall, part) for part in self.dow.split(","))
            either = not self.dom.startswith("*") and not self.dow.startswith("*")
            self.days[day] = by_month or by_week if either else by_month and by_week
        return self.days[day]

    def is_day_of_month(self, wall: datetime, part: str) -> bool:
        weeks = calendar.monthcalendar(wall.year, wall.month)
        if part == "L":
            return wall.day == max(max(week) for week in weeks)
        if part == "LW":
            return wall.day == max(max(week[:5]) for week in weeks)
        return wall.day in values(part, 1, 31)

    def is_day_of_week(self, wall: datetime, part: str) -> bool:
        weekday = (wall.weekday() + 1) % 7
        column = [week[wall.weekday()] for week in calendar.monthcalendar(wall.year, wall.month) if week[wall.weekday()]]
        if part.endswith("L"):
            return weekday in {one % 7 for one in values(part[:-1], 0, 7)} and wall.day == column[-1]
        if "#" in part:
            name, n = part.split("#")
            return weekday in {one % 7 for one in values(name, 0, 7)} and column.index(wall.day) == int(n) - 1
        return weekday in {one % 7 for one in values(part, 0, 7)}


def values(field: str, low: int, high: int) -> set[int]:
    for n, name in enumerate(MONTHS, 1):
        field = field.replace(name, str(n))
    for n, name in enumerate(WEEK):
        field = field.replace(name, str(n))
    found: set[int] = set()
    for part in field.split(","):
        body, _, step = part.partition("/")
        if body == "*":
            first, last = low, high
        elif "-" in body:
            first, last = map(int, body.split("-"))
        else:
            first, last = int(body), high if step else int(body)
        found |= set(range(first, last + 1, int(step or 1)))
    return found


def fires(expression: str, tz: str, start: datetime, end: datetime) -> list[datetime]:
    found: list[datetime] = []
    for one in Schedule(expression, tz).after(start):
        if one > end:
            break
        found.append(one)
    return found


# --- expressions --------------------------------------------------------------------------------------------


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda two: f"{min(two)}-{max(two)}")
    step = st.integers(1, high - low + 1)
    one = st.one_of(
        number.map(str), span, st.builds("{}/{}".format, span, step), st.builds("{}/{}".format, number, step), step.map("*/{}".format)
    )
    return st.one_of(st.just("*"), number.map(str), st.lists(one, min_size=1, max_size=3).map(",".join))


DAYS = st.one_of(
    st.just("*"),
    st.just("*"),
    field(1, 28).filter(lambda text: not text.startswith("*")),
    st.sampled_from(["L", "LW", "1,L", "31", "15,LW"]),
)
WEEKDAYS = st.one_of(
    st.just("*"), st.just("*"), field(0, 7), st.sampled_from(["MON", "MON-FRI", "5L", "MON#1", "SUN#5,7L", "0", "7", "SAT,2#3"])
)
EXPRESSIONS = st.builds("{} {} {} * {}".format, field(0, 59), field(0, 23), DAYS, WEEKDAYS)


def transitions(tz: str, year: int) -> Iterator[datetime]:
    zone, hour = ZoneInfo(tz), datetime(year, 1, 1, tzinfo=UTC)
    for one, other in pairwise(hour + timedelta(hours=n) for n in range(366 * 24)):
        if one.astimezone(zone).utcoffset() != other.astimezone(zone).utcoffset():
            yield one


CHANGES = [
    (tz, one)
    for tz, years in {
        "Europe/Berlin": (1980, 2026, 2099),
        "America/New_York": (1974, 2026, 2030),
        "Australia/Lord_Howe": (1981, 2026),
        "Asia/Kathmandu": (1985,),
        "Africa/Casablanca": (2026, 2087),
        "Pacific/Apia": (2011,),
        "America/Sao_Paulo": (2018,),
    }.items()
    for year in years
    for one in transitions(tz, year)
]


@given(EXPRESSIONS, st.sampled_from(ZONES), st.integers(0, 130 * 365 * 1440))
@settings(max_examples=40, deadline=None)
def test_it_fires_when_the_clock_on_the_wall_says_so(expression: str, tz: str, minute: int) -> None:
    start = datetime(1970, 1, 2, tzinfo=UTC) + minute * MINUTE
    end = start + timedelta(hours=18)

    assert Oracle(expression, tz).between(start, end) == fires(expression, tz, start, end)


@given(EXPRESSIONS, st.sampled_from(CHANGES), st.integers(-200, 120))
@settings(max_examples=80, deadline=None)
def test_it_fires_as_it_should_where_clocks_are_changed(expression: str, change: tuple[str, datetime], minute: int) -> None:
    tz, at = change
    start = at + minute * MINUTE
    end = start + timedelta(hours=5)

    assert Oracle(expression, tz).between(start, end) == fires(expression, tz, start, end)


@pytest.mark.parametrize(("tz", "at"), CHANGES, ids=lambda one: f"{one:%Y-%m-%d}" if isinstance(one, datetime) else one)
@pytest.mark.parametrize("expression", ["*/15 * * * *", "30 2 * * *", "0,45 0-3 * * *", "10 */2 * * *", "7 * * * *", "0 0 L * *"])
def test_a_change_of_the_clocks_loses_no_fire_and_repeats_none(expression: str, tz: str, at: datetime) -> None:
    start, end = at - timedelta(hours=5), at + timedelta(hours=5)

    assert Oracle(expression, tz).between(start, end) == fires(expression, tz, start, end)


@pytest.mark.parametrize(("tz", "year"), [("Europe/Berlin", 2026), ("Australia/Lord_Howe", 2026), ("Pacific/Apia", 2011)])
def test_a_whole_year_around_its_transitions(tz: str, year: int) -> None:
    expression = "*/30 1-3 * * *"
    start, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    zone = ZoneInfo(tz)
    found = fires(expression, tz, start, end)
    wall = [f"{one.astimezone(zone):%Y-%m-%d %H:%M}" for one in found]
    changed = list(transitions(tz, year))
    oracle = Oracle(expression, tz)
    near = [one for at in changed for one in oracle.between(at - timedelta(days=1), at + timedelta(days=1))]
    ours = [one for at in changed for one in found if at - timedelta(days=1) < one <= at + timedelta(days=1)]

    assert near == ours
    assert len(set(wall)) == len(wall)
    assert sorted(found) == found


# --- cases --------------------------------------------------------------------------------------------------


def local(expression: str, tz: str, start: str, n: int) -> list[str]:
    one = Schedule(expression, tz)
    found = islice(one.after(datetime.fromisoformat(start).replace(tzinfo=UTC)), n)
    return [at.astimezone(one.zone).strftime("%m-%d %H:%M:%S%z") for at in found]


@pytest.mark.parametrize(
    ("expression", "tz", "start", "expected"),
    [
        # a gap: once, at the first instant behind it, however many times were in it
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29 03:00:00+0200", "03-30 02:30:00+0200"]),
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-29T00:00", ["03-29 03:00:00+0200", "03-30 02:00:00+0200"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00", ["03-29 03:00:00+0200", "03-30 02:00:00+0200"]),
        ("15 30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29 03:00:00+0200", "03-30 02:30:15+0200"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", ["10-04 02:30:00+1100", "10-05 02:15:00+1100"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T23:00", ["12-31 00:00:00+1400", "12-31 12:00:00+1400"]),
        ("0 0 30 12 *", "Pacific/Apia", "2011-12-29T00:00", ["12-31 00:00:00+1400", "12-30 00:00:00+1400"]),
        ("* * * * * *", "Europe/Berlin", "2026-03-29T00:59:58", ["03-29 01:59:59+0100", "03-29 03:00:00+0200", "03-29 03:00:01+0200"]),
        # what comes twice: a fixed time the first time
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25 02:30:00+0200", "10-26 02:30:00+0100"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:00", ["10-26 02:30:00+0100"]),
        ("30 1 * * *", "America/New_York", "2026-11-01T00:00", ["11-01 01:30:00-0400", "11-02 01:30:00-0500"]),
        # and a wildcard or step of hours both times
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:00", ["10-25 02:30:00+0200", "10-25 02:30:00+0100", "10-25 03:30:00+0100"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-24T23:00", ["10-25 02:00:00+0200", "10-25 02:00:00+0100", "10-25 04:00:00+0100"]),
        ("50 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", ["04-05 01:50:00+1100", "04-05 01:50:00+1030", "04-05 02:50:00+1030"]),
        # a range of one with a step is that one
        ("5-5/3 7 * * *", "UTC", "2026-01-01T00:00", ["01-01 07:05:00+0000", "01-02 07:05:00+0000"]),
        # seconds, names, L, # and the two ways of naming a day
        ("*/20 * * * * *", "UTC", "2026-01-01T00:00", ["01-01 00:00:20+0000", "01-01 00:00:40+0000", "01-01 00:01:00+0000"]),
        ("0 9 * jan,Mar MON#1", "UTC", "2026-01-01T00:00", ["01-05 09:00:00+0000", "03-02 09:00:00+0000"]),
        ("0 0 L * *", "UTC", "2028-02-01T00:00", ["02-29 00:00:00+0000", "03-31 00:00:00+0000"]),
        ("0 0 LW * *", "UTC", "2026-01-01T00:00", ["01-30 00:00:00+0000", "02-27 00:00:00+0000"]),
        ("0 0 * * 5L", "UTC", "2026-01-01T00:00", ["01-30 00:00:00+0000", "02-27 00:00:00+0000"]),
        ("0 0 13 * 5", "UTC", "2026-11-01T00:00", ["11-06 00:00:00+0000", "11-13 00:00:00+0000"]),
        ("0 0 1-7/1 * */7", "UTC", "2026-11-01T00:00", ["12-06 00:00:00+0000"]),
        ("0 0 29 2 *", "UTC", "2096-03-01T00:00", ["02-29 00:00:00+0000"]),
    ],
)
def test_cases_that_are_easily_wrong(expression: str, tz: str, start: str, expected: list[str]) -> None:
    assert expected == local(expression, tz, start, len(expected))


@pytest.mark.parametrize(("macro", "same"), MACROS.items())
def test_a_macro_is_short_for_an_expression(macro: str, same: str) -> None:
    assert local(macro, "Europe/Berlin", "2026-01-01T00:00", 5) == local(same, "Europe/Berlin", "2026-01-01T00:00", 5)


def test_the_time_asked_about_is_not_among_those_after_it() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    one = Schedule("@hourly")

    assert next(one.after(at)) == at + timedelta(hours=1)
    assert next(one.after(at - timedelta(microseconds=1))) == at


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 */31 * MON#2", "59 59 23 31 2 *"])
def test_what_can_never_fire_is_refused_at_once(expression: str) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(ValueError, match="never fires: no month"):
            Schedule(expression)
        took.append(time.perf_counter() - began)

    assert min(took) < 0.005


@pytest.mark.parametrize("expression", ["0 0 29 2 */7", "0 0 29 2 MON", "0 0 */31 2 MON#1", "59 59 23 L 2 *", "0 0 * 2 MON#5"])
def test_what_fires_once_in_decades_is_found_at_once(expression: str) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        next(Schedule(expression, "Europe/Berlin").after(datetime(2072, 3, 1, tzinfo=UTC)))
        took.append(time.perf_counter() - began)

    assert min(took) < 0.005


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("60 * * * *", "minute '60' is none: it is 0 to 59"),
        ("* 24 * * *", "hour '24' is none: it is 0 to 23"),
        ("* * 0 * *", "day-of-month '0' is none"),
        ("* * * 13 *", "month '13' is none: it is 1 to 12 or JAN to DEC"),
        ("* * * * 8", "day-of-week '8' is none"),
        ("60 * * * * *", "second '60' is none"),
        ("*/0 * * * *", "minute '*/0' is none"),
        ("*/-1 * * * *", "minute '*/-1' is none"),
        ("5-5/0 * * * *", "minute '5-5/0' is none"),
        ("*/61 * * * *", "minute '*/61' has a step that is none"),
        ("* */999999999999 * * *", "hour '*/999999999999' has a step that is none"),
        ("5-1 * * * *", "minute '5-1' is none"),
        ("1,,2 * * * *", "minute '1,,2' is none"),
        (", * * * *", "minute ',' is none"),
        ("1-2-3 * * * *", "minute '1-2-3' is none"),
        ("*/2/3 * * * *", "minute '*/2/3' is none"),
        ("L * * * *", "minute 'L' is none"),
        ("* * L/2 * *", "day-of-month 'L/2' has a step that is none"),
        ("* * * * L", "day-of-week 'L' is none"),
        ("* * * * #", "day-of-week '#' is none"),
        ("* * * * MON#6", "day-of-week 'MON#6' is none"),
        ("* * 1W * *", "day-of-month '1W' is none"),
        ("? * * * *", "has '?': a schedule is made of"),
        (f"{ARABIC} 5 * * *", f"has '{ARABIC}': a schedule is made of"),
        (f"0 0 * * {LONG_S}UN", f"has '{LONG_S}': a schedule is made of"),
        ("0 0 * * Mo", "day-of-week 'MO' is none"),
        ("* * * *", "has 4 fields: write minute, hour, day of month, month, day of week"),
        ("* * * * * * *", "has 7 fields"),
        ("", "has 0 fields"),
        ("* * * * *\n* * * * *", r"has '\n': a schedule is made of"),
        ("* * * * *\0", r"has '\x00': a schedule is made of"),
        ("@reboot", "is no name of one: there are @hourly, @daily"),
        ("@every 0s", "is no name of one"),
        ("@Daily", "is no name of one"),
        (",".join(["0-59/1"] * 5000) + " * * * *", "characters; 1,000 are enough"),
        ("*" * (1 << 20), "has 1,048,576 characters"),
        (",".join(["*/1"] * 245) + " * * * a", "day-of-week 'A' is none"),
    ],
    ids=lambda text: text[:30],
)
def test_an_expression_that_is_none_is_refused_with_what_it_may_hold(expression: str, says: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        Schedule(expression)

    assert len(str(raised.value)) < 400
    assert time.perf_counter() - began < 1.0


@given(
    st.text("0123456789*,-/#LWMONJA? @\n\t\0\u0663", max_size=60)
    | EXPRESSIONS.map(lambda text: text.replace("*", "-", 1))
    | st.text(max_size=LONGEST)
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_written_is_a_schedule_or_a_value_error(text: str) -> None:
    try:
        one = Schedule(text)
    except ValueError:
        return

    assert next(one.after(datetime(2026, 1, 1, tzinfo=UTC))) > datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "tz",
    [
        "Mars/Phobos",
        "../../etc/passwd",
        "/etc/localtime",
        "localtime",
        "right/UTC",
        "Europe",
        "UTC\0",
        "",
        "x" * 5000,
        "Europe/Berlin\n",
        "ü",
    ],
)
def test_a_zone_that_is_none_is_refused(tz: str) -> None:
    with pytest.raises(ValueError, match="is no time zone"):
        Schedule("@daily", tz)


def test_a_zone_in_other_letters_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=re.escape("tz 'europe/berlin' is no time zone; did you mean 'Europe/Berlin'?")):
        Schedule("@daily", "europe/berlin")
