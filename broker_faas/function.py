"""Function: user code, what it listens to, and policy. Context: what a call may know and emit.

    @function(on="orders.created", sends="orders.reserved", retry=RetryPolicy(max_attempts=5))
    async def reserve(event: CloudEvent, ctx: Context) -> dict: ...

A Function is found in its module by discover(); there is no registry.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

import msgspec

from .attributes import canonical
from .errors import ConfigError, FaasError, Reject
from .event import CloudEvent, as_bytes
from .layout import output_id, project_source
from .retry import RetryPolicy, is_count, is_number, require
from .signature import Shape, UnresolvedAnnotation, location, shape
from .topics import check_destination, check_pattern, minimal, sink_of
from .where import Filter

Handler = TypeVar("Handler", bound=Callable[..., Any])
MAX_NAME = 60  # characters
MAX_HOPS = 16  # functions in a row; AWS Lambda stops a recursion there too


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the worker must know of a function, without its code.

    version: 12 hex digits of its module's source. sends: topic of what it returns. timeout: seconds. ordered: 0, 16 or 256
    partitions. start: "new", "first" or an RFC 3339 time. was: its name before a rename. doc: one line.
    """

    name: str
    module: str
    version: str
    topics: tuple[str, ...]
    sends: str | None
    timeout: float
    concurrency: int
    sync: bool
    ordered: int
    on_failure: Literal["dead", "block"]
    start: str
    was: str | None
    retry: RetryPolicy
    doc: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Function(Generic[Handler]):
    """A handler and its declaration. Calling it calls the handler: a unit test is `await reserve(event, ctx)`.

    location: `file:line` of the handler. The other fields as in Spec.
    """

    handler: Handler
    name: str
    module: str
    version: str
    location: str
    topics: tuple[str, ...]
    where: Filter | None
    sends: str | None
    retry: RetryPolicy
    timeout: float
    concurrency: int
    sync: bool
    ordered: int
    on_failure: Literal["dead", "block"]
    start: str
    was: str | None
    doc: str

    @property
    def __call__(self) -> Handler:
        return self.handler

    @property
    def __wrapped__(self) -> Handler:
        """For inspect.signature() and the like."""
        return self.handler

    @cached_property
    def shape(self) -> Shape:
        """How to call the handler. Raises ConfigError if an annotation can still not be resolved."""
        return shape(self.handler)

    def spec(self) -> Spec:
        return Spec(**{name: getattr(self, name) for name in Spec.__struct_fields__})

    def __repr__(self) -> str:
        return f"<Function {self.name} on {', '.join(self.topics)}>"


def function(
    *,
    on: str | Sequence[str],
    name: str | None = None,
    where: Filter | None = None,
    sends: str | None = None,
    retry: RetryPolicy = RetryPolicy(),
    timeout: float = 30.0,
    concurrency: int = 16,
    ordered: bool | int = False,
    on_failure: Literal["dead", "block"] = "dead",
    start: Literal["new", "first"] | datetime = "new",
    was: str | None = None,
) -> Callable[[Handler], Function[Handler]]:
    """Make a handler a Function.

    on: topics it listens to; `*` stands for one part, a last `>` for one or more. name: the handler's own if not given.
    where: runs only for events that this filter matches. sends: topic that returned data is published to.
    timeout: seconds an attempt may take. concurrency: calls that overlap in one executor (async handlers).
    ordered: events of one key run one at a time, in order; True is 16 partitions, 256 the other choice. on_failure: "block" makes
    an ordered function retry its failing event for ever, and its partition wait. start: where a new function begins: at new events,
    the first one kept, or a time. was: the name it had before, whose queue it takes over.
    Raises ConfigError with the handler's file and line.
    """

    def declare(handler: Handler) -> Function[Handler]:
        at = location(handler)
        try:
            with suppress(UnresolvedAnnotation):  # a class further down the module, perhaps: Function.shape asks again
                shape(handler)
            declared = Function(
                handler=handler,
                name=name or handler.__name__,
                module=handler.__module__,
                version=_version(handler),
                location=at,
                topics=_topics(on),
                where=where,
                sends=sends,
                retry=retry,
                timeout=timeout,
                concurrency=concurrency,
                sync=not inspect.iscoroutinefunction(handler),
                ordered=16 if ordered is True else 0 if ordered is False else ordered,
                on_failure=on_failure,
                start=_start(start),
                was=was,
                doc=(inspect.getdoc(handler) or "").partition("\n")[0],
            )
            _check(declared)
            return declared
        except FaasError as error:
            raise ConfigError(str(error) if str(error).startswith(at) else f"{at}: {error}") from None

    return declare


