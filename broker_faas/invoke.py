"""From an event to a handler's arguments, and from its result or exception to what happens next.

Shared by the executor (workers/runtimes/python.py) and testing.py, so that a test sees what production does. No I/O, no event loop.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from .decide import FAILED, INVALID, REJECTED, RETRY
from .errors import MAX_DELAY, ConfigError, EventError, EventInvalid, Reject, Retry
from .event import CloudEvent
from .function import Context, Function, next_hop, reply

Arguments = Callable[[CloudEvent, Any], tuple[Any, ...]]
Output = tuple[str, CloudEvent]


@dataclass(frozen=True, slots=True)
class Invocation:
    """How to call one handler: `handler(*arguments(event, ctx))`; ctx is None if it does not want one.

    arguments: raises EventInvalid if the data is not what the handler's model asks for. `(event)` 0.05 µs, `(event, ctx)` 0.05 µs;
    a model costs its decoding.
    """

    function: Function[Any]
    handler: Callable[..., Any]
    wants_ctx: bool
    arguments: Arguments


class Failure(NamedTuple):
    """An outcome that is not ok. status: a code of decide.py; reason: one line; detail: the traceback from user code on, or "".

    after: seconds until the next attempt, if the function named them.
    """

    status: int
    reason: str
    detail: str
    after: float | None


def prepare(function: Function[Any]) -> Invocation:
    """Look at the handler's signature once. ConfigError if its model cannot be resolved or decoded into."""
    handler: Callable[..., Any] = function.handler
    wants_ctx, model = function.shape
    if model is None:
        return Invocation(function, handler, wants_ctx, _event_and_context if wants_ctx else _event)
    decode = _decoder(model, function.location)
    if wants_ctx:
        return Invocation(function, handler, True, lambda event, ctx: (decode(event), ctx))
    return Invocation(function, handler, False, lambda event, ctx: (decode(event),))


def outputs(function: Function[Any], result: Any, event: CloudEvent, ctx: Context) -> list[Output]:
    """What a call that succeeded sends: what it emitted, then what it returned.

    None sends nothing. A CloudEvent, or a list of nothing but CloudEvents (an empty one too), goes to `sends` as it is, inheriting
    the event's partition key if it has none. Anything else is JSON data of one new event. Raises Reject if that cannot be.
    """
    if result is None:
        return ctx.outputs
    if inspect.iscoroutine(result):
        result.close()
        raise Reject(f"{function.name} returned a coroutine that nobody awaited: declare the handler `async def`")
    if isinstance(result, CloudEvent):
        returned = [result]
    elif isinstance(result, list) and all(isinstance(item, CloudEvent) for item in result):
        returned = result
    else:
        _emit(function, result, ctx)
        return ctx.outputs
    if returned and not function.sends:
        raise Reject(_NOWHERE)
    if not returned:
        return ctx.outputs
    key, hops = event.partitionkey, next_hop(event)
    sent = list(ctx.outputs)
    for item in returned:
        attributes = {**item.attributes, "hops": hops}
        if key:
            attributes.setdefault("partitionkey", key)
        sent.append((function.sends or "", CloudEvent.of(attributes, item.data)))
    if len({(topic, item.source, item.id) for topic, item in sent}) < len(sent):
        raise Reject(
            "two of the events it sends have one topic, source and id: the bus would keep the first. Give each its own id, or use ctx.emit"
        )
    return sent


def classify(error: BaseException) -> Failure:
    """What an exception of a handler, of arguments() or of outputs() means.

    Retry → RETRY; Reject → REJECTED; EventError → INVALID (sending the event again does not help); anything else → FAILED.
    A deadline is the runtime's to tell: a TimeoutError from here is the user's own.
    """
    match error:
        case Retry():
            after = _after(error)
            if after is None or _is_delay(after):
                return Failure(RETRY, _line(error), _detail(error), after)
            reason = f"Retry.after={_shown(after):.50} must lie between 0 and 30 days, in seconds"
            return Failure(FAILED, _sendable(reason), _detail(error), None)
        case Reject():
            return Failure(REJECTED, _line(error), _detail(error), None)
        case EventError():
            return Failure(INVALID, _line(error), _detail(error), None)
        case _:
            text = _line(error)
            name = type(error).__name__
            return Failure(FAILED, f"{name}: {text}" if text else name, _detail(error), None)


