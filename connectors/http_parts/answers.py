"""What an answer means for the event that was sent. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote, unquote, urlsplit

from ...errors import MAX_DELAY
from ..sink import Undelivered

LATER = frozenset((408, 425, 429))  # of the 4xx, those that are about this moment
TEXT = 200  # characters of an answer's body that a reason shows
_LOOK = 4000  # characters of it that are looked at
_SECRET = 6  # characters that a word must have to be one


def verdict(status: int, headers: Mapping[str, str], body: bytes | bytearray, now: float, hidden: Iterable[str] = ()) -> Undelivered | None:
    """None: delivered. headers: named in lower case. now: seconds since 1970. hidden: what no reason may show."""
    if 200 <= status < 300:
        return None
    again = status in LATER or status >= 500
    said = f"it answered {status}{_phrase(status)}"
    if 300 <= status < 400:
        said += f", a redirect{_origin(headers.get('location', ''))}, and those are not followed: url must be where it leads to"
    shown = "" if headers.get("content-encoding", "identity").lower() != "identity" else text(body, hidden)
    after = retry_after(headers.get("retry-after", ""), now) if again else None
    return Undelivered(f"{said}: {shown}" if shown else said, again, after)


def retry_after(value: str, now: float) -> float | None:
    """Seconds from now, of either form of Retry-After, at most 30 days; None for what is neither, and for what is over."""
    value = value.strip()
    if re.fullmatch(r"[0-9]+", value, re.ASCII):
        seconds = float(value[:20])  # more digits are more than 30 days, however many
    else:
        try:
            when = parsedate_to_datetime(value[:60])
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, MAX_DELAY) if seconds > 0 else None


def text(body: bytes | bytearray, hidden: Iterable[str] = ()) -> str:
    """One line of a body, at most TEXT characters, for people: no control characters, nothing that is hidden."""
    said = body.decode("utf-8", "replace")
    for secret in hidden:
        said = said.replace(secret, "…")
    line = " ".join("".join(char if char.isprintable() else " " for char in said[:_LOOK]).split())
    return line if len(line) <= TEXT else line[: TEXT - 1] + "…"


def secrets(url: str, values: Iterable[str]) -> list[str]:
    """What answers may repeat, and no reason may show: values of headers, and parts of the url that can be a key. Longest first."""
    parts = urlsplit(url)
    words = {word for value in values for word in (value, *value.split())}
    words |= {word for word in re.split(r"[/?&=;]", f"{parts.path}?{parts.query}") if "{target}" not in word}
    forms = {form for word in words for form in (word, unquote(word), quote(word, safe=""))}
    return sorted((form for form in forms if len(form) >= _SECRET), key=len, reverse=True)


def _phrase(status: int) -> str:
    """Ours: theirs may be anything."""
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _origin(location: str) -> str:
    """Its path may be as secret as that of url."""
    try:
        parts = urlsplit(location)
        host = parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    return f" to {parts.scheme}://{host}" if host and re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", host) else ""


def now() -> float:
    return datetime.now(UTC).timestamp()