def discover(module: ModuleType) -> list[Function[Any]]:
    """Functions in a module's namespace, imported ones too, by name. ConfigError if two share a name."""
    found: dict[str, Function[Any]] = {}
    for value in vars(module).values():
        if isinstance(value, Function) and found.setdefault(value.name, value) is not value:
            places = f"{found[value.name].location} and {value.location}"
            raise ConfigError(f"two functions are named {value.name!r}: {places}; rename one, or give it name=…")
    return [found[name] for name in sorted(found)]


class Context:
    """What one call may know, and what it emits.

    topic: that the event was published to. attempt: from 1. deadline: time.monotonic() at which the call is cancelled.
    outputs: (topic, event) of each emit(), published when the call succeeds. The defaults are for unit tests: Context(event).
    """

    __slots__ = ("_log", "attempt", "deadline", "event", "function", "outputs", "project", "topic")

    def __init__(  # 0.6 µs, measured as attributes.read_plain()
        self,
        event: CloudEvent,
        *,
        function: str = "function",
        topic: str = "",
        attempt: int = 1,
        deadline: float = math.inf,
        project: str = "project",
    ) -> None:
        self.event = event
        self.function = function
        self.topic = topic
        self.attempt = attempt
        self.deadline = deadline
        self.project = project
        self.outputs: list[tuple[str, CloudEvent]] = []
        self._log: _CallLog | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logger `faas.{function}`; each record has the fields function, event and attempt."""
        if self._log is None:
            fields = {"function": self.function, "event": self.event.id, "attempt": self.attempt}
            self._log = _CallLog(logging.getLogger(f"faas.{self.function}"), fields)
        return self._log

    def emit(
        self,
        /,
        topic: str,
        data: Any = None,
        *,
        type: str | None = None,
        key: str | None = None,
        subject: str | None = None,
        **attributes: Any,
    ) -> CloudEvent:
        """Publish an event to `topic` once this call has succeeded; return it.

        type: the topic if not given, without the sink it may leave through. key: of the event being handled if not given.
        attributes: time, datacontenttype, dataschema and extensions. Its id is derived from the event being handled and its place
        among the outputs, and it has no time of its own: another attempt makes the same bytes, and the bus stores them once.
        Raises TopicInvalid, EventInvalid, Reject (see next_hop).
        """
        check_destination(topic)
        if type is None and key is None and subject is None and not attributes:
            return reply(self, topic, data)
        cause = self.event
        event = CloudEvent(
            id=output_id(cause, len(self.outputs), self.topic),
            source=project_source(self.project, self.function),
            type=type or sink_of(topic)[1],
            data=data,
            subject=subject,
            **{**_descent(cause), **({} if key is None else {"partitionkey": key}), **attributes},
        )
        self.outputs.append((topic, event))
        return event


def reply(ctx: Context, topic: str, data: Any) -> CloudEvent:
    """As ctx.emit(topic, data), for a topic that is checked.

    All but the data is derived from what was checked before, and is not checked again: a third of the time. The worker checks all of it.
    """
    cause = ctx.event
    written, datacontenttype = as_bytes(data, None)
    attributes = {
        "specversion": "1.0",
        "id": output_id(cause, len(ctx.outputs), ctx.topic),
        "source": project_source(ctx.project, ctx.function),
        "type": sink_of(topic)[1],
    }
    if datacontenttype is not None:
        attributes["datacontenttype"] = datacontenttype
    event = CloudEvent.of(attributes | _descent(cause), written)
    ctx.outputs.append((topic, event))
    return event


def _descent(cause: CloudEvent) -> dict[str, str]:
    """Extensions of what a function sends on `cause`, in their order."""
    inherited = cause.attributes
    extensions = {"causationid": cause.id, "correlationid": inherited.get("correlationid", cause.id), "hops": next_hop(cause)}
    if "partitionkey" in inherited:
        extensions["partitionkey"] = inherited["partitionkey"]
    return extensions


def next_hop(cause: CloudEvent) -> str:
    """Extension `hops` of what a function sends on `cause`: how many functions led to it. Raises Reject beyond MAX_HOPS.

    Functions that feed each other, or one that feeds itself, would go on for ever and fill the bus.
    """
    had = cause.get("hops") or ""
    hops = 1 + (int(had) if had.isascii() and had.isdecimal() and len(had) < 4 else 0)
    if hops > MAX_HOPS:
        raise Reject(f"the event came through {MAX_HOPS} functions, one after the other: do they feed each other? It may not be sent on")
    return str(hops)


class _CallLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """The caller's own `extra` stays; LoggerAdapter would drop it."""
        own: Mapping[str, Any] = kwargs.get("extra") or {}
        return msg, {**kwargs, "extra": {**(self.extra or {}), **own}}


