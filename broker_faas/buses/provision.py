"""Streams on the server, made when missing and widened where that loses nothing; and whether the server syncs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.request import urlopen

from ..errors import BusRefused
from .connection import Connection

log = logging.getLogger(__name__)

NO_STREAM, NO_ROOM = 10059, 10047  # err_code
_GROWS = ("max_bytes", "max_msg_size", "duplicate_window")
_TURNS_ON = ("allow_atomic", "allow_msg_schedules", "allow_rollup_hdrs")
_FREE = ("num_replicas",)


async def ensure_streams(connection: Connection, wanted: Iterable[tuple[dict[str, Any], set[str]]]) -> None:
    """wanted: (configuration, fields that a stream that exists keeps as they are).

    BusRefused: there is a stream of that name that cannot serve as ours.
    """
    for config, keep in wanted:
        name = config["name"]
        try:
            there = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        except BusRefused as e:
            if e.code != NO_STREAM:
                raise
            await _create(connection, name, config)
            # crash point: stream-made
            continue
        changes = _stream_changes(there, {field: value for field, value in config.items() if field not in keep})
        if changes:
            log.info("updating stream", extra={"stream": name, "fields": sorted(changes)})
            await connection.api(f"STREAM.UPDATE.{name}", there | changes)


async def _create(connection: Connection, name: str, config: dict[str, Any]) -> None:
    """Another worker making the same one meanwhile is no error: but while it does, its bytes count twice, and there is room for one."""
    for pause in (0.1, 0.3, 1.0, 3.0):
        try:
            await connection.api(f"STREAM.CREATE.{name}", config)
            return
        except BusRefused as error:
            if error.code != NO_ROOM:
                raise
        await asyncio.sleep(pause)
    await connection.api(f"STREAM.CREATE.{name}", config)


def _stream_changes(there: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    name, changes = config["name"], {}
    for field, value in config.items():
        has = there.get(field, False if isinstance(value, bool) else 0 if isinstance(value, int) else None)
        if has == value or field == "max_consumers":  # cannot be changed, and more does no harm
            continue
        grows = field in _GROWS and (value < 0 or 0 < has < value)
        added = field == "subjects" and set(value) > set(has or ())
        if field in _FREE or grows or added or (field in _TURNS_ON and value):
            changes[field] = value
        elif field in _GROWS:
            log.warning("stream keeps its size: shrinking is up to you", extra={"stream": name, "field": field, "has": has, "asked": value})
        else:
            raise BusRefused(
                f"stream {name!r} on the bus has {field}={has!r}, and this version needs {value!r}. It was made by something else: "
                "use another NATS account, or move its messages and delete it"
            )
    if there.get("persist_mode") == "async":
        raise BusRefused(f"stream {name!r} has persist_mode=async: it acknowledges before it stores; make it anew without")
    return changes


async def durability(monitor_urls: Iterable[str]) -> str:
    """What the servers at these monitoring urls do before they acknowledge: "always" (fsync), "interval 2m0s", or "unknown".

    Only the monitoring port or the system account tell; a client's own account does not. The weakest of several counts.
    """
    answers = [await asyncio.to_thread(_sync_of, url) for url in monitor_urls]
    for answer in answers:
        if answer.startswith("interval"):
            return answer
    return "always" if answers and set(answers) == {"always"} else "unknown"


def _sync_of(url: str) -> str:
    try:
        with urlopen(f"{url.rstrip('/')}/jsz?config=1", timeout=2) as answer:
            config = json.load(answer)["config"]
    except (OSError, ValueError, KeyError) as e:
        log.warning("monitoring port of NATS does not answer", extra={"url": re.sub(r"//[^@]*@", "//…@", url), "error": str(e)})
        return "unknown"
    if config.get("sync_always"):
        return "always"
    seconds = config.get("sync_interval", 0) / 1e9
    return f"interval {int(seconds // 60)}m{seconds % 60:g}s" if seconds >= 60 else f"interval {seconds:g}s"