# --- arguments ----------------------------------------------------------------------------------------------


def _event(event: CloudEvent, ctx: Context) -> tuple[Any, ...]:
    return (event,)


def _event_and_context(event: CloudEvent, ctx: Context) -> tuple[Any, ...]:
    return (event, ctx)


def _decoder(model: Any, location: str) -> Callable[[CloudEvent], Any]:
    """Data → model. dataclasses, msgspec Structs and plain JSON types by msgspec; pydantic models by themselves (never imported here)."""
    name = getattr(model, "__name__", str(model))
    decode: Callable[[bytes], Any] | None = getattr(model, "model_validate_json", None)
    if decode is None:
        try:
            decode = msgspec.json.Decoder(model).decode
        except TypeError as error:
            raise ConfigError(
                f"{location}: data cannot become {name} ({error}); use CloudEvent, a dataclass, a msgspec Struct or a pydantic model"
            ) from error

    def decoded(event: CloudEvent) -> Any:
        if event.data is None:
            raise EventInvalid(f"data is no {name}: the event has no data")
        try:
            return decode(event.data)
        except (msgspec.DecodeError, ValueError) as error:  # pydantic's are ValueErrors
            kind = event.datacontenttype
            hint = f" (datacontenttype is {kind}; a model needs JSON)" if kind and "json" not in kind else ""
            raise EventInvalid(f"data is no {name}: {_mismatch(error)}{hint}") from None

    return decoded


def _mismatch(error: Exception) -> str:
    """pydantic's text spans many lines with links; its `errors()` say the same in a few words."""
    if listed := getattr(error, "errors", None):
        return "; ".join(f"{'.'.join(str(part) for part in one['loc']) or '$'}: {one['msg']}" for one in listed())
    return str(error)


# --- outputs ------------------------------------------------------------------------------------------------

_NOWHERE = "returned data but has nowhere to send it: add sends=… or return None"


def _emit(function: Function[Any], data: Any, ctx: Context) -> None:
    if not function.sends:
        raise Reject(_NOWHERE)
    try:
        reply(ctx, function.sends, data)
    except EventError as error:
        raise Reject(f"returned {type(data).__name__} that cannot be sent: {_line(error)}") from None


# --- errors -------------------------------------------------------------------------------------------------

_MAX_REASON = 1000  # characters; layout.dead_record keeps no more
_MAX_DETAIL = 16 << 10  # characters of the traceback's end; a dead letter keeps 8 KiB of wire
_STDLIB = os.path.dirname(os.__file__)
_OURS = (os.path.dirname(__file__) + os.sep, os.path.join(_STDLIB, "asyncio", ""), os.path.join(_STDLIB, "concurrent", ""))


def _after(error: Retry) -> Any:
    """A subclass may set it to anything, or make it a property that fails."""
    try:
        return error.after
    except BaseException as broken:
        return broken


def _is_delay(after: Any) -> bool:
    return isinstance(after, int | float) and 0 <= after <= MAX_DELAY


def _line(error: BaseException) -> str:
    text = _shown(error, str)
    return _sendable(" ".join(text[: 4 * _MAX_REASON].split())[:_MAX_REASON])


def _shown(value: object, how: Callable[[object], str] = repr) -> str:
    """A user's own __str__ or __repr__ may fail too, and even exit."""
    try:
        return how(value)
    except BaseException as broken:
        return f"<{how.__name__}() failed: {type(broken).__name__}>"


def _detail(error: BaseException) -> str:
    """The traceback without our frames above the handler; "" if no user code was involved."""
    try:
        return _traceback(error)
    except Exception as broken:  # what a user's exception holds may be anything: a SyntaxError whose text is a number
        return f"<no traceback: {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error)
    frames = list(shown.stack)
    while frames and frames[0].filename.startswith(_OURS):
        frames.pop(0)
    if not frames:
        return ""
    shown.stack = traceback.StackSummary.from_list(frames)
    return _sendable("".join(shown.format())[-_MAX_DETAIL:])


def _sendable(text: str) -> str:
    """Lone surrogates cannot be encoded for the worker."""
    return text.encode("utf-8", "replace").decode()