# --- declarations -------------------------------------------------------------------------------------------

_NAME = re.compile(rf"[A-Za-z0-9_]{{1,{MAX_NAME}}}")


def _topics(on: str | Sequence[str]) -> tuple[str, ...]:
    patterns = [on] if isinstance(on, str) else on
    require("on", on, "be a topic like 'orders.created', or a list of topics", _is_listed(patterns))
    return minimal(check_pattern(pattern) for pattern in patterns)


def _start(start: str | datetime) -> str:
    if isinstance(start, datetime):
        require("start", start, "have a zone, like datetime(2026, 1, 31, tzinfo=timezone.utc)", start.tzinfo is not None)
        return canonical("start", start) or ""
    require("start", start, "be 'new', 'first' or a datetime", start in ("new", "first"))
    return start


def _check(f: Function[Any]) -> None:
    """Raises ConfigError, or TopicInvalid, about the first thing that cannot be."""
    name = f"be letters, digits and '_', at most {MAX_NAME} of them"
    require("name", f.name, name, _is_name(f.name))
    require("was", f.was, f"not be the function's own name, and {name}", f.was is None or (_is_name(f.was) and f.was != f.name))
    require("where", f.where, 'be a filter of broker_faas.where, like prefix(source="/shop/")', isinstance(f.where, Filter | None))
    require("sends", f.sends, "be a topic like 'orders.reserved'", isinstance(f.sends, str | None))
    if f.sends is not None:
        check_destination(f.sends)
    require("retry", f.retry, "be a RetryPolicy, like RetryPolicy(max_attempts=3)", isinstance(f.retry, RetryPolicy))
    require("timeout", f.timeout, "be seconds, more than 0", is_number(f.timeout) and f.timeout > 0)
    require("concurrency", f.concurrency, "be a whole number of at least 1", is_count(f.concurrency))
    require("ordered", f.ordered, "be True (16 partitions), 16, 256 or False", f.ordered in (0, 16, 256))
    wide = f.ordered and any(topic.endswith(">") for topic in f.topics)
    require("on", f.topics, "name the topics of an ordered function, or use '*': it cannot listen to '>'", not wide)
    require("on_failure", f.on_failure, "be 'dead' or 'block'", f.on_failure in ("dead", "block"))
    require("on_failure", f.on_failure, "be 'dead' unless ordered=True", f.on_failure == "dead" or f.ordered > 0)


def _version(handler: Callable[..., Any]) -> str:
    """12 hex digits of the source file's sha256; zeros for code that has no file (a REPL)."""
    try:
        source = Path(inspect.unwrap(handler).__code__.co_filename).read_bytes()
    except OSError:
        return "0" * 12
    return hashlib.sha256(source).hexdigest()[:12]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _is_listed(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)
