"""faas.toml -> Config. Strict: an unknown key, a wrong type or a value out of range is a ConfigError with file:line.

    project = "shop"                        # required; part of every queue's name
    modules = ["shop.orders"]               # required; where the functions are
    keep = 86400                            # seconds that settled events stay
    [bus]
    url = "${NATS_URL}"                     # without one: the embedded server
    [worker]
    executors = 4
    [function.reserve]                      # overrides what @function says
    timeout = 60
    env = {DB_PASSWORD = "${DB_PASSWORD}"}
    retry = {max_attempts = 3}
    [gateway]                               # `faas gateway`: events over HTTP
    port = 8080
    [[connector]]                           # what a source has becomes events
    name = "orders"
    type = "kafka"                          # its options are those of connectors/kafka.py
    [[sink]]                                # where functions send to: sends = "orders-out:orders.done"
    name = "orders-out"
    type = "kafka"                          # its options are those of connectors/sinks/kafka.py

`${NAME}` in a string value is an environment variable, `$${` a plain `${`. Seconds are numbers, sizes are bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from . import options, toml
from .errors import ConfigError
from .retry import RetryPolicy
from .topics import sink_of

if TYPE_CHECKING:
    from .function import Spec
    from .where import Filter

FILE = "faas.toml"
Driven = TypeVar("Driven", bound="DriverConfig")


@dataclass(frozen=True, slots=True, kw_only=True)
class BusConfig:
    """monitor_url: the servers' http port, which alone tells whether they sync. insecure: allow a remote server without TLS and login.

    max_bytes: space for events; dead_bytes: for dead letters.
    """

    url: str | None = field(default=None, repr=False)
    monitor_url: str | None = None
    max_bytes: int = 8 << 30
    dead_bytes: int = 1 << 30
    replicas: int = 1
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """executors: at most so many on this node. grace: seconds that a drain may take.

    import_timeout: seconds for the user's modules. recycle_events, recycle_bytes: an executor is replaced after so many
    events, or above so much memory; 0: never. pass_env: variables of the worker that user code may see.
    """

    executors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    grace: float = 25.0
    import_timeout: float = 60.0
    recycle_events: int = 0
    recycle_bytes: int = 0
    pass_env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """port 0: any free one. tls_cert, tls_key: PEM files; these and `keys` are paths from the project's folder.

    insecure: allow a host that other machines reach without TLS and keys. source: of events that name none.
    max_body: bytes of a request's body. body_timeout: seconds that it may take to come.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False
    keys: str = ".faas/keys.json"
    source: str = "/gateway"
    max_body: int = (1 << 20) + (44 << 10)  # the largest event: layout.MAX_RECORD
    max_connections: int = 512
    body_timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionConfig:
    """What faas.toml says about one function. None, or missing in `retry`: as declared. retry: fields of RetryPolicy."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float | None = None
    concurrency: int | None = None
    retry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverConfig:
    """type: of the driver, which knows the `options`.

    place: `faas.toml:12`, and of each option. unset: what is wrong with the environment: an error for what runs it.
    """

    kind: ClassVar[str]
    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    place: str = FILE
    places: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name!r:.80}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig(DriverConfig):
    """A [[connector]]. to: topic; None: the name at the source. where: a filter.

    decode: `module:function` of the project, which makes data of a record's bytes.
    """

    kind: ClassVar[str] = "connector"
    to: str | None = None
    where: Filter | None = None
    decode: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkConfig(DriverConfig):
    """A [[sink]]."""

    kind: ClassVar[str] = "sink"
    retry: RetryPolicy = options.SINK_RETRY


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """root: the project's folder.

    unset: what is wrong with the environment of functions: an error for what runs them, and for nothing else.
    origins: where an option such as `bus.url` comes from: `faas.toml:14`, `NATS_URL`, `--url`; what is missing is a default.
    """

    root: Path
    project: str
    modules: tuple[str, ...]
    keep: float = 86400.0
    bus: BusConfig = BusConfig()
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    gateway: GatewayConfig = GatewayConfig()
    functions: Mapping[str, FunctionConfig] = field(default_factory=dict)
    connectors: tuple[ConnectorConfig, ...] = ()
    sinks: tuple[SinkConfig, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()

    @property
    def state(self) -> Path:
        """The embedded server's folder."""
        return self.root / ".faas"

    @property
    def keys_file(self) -> Path:
        """Of the gateway."""
        return self.root / self.gateway.keys

    def with_url(self, url: str, origin: str) -> Config:
        """The same on another bus; `origin` names the option or variable that says so."""
        try:
            checked = options.bus_url(url)
            options.check_remote(checked, self.bus.insecure)
        except ValueError as error:
            raise ConfigError(f"{origin} = {options.masked(url)!r} {error}") from None
        return replace(self, bus=replace(self.bus, url=checked), origins={**self.origins, "bus.url": origin})

    def check_functions(self, specs: Iterable[Spec]) -> None:
        """ConfigError if a [function.NAME] is about none of the functions there are, a variable of its env is not set, or one sends to
        a sink that is not there."""
        for problem in self.unset:
            raise ConfigError(problem)
        known = {spec.name: spec.sends for spec in specs}
        for name in self.functions:
            if name not in known:
                raise ConfigError(f"{self.origins[f'function.{name}']}: there is no function {name!r}{options.nearest(name, known)}")
        sinks = {sink.name: sink for sink in self.sinks}
        for name, sends in known.items():
            if name in sinks:
                raise ConfigError(f"{sinks[name].place}: {sinks[name].label} has the name of a function, and both have a queue: rename one")
            sink, _ = sink_of(sends or "")
            if sink and sink not in sinks:
                raise ConfigError(
                    f"function {name} sends to {sends!r}, and {FILE} has no [[sink]] with name = {sink!r}{options.nearest(sink, sinks)}"
                )

    def shown(self) -> Iterator[tuple[str, Any, str]]:
        """(option, value, origin) of each, as a person may see it: passwords and env values masked."""
        for prefix, part in (("", self), ("bus.", self.bus), ("worker.", self.worker), ("gateway.", self.gateway)):
            for name in (option.name for option in fields(part)):
                if prefix or name in ("project", "modules", "keep"):
                    value = getattr(part, name)
                    shown = options.masked(value) if name in ("url", "monitor_url") and value else value
                    yield prefix + name, shown, self.origins.get(prefix + name, "default")
        for name, function in self.functions.items():
            said: dict[str, Any] = {"timeout": function.timeout, "concurrency": function.concurrency}
            said |= {f"retry.{key}": value for key, value in function.retry.items()} | {f"env.{key}": "…" for key in function.env}
            for key, value in said.items():
                if value is not None:
                    yield f"function.{name}.{key}", value, self.origins[f"function.{name}.{key}"]


