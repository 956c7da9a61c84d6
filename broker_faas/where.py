"""Filters over an event's attributes: the dialects of CloudEvents Subscriptions, as values.

    where=prefix(source="/shop/")                          what source begins with
    where=all(exact(type="orders.created"), not_(suffix(subject=".tmp")))

An attribute that the event does not have matches nothing. Comparison is case-sensitive. `all` and `any` shadow the builtins
when imported by name; `all_` and `any_` are the same functions.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .errors import ConfigError
from .event import CloudEvent

_NAME = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Exact:
    """Every attribute named here has exactly this value."""

    attributes: tuple[tuple[str, str], ...]

    def matches(self, event: CloudEvent) -> bool:
        return builtins.all(event.get(name) == value for name, value in self.attributes)

    def to_json(self) -> dict[str, Any]:
        return {"exact": dict(self.attributes)}


@dataclass(frozen=True, slots=True)
class Prefix:
    """Every attribute named here begins with this value."""

    attributes: tuple[tuple[str, str], ...]

    def matches(self, event: CloudEvent) -> bool:
        return builtins.all((event.get(name) or "").startswith(value) for name, value in self.attributes)

    def to_json(self) -> dict[str, Any]:
        return {"prefix": dict(self.attributes)}


@dataclass(frozen=True, slots=True)
class Suffix:
    """Every attribute named here ends with this value."""

    attributes: tuple[tuple[str, str], ...]

    def matches(self, event: CloudEvent) -> bool:
        return builtins.all((event.get(name) or "").endswith(value) for name, value in self.attributes)

    def to_json(self) -> dict[str, Any]:
        return {"suffix": dict(self.attributes)}


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every filter matches."""

    filters: tuple[Filter, ...]

    def matches(self, event: CloudEvent) -> bool:
        return builtins.all(filter.matches(event) for filter in self.filters)

    def to_json(self) -> dict[str, Any]:
        return {"all": [filter.to_json() for filter in self.filters]}


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one filter matches."""

    filters: tuple[Filter, ...]

    def matches(self, event: CloudEvent) -> bool:
        return builtins.any(filter.matches(event) for filter in self.filters)

    def to_json(self) -> dict[str, Any]:
        return {"any": [filter.to_json() for filter in self.filters]}


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not match."""

    filter: Filter

    def matches(self, event: CloudEvent) -> bool:
        return not self.filter.matches(event)

    def to_json(self) -> dict[str, Any]:
        return {"not": self.filter.to_json()}


Filter = Exact | Prefix | Suffix | AllOf | AnyOf | Not


def exact(**attributes: str) -> Exact:
    return Exact(_checked("exact", attributes))


def prefix(**attributes: str) -> Prefix:
    return Prefix(_checked("prefix", attributes))


def suffix(**attributes: str) -> Suffix:
    return Suffix(_checked("suffix", attributes))


def all_(*filters: Filter) -> AllOf:
    return AllOf(_filters("all", filters))


def any_(*filters: Filter) -> AnyOf:
    return AnyOf(_filters("any", filters))


def not_(filter: Filter) -> Not:
    return Not(*_filters("not", (filter,)))


def from_json(value: Any) -> Filter:
    """A filter of its Subscriptions form, `{"dialect": …}`. Raises ConfigError saying what is wrong with it."""
    if not isinstance(value, Mapping) or len(value) != 1:
        example = '{"prefix": {"source": "/shop/"}}'
        raise ConfigError(f"a filter is an object with one member, its dialect, like {example}; not {_shown(value)}")
    [(dialect, inner)] = value.items()
    match dialect:
        case "exact" | "prefix" | "suffix":
            if not isinstance(inner, Mapping):
                raise ConfigError(f"filter {dialect!r} takes an object of attributes and values, not {_shown(inner)}")
            return _OF_ATTRIBUTES[dialect](_checked(dialect, inner))
        case "all" | "any":
            if not isinstance(inner, list):
                raise ConfigError(f"filter {dialect!r} takes an array of filters, not {_shown(inner)}")
            return (all_ if dialect == "all" else any_)(*(from_json(item) for item in inner))
        case "not":
            return not_(from_json(inner))
    near = get_close_matches(str(dialect), _DIALECTS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_DIALECTS)}."
    raise ConfigError(f"unknown filter dialect {_shown(dialect)}; {hint}")


_DIALECTS = ("exact", "prefix", "suffix", "all", "any", "not")
_OF_ATTRIBUTES: Mapping[str, Callable[[tuple[tuple[str, str], ...]], Filter]] = {"exact": Exact, "prefix": Prefix, "suffix": Suffix}


def _checked(dialect: str, attributes: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    """(name, value) pairs, sorted, so that equal filters are equal values."""
    if not attributes:
        raise ConfigError(f'filter {dialect!r} names no attribute; say which, like {dialect}(source="/shop/")')
    for name, value in attributes.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"filter {dialect!r}: {_shown(name)} is no attribute name; they are lower-case letters and digits")
        if not isinstance(value, str):
            raise ConfigError(f"filter {dialect!r}: the value of {name!r} must be a string, not {_shown(value)}")
        if not value:
            raise ConfigError(f"filter {dialect!r}: the value of {name!r} is empty; to ask for a missing attribute there is no filter")
    return tuple(sorted(attributes.items()))


def _filters(dialect: str, filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    if not filters:
        raise ConfigError(f"filter {dialect!r} holds no filter; it needs at least one")
    for filter in filters:
        if not isinstance(filter, Filter):
            raise ConfigError(f"filter {dialect!r} takes filters of broker_faas.where, not {_shown(filter)}")
    return filters


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


all = all_
any = any_
