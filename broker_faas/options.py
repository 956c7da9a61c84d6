"""The options of faas.toml: names, types and bounds. A check returns the value, or raises ValueError with the end of a sentence."""

from __future__ import annotations

import ipaddress
import keyword
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from .errors import ConfigError, TopicInvalid
from .retry import RetryPolicy
from .topics import check_topic

if TYPE_CHECKING:
    from .where import Filter

Check: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Table:
    """options: what it may hold. name: checks keys that the user chooses, which then all follow `each`."""

    options: dict[str, Rule]
    name: Check | None = None
    each: Rule | None = None


Rule: TypeAlias = Check | Table


# --- checks -------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {_kind(value)}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def named(pattern: str, rule: str, longest: int = 60) -> Check:
    def check(value: Any) -> str:
        if not re.fullmatch(pattern, text(value)) or len(value) > longest:
            raise ValueError(f"must be {rule}, at most {longest} characters")
        return str(value)

    return check


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"must lie between {low:,} and {high:,}")
        return value

    return check


def seconds(low: float, high: float) -> Check:
    """low 0 is itself excluded: nothing may take no time."""
    return number(low, high, "seconds", exclusive=not low)


def number(low: float, high: float, unit: str = "", *, exclusive: bool = False) -> Check:
    what = f"a number of {unit}" if unit else "a number"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be {what}, not {_kind(value)}")
        if not math.isfinite(value) or not low <= value <= high or (exclusive and value == low):
            raise ValueError(f"must be {what} {f'above {low:g} and up to' if exclusive else f'between {low:g} and'} {high:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_kind(value)}")
    return value


def replicas(value: Any) -> int:
    if isinstance(value, bool) or value not in (1, 3, 5):
        raise ValueError("must be 1, 3 or 5: how many servers of the cluster keep each event")
    return int(value)


def several(check: Check, what: str, least: int = 0) -> Check:
    def check_all(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list of {what}, not {_kind(value)}")
        if len(value) < least:
            raise ValueError(f"must name {what}; it is empty")
        items = tuple(check(item) for item in value)
        if len(set(items)) < len(items):
            raise ValueError("names something twice")
        return items

    return check_all


def module(value: Any) -> str:
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in text(value).split(".")):
        raise ValueError("must hold names of modules as Python imports them, like 'shop.orders'")
    return str(value)


def variable(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text(value)):
        raise ValueError("is no name of an environment variable")
    if value in _REFUSED:
        raise ValueError("is refused: it would run other code in the executor, or hand it the bus")
    return str(value)