def find(start: Path) -> Path | None:
    """The faas.toml of this folder, or of the nearest one above."""
    start = start.absolute()
    return next((folder / FILE for folder in (start, *start.parents) if (folder / FILE).exists()), None)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Reads `path`, or the faas.toml found upwards from the working folder. environ: for `${NAME}` alone. Raises ConfigError."""
    path = path or find(Path.cwd())
    if path is None:
        raise ConfigError(f"there is no {FILE} in {Path.cwd()} or above it. `faas new NAME` makes a project.")
    table, lines = toml.read(path)
    reader = _Reader(path.name, lines, environ)
    connectors = reader.rows(ConnectorConfig, options.CONNECTOR, table.pop("connector", []))
    sinks = reader.rows(SinkConfig, options.SINK, table.pop("sink", []), taken=connectors)
    said = reader.read(options.SCHEMA, table)
    for required, example in (("project", '"shop"'), ("modules", '["shop.orders"]')):
        if required not in said:
            raise ConfigError(f"{path} does not say {required!r}. Add a line like: {required} = {example}")
    bus = BusConfig(**said.pop("bus", {}))
    try:
        options.check_remote(bus.url or "", bus.insecure)
    except ValueError as error:
        raise ConfigError(f"{reader.origins['bus.url']}: bus.url {error}") from None
    gateway = GatewayConfig(**said.pop("gateway", {}))
    _check_gateway(gateway, reader.origins)
    functions = {name: FunctionConfig(**values) for name, values in said.pop("function", {}).items()}
    worker = WorkerConfig(**said.pop("worker", {}))
    return Config(
        root=path.absolute().parent,
        bus=bus,
        worker=worker,
        gateway=gateway,
        functions=functions,
        connectors=connectors,
        sinks=sinks,
        origins=reader.origins,
        unset=tuple(reader.unset),
        **said,
    )


def _check_gateway(gateway: GatewayConfig, origins: Mapping[str, str]) -> None:
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(gateway, one) and not getattr(gateway, other):
            raise ConfigError(f"{origins[f'gateway.{one}']}: gateway.{one} needs gateway.{other} beside it: TLS takes both.")
    try:
        options.check_listener(gateway.host, bool(gateway.tls_cert), gateway.insecure)
    except ValueError as error:
        raise ConfigError(f"{origins['gateway.host']}: gateway.host = {gateway.host!r} {error}") from None


class Unset(ValueError):
    """An environment variable that an option needs."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """One file's values, checked against a schema; remembers where each came from."""

    file: str
    lines: Mapping[tuple[str, ...], int]
    environ: Mapping[str, str]
    origins: dict[str, str] = field(default_factory=dict)
    unset: list[str] = field(default_factory=list)

    def read(self, known: options.Table, table: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, raw in table.items():
            here = (*path, name)
            rule, dotted, where = self._rule(known, here), ".".join(here), self._where(here)
            self.origins[dotted] = where
            if not isinstance(rule, options.Table):
                try:
                    values[name] = rule(self._expanded(raw))
                except ValueError as error:
                    shown = "" if "env" in path else f" = {options.masked(repr(raw))[:80]}"  # what is in env may be secret
                    problem = f"{where}: {dotted}{shown} {error}"
                    if "env" not in path or not isinstance(error, Unset):
                        raise ConfigError(problem) from None
                    self.unset.append(problem)
            elif isinstance(raw, dict):
                values[name] = self.read(rule, raw, here)
            else:
                raise ConfigError(f"{where}: {dotted} must be a table, like [{dotted}]")
        return values

    def rows(
        self, kind: type[Driven], known: Mapping[str, options.Check], rows: Any, taken: Iterable[DriverConfig] = ()
    ) -> tuple[Driven, ...]:
        """Of each [[kind]]. taken: whose names these may not have, too."""
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            where = self._where((kind.kind,))
            raise ConfigError(f"{where}: {kind.kind}s are written [[{kind.kind}]], in two brackets, one for each")
        found: list[Driven] = []
        there = {one.name: one for one in taken}
        for number, row in enumerate(rows):
            one = self._row(kind, known, row, (kind.kind, str(number)))
            if other := there.get(one.name):
                raise ConfigError(f"{one.place}: there is a {other.label} already, at {other.place}")
            there[one.name] = one
            found.append(one)
        return tuple(found)

    def _row(self, kind: type[Driven], known: Mapping[str, options.Check], row: Mapping[str, Any], here: tuple[str, ...]) -> Driven:
        place, label = self._where(here), f"{kind.kind} {row['name']!r:.80}" if "name" in row else f"[[{kind.kind}]]"
        said: dict[str, Any] = {}
        own: dict[str, Any] = {}
        unset: list[str] = []
        for name, raw in row.items():
            at = self._where((*here, name))
            try:
                if check := known.get(name):
                    said[name] = check(self._expanded(raw))
                else:
                    own[name] = self._expanded(raw)
            except Unset as error:
                unset.append(f"{at}: {label}: {name} {error}")
            except (ValueError, ConfigError) as error:
                raise ConfigError(f"{at}: {label}: {name} {error}") from None
        for required, example in (("name", '"orders"'), ("type", '"kafka"')):
            if required not in said and not unset:
                raise ConfigError(f"{place}: {label} does not say {required!r}. Add a line like: {required} = {example}")
        places = {name: self._where((*here, name)) for name in row}
        return kind(**{"name": "?", "type": "?", **said}, options=own, place=place, places=places, unset=tuple(unset))

    def _rule(self, known: options.Table, here: tuple[str, ...]) -> options.Rule:
        *path, name = here
        inside = f"[{'.'.join(path)}]" if path else self.file
        if known.name and known.each:
            try:
                known.name(name)
            except ValueError as error:
                raise ConfigError(f"{self._where(here)}: {name[:80]!r} in {inside} {error}") from None
            return known.each
        if name not in known.options:
            raise ConfigError(f"{self._where(here)}: {inside} has no option {name[:80]!r}{options.nearest(name, known.options)}")
        return known.options[name]

    def _where(self, here: tuple[str, ...]) -> str:
        """file:line. A key of an inline table has the line of the key that holds it."""
        while here and here not in self.lines:
            here = here[:-1]
        return f"{self.file}:{self.lines.get(here, 1)}"

    def _expanded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._expanded(item) for item in value]
        if isinstance(value, dict):
            return {name: self._expanded(item) for name, item in value.items()}
        return re.sub(r"\$?\$\{([^}]*)\}?", self._variable, value) if isinstance(value, str) else value

    def _variable(self, match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        if not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", match[0]):
            raise ValueError(f"has {match[0][:80]!r}, which names no variable. Write ${{NAME}}, or $${{ for a plain ${{")
        if match[1] not in self.environ:
            raise Unset(f"needs the environment variable {match[1][:80]}, which is not set")
        return self.environ[match[1]]
