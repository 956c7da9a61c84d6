"""Values of options: durations, moments, key=value. Each raises click.BadParameter saying how to write it."""

from __future__ import annotations

import re
import time
from datetime import datetime

import click

LONGEST = 100 * 365 * 86400.0  # seconds
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    if not match or (match[2] or "s") not in _UNITS:
        raise click.BadParameter(f"{text!r} is no duration: write 30, 500ms, 30s, 5m, 2h or 1d")
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if seconds > LONGEST:
        raise click.BadParameter(f"{text!r} is more than 100 years")
    return seconds


def moment(text: str) -> float:
    """Unix seconds, of an RFC 3339 time; local time if it names no offset."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: write 2030-01-31T08:00:00Z, or 2030-01-31T08:00 for local time") from None


def since(text: str) -> float:
    """Unix seconds, of a time or a duration ago."""
    return time.time() - duration(text) if re.fullmatch(r"[\d.]+[a-z]*", text) else moment(text)


def pair(text: str) -> tuple[str, str]:
    """(name, value)."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} has no name and value: write name=value")
    return name, value
