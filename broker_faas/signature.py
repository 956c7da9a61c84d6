"""What a handler's signature says about how to call it: (event), (event, ctx), (order: Order), (order: Order, ctx)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args, get_type_hints

from .errors import ConfigError
from .event import CloudEvent


class Shape(NamedTuple):
    """wants_ctx: whether it takes the context. model: what its data is decoded into; None: it takes the event itself."""

    wants_ctx: bool
    model: Any


class UnresolvedAnnotation(ConfigError):
    """An annotation names what is not defined (yet)."""


def shape(handler: Callable[..., Any]) -> Shape:
    """Look at a handler's signature. Raises ConfigError with file and line, UnresolvedAnnotation if it may be asked again later."""
    at = location(handler)
    plain = inspect.unwrap(handler)
    if not inspect.isfunction(handler) or not inspect.isfunction(plain):
        raise ConfigError(f"{at}: a handler is a function made with def or async def, not {type(handler).__name__}")
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigError(f"{at}: handler {plain.__name__!r} is a generator; return a list of events, or use ctx.emit")
    event, ctx = _parameters(handler, at)
    model = _annotation(plain, event, at)
    if model is _context():
        raise ConfigError(f"{at}: the event comes first, then the context: {_EXPECTED}")
    given = _annotation(plain, ctx, at) if ctx else Any
    if given not in (*_ANYTHING, _context()) and _context() not in get_args(given):
        raise ConfigError(f"{at}: the second parameter must be a Context: {_EXPECTED}")
    return Shape(ctx is not None, None if model in (*_ANYTHING, CloudEvent) else model)


def location(handler: object) -> str:
    """`file:line` where a handler is defined, as far as that can be known."""
    code = getattr(inspect.unwrap(handler) if callable(handler) else handler, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(handler)


_EXPECTED = "a handler takes (event), (event, ctx), (order: Order) or (order: Order, ctx)"
_ANYTHING = (inspect.Parameter.empty, Any, object)


def _parameters(handler: Callable[..., Any], at: str) -> tuple[inspect.Parameter, inspect.Parameter | None]:
    """Those for the event and the context. Others must have a default, and keep it; a context may have one, for tests."""
    signature = inspect.signature(handler)
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    ctx = second if second and (second.default is second.empty or second.name in ("ctx", "context")) else None
    others = [p for p in signature.parameters.values() if p not in (*positional[:1], ctx)]
    required = [p for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not positional or required:
        raise ConfigError(f"{at}: handler takes {signature}: {_EXPECTED}")
    return positional[0], ctx


def _annotation(plain: Callable[..., Any], parameter: inspect.Parameter, at: str) -> Any:
    """The parameter's annotation, resolved alone: one that is not needed must not stand in the way of one that is."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    # CloudEvent and Context are often imported for type checkers only.
    known = {"CloudEvent": CloudEvent, "Context": _context()}
    only = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(only, globalns=known | plain.__globals__)[parameter.name]
    except Exception as error:
        raise UnresolvedAnnotation(
            f"{at}: the annotation {parameter.annotation!r} of parameter {parameter.name!r} cannot be resolved ({error}); "
            "define or import it at module level, outside `if TYPE_CHECKING`"
        ) from error


def _context() -> Any:
    from .function import Context  # it builds on this module

    return Context
