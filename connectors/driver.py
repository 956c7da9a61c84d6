"""[[connector]] and [[sink]] -> their drivers: `type = "kafka"` is kafka.py:KafkaConnector or sinks/kafka.py:KafkaSink here,
`pkg.mod:Class` is what it says."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..config import ConnectorConfig, DriverConfig, SinkConfig
from ..errors import ConfigError
from ..options import masked, nearest
from .pump import Connector
from .sink import SinkDriver

_HELPERS = {"__init__", "batch", "decoder", "driver", "pump", "replay", "sink"}
_FOLDERS = {"connector": "", "sink": "sinks"}

AnyConfig = TypeVar("AnyConfig", bound=DriverConfig)


def known(kind: str) -> list[str]:
    """Types there are: the files of the folder."""
    return sorted(file.stem for file in (Path(__file__).parent / _FOLDERS[kind]).glob("*.py") if file.stem not in _HELPERS)


def driver(config: ConnectorConfig) -> Connector:
    """Raises ConfigError, naming the file, the line and the option."""
    one: Connector = _made(config)
    return one


def sink_driver(config: SinkConfig) -> SinkDriver:
    """Raises ConfigError, naming the file, the line and the option."""
    one: SinkDriver = _made(config)
    return one


def chosen(configs: Iterable[AnyConfig], names: Iterable[str]) -> list[AnyConfig]:
    """Those of these names, all without any. Raises ConfigError for a name that is none's."""
    there = {config.name: config for config in configs}
    for name in names:
        if name not in there:
            raise ConfigError(f"there is nothing to connect that is named {name!r}{nearest(name, there)}")
    return [there[name] for name in dict.fromkeys(names)] or list(there.values())


def _made(config: DriverConfig) -> Any:
    for problem in config.unset:
        raise ConfigError(problem)
    made = _class(config)
    options = {field.name for field in fields(made)}
    for name in config.options:
        if name not in options:
            raise ConfigError(f"{config.places[name]}: {config.label} has no option {name!r:.80}{nearest(name, options)}")
    try:
        return msgspec.convert(config.options, made)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{_place(config, str(error))}: {config.label}: {masked(str(error))}") from None


def _class(config: DriverConfig) -> type:
    module, _, name = config.type.partition(":")
    if not name:
        types = known(config.kind)
        if module not in types:
            raise ConfigError(f"{config.places['type']}: there is no {config.kind} of type {module!r}{nearest(module, types)}")
        name = f"{module.capitalize()}{config.kind.capitalize()}"
        module = ".".join(filter(None, [__package__, _FOLDERS[config.kind], module]))
    try:
        made = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        place = f"{config.places['type']}: {config.label}"
        if config.type in known(config.kind):
            raise ConfigError(f"{place} needs {error.name}, which is not installed: pip install 'broker-faas[{config.type}]'") from None
        raise ConfigError(f"{place}: there is no module {error.name!r} in the project's folder, nor is one installed") from None
    except AttributeError:
        raise ConfigError(f"{config.places['type']}: {module} has no class {name}") from None
    if not (isinstance(made, type) and is_dataclass(made)):
        raise ConfigError(f"{config.places['type']}: {config.type} is no dataclass")
    return made


def _place(config: DriverConfig, said: str) -> str:
    """The line of the option that msgspec complains of (`… - at `$.topics[0]``), else of the whole."""
    return next((place for name, place in config.places.items() if f"$.{name}" in said), config.place)
