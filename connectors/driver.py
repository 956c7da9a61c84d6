"""[[connector]] -> its driver: `type = "kafka"` is connectors/kafka.py:KafkaConnector, `pkg.mod:Class` is what it says."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path

import msgspec

from ..config import ConnectorConfig
from ..errors import ConfigError
from ..options import masked, nearest
from .pump import Connector

_HELPERS = {"__init__", "batch", "decoder", "driver", "pump", "replay"}


def known() -> list[str]:
    """Types there are: the files of this folder."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in _HELPERS)


def driver(config: ConnectorConfig) -> Connector:
    """Raises ConfigError, naming the file, the line and the option."""
    for problem in config.unset:
        raise ConfigError(problem)
    made = _class(config)
    label = f"connector {config.name!r}"
    options = {field.name for field in fields(made)}
    for name in config.options:
        if name not in options:
            raise ConfigError(f"{config.places[name]}: {label} has no option {name!r:.80}{nearest(name, options)}")
    try:
        one: Connector = msgspec.convert(config.options, made)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{_place(config, str(error))}: {label}: {masked(str(error))}") from None
    return one


def _class(config: ConnectorConfig) -> type:
    module, _, name = config.type.partition(":")
    if not name:
        if module not in known():
            raise ConfigError(f"{config.places['type']}: there is no connector of type {module!r}{nearest(module, known())}")
        module, name = f"{__package__}.{module}", f"{module.capitalize()}Connector"
    try:
        made = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        extra = f": pip install 'broker-faas[{config.type}]'" if config.type in known() else ""
        raise ConfigError(f"{config.places['type']}: connector {config.name!r} needs {error.name}, which is not installed{extra}") from None
    except AttributeError:
        raise ConfigError(f"{config.places['type']}: {module} has no class {name}") from None
    if not (isinstance(made, type) and is_dataclass(made)):
        raise ConfigError(f"{config.places['type']}: {config.type} is no dataclass")
    return made


def _place(config: ConnectorConfig, said: str) -> str:
    """The line of the option that msgspec complains of (`… - at `$.topics[0]``), else of the connector."""
    return next((place for name, place in config.places.items() if f"$.{name}" in said), config.place)


def sources(configs: Iterable[ConnectorConfig], names: Iterable[str]) -> list[ConnectorConfig]:
    """Those of these names, all without any. Raises ConfigError for a name that is none's."""
    there = {config.name: config for config in configs}
    for name in names:
        if name not in there:
            raise ConfigError(f"there is no connector {name!r}{nearest(name, there)}")
    return [there[name] for name in names] or list(there.values())