_REFUSED = {"LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "BASH_ENV", "NATS_URL"}


def topic(value: Any) -> str:
    try:
        return check_topic(text(value))
    except TopicInvalid as error:
        raise ValueError(f"is no topic: {error}") from None


def where_from_json(value: Any) -> Filter:
    from .where import from_json  # which needs the event: not for a project without connectors

    try:
        return from_json(value)
    except ConfigError as error:
        raise ValueError(f"is no filter: {error}") from None


def retry(value: Any) -> RetryPolicy:
    if not isinstance(value, dict):
        raise ValueError("must be a table, like {max_attempts = 10, max_backoff = 600}")
    names = [option.name for option in fields(RetryPolicy)]
    for name in value:
        if name not in names:
            raise ValueError(f"has no option {name!r:.80}{nearest(name, names)}")
    return replace(SINK_RETRY, **value)


def bus_url(value: Any) -> str:
    """One server, or several of a cluster with commas between."""
    for url in text(value).split(","):
        try:
            parts = urlsplit(url.strip())
            valid = (
                parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0 and not (parts.path or parts.query or parts.fragment)
            )
        except ValueError:  # a port that is no number, half an IPv6 address
            valid = False
        if not valid:
            raise ValueError("must look like nats://127.0.0.1:4222 or tls://user:password@host:4222, with commas between servers")
    return str(value)


def host(value: Any) -> str:
    """A name or an address to listen at."""
    try:
        ipaddress.ip_address(text(value))
    except ValueError:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", value) or len(value) > 253:
            raise ValueError("must be a name or an address of this machine, like 127.0.0.1, ::1 or 0.0.0.0, without a port") from None
    return str(value)


def path(value: Any) -> str:
    if not text(value):
        raise ValueError("must name a file; it is empty")
    return str(value)


def source(value: Any) -> str:
    from .attributes import is_uri_reference

    if not text(value) or not is_uri_reference(value):
        raise ValueError("must be a URI-reference, like /gateway or https://shop.example.com")
    return str(value)


def http_urls(value: Any) -> str:
    """One address, or several with commas between."""
    for url in text(value).split(","):
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must look like http://127.0.0.1:8222, with commas between servers")
    return str(value)


def check_remote(url: str, insecure: bool, *, login: bool = False, where: str = " under [bus]") -> None:
    """ValueError if events or the password would cross a network in the clear, or the bus is open to anybody there.

    login: there is one that is not in the url. where: `insecure` can be said.
    """
    for server in filter(None, url.split(",")):
        parts = urlsplit(server.strip())
        if not insecure and not loopback(parts.hostname or "") and not (parts.scheme == "tls" and (login or parts.username)):
            raise ValueError(
                f"is another machine ({parts.hostname}): it needs TLS and a login, like tls://user:password@{parts.hostname}:4222. "
                f"In a network where nobody else listens, say insecure = true{where}."
            )


def check_listener(host: str, tls: bool, insecure: bool) -> None:
    """ValueError if keys and events would cross a network in the clear."""
    if not insecure and not tls and not loopback(host):
        raise ValueError(
            "can be reached from other machines: it needs TLS and keys, tls_cert and tls_key under [gateway] and `faas keys add NAME`. "
            "In a network where nobody else listens, say insecure = true under [gateway]."
        )


def loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return kinds.get(type(value), "a date or time")


# --- the schema ---------------------------------------------------------------------------------------------

_DAY = 86400.0
_SIZE = whole(1 << 20, 1 << 50)  # bytes

SCHEMA = Table(
    {
        "project": named(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", "a name of letters, digits, '_' and single '-'"),
        "modules": several(module, "modules", least=1),
        "keep": seconds(120, 3650 * _DAY),  # below the duplicate window a restarted server would forget ids that it promised to know
        "bus": Table(
            {
                "url": bus_url,
                "monitor_url": http_urls,
                "max_bytes": _SIZE,
                "dead_bytes": _SIZE,
                "replicas": replicas,
                "insecure": flag,
            }
        ),
        "worker": Table(
            {
                "executors": whole(1, 1024),
                "grace": seconds(0, _DAY),
                "import_timeout": seconds(0, _DAY),
                "recycle_events": whole(0, 1 << 50),
                "recycle_bytes": whole(0, 1 << 50),
                "pass_env": several(variable, "variables"),
            }
        ),
        "gateway": Table(
            {
                "host": host,
                "port": whole(0, 65535),
                "tls_cert": path,
                "tls_key": path,
                "insecure": flag,
                "keys": path,
                "source": source,
                "max_body": whole(1 << 10, 64 << 20),
                "max_connections": whole(1, 100_000),
                "body_timeout": seconds(0, 3600),
            }
        ),
        "function": Table(
            {},
            name=named(r"[A-Za-z0-9_]+", "a name of letters, digits and '_'"),
            each=Table(
                {
                    "timeout": seconds(0, _DAY),
                    "concurrency": whole(1, 10_000),
                    "env": Table({}, name=variable, each=text),
                    "retry": Table(
                        {
                            "max_attempts": whole(1, 1000),
                            "min_backoff": number(0, 30 * _DAY, "seconds"),
                            "max_backoff": number(0, 30 * _DAY, "seconds"),
                            "factor": number(1, 1000),
                            "jitter": number(0, 1),
                        }
                    ),
                }
            ),
        ),
    }
)


SINK_RETRY = RetryPolicy(max_attempts=20)  # an hour: what others run is away for longer than a function's own mistake lasts

# What every [[connector]] and [[sink]] may say; the rest is its driver's.
_DRIVER: dict[str, Check] = {
    "name": named(r"[a-z0-9]+(-[a-z0-9]+)*", "a name of lower-case letters, digits and single '-'"),
    "type": named(r"[a-z]+|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*", "a system, like kafka, or a class, like module:Class", 200),
}
CONNECTOR: dict[str, Check] = {
    **_DRIVER,
    "to": topic,
    "where": where_from_json,
    "decode": named(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "a function of the project's, like decoders:avro", 200),
}
SINK: dict[str, Check] = {**_DRIVER, "retry": retry}


# --- for messages -------------------------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that was probably meant, or all there are."""
    from difflib import get_close_matches  # only wanted when something is wrong

    names = sorted(known)
    if close := get_close_matches(name, names, 1, 0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; there is: {', '.join(names)}" if names else "; there is none"


def masked(shown: str) -> str:
    """Text without the user and password of the urls in it, and of what was meant to be one."""
    return re.sub(r"//[^\s,'\"]*@", "//…@", shown) if "//" in shown else re.sub(r"[^\s,'\"]+@", "…@", shown)
