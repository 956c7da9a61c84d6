"""Declaring functions, retry policies, what a call knows and emits."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas.errors import ConfigError, EventInvalid, TopicInvalid
from broker_faas.event import CloudEvent
from broker_faas.function import Context, Function, Spec, discover, function
from broker_faas.retry import RetryPolicy
from broker_faas.signature import Shape, UnresolvedAnnotation, location, shape
from broker_faas.where import prefix
from tests.strategies import events, json_values

if TYPE_CHECKING:
    from broker_faas.event import CloudEvent as OnlyForTypeCheckers

EVENT = CloudEvent(type="orders.created", source="/shop", id="1", data={"id": 7}, partitionkey="k")


@dataclass
class Order:
    id: int


async def handler(event: CloudEvent, ctx: Context) -> dict[str, Any]:
    """Reserves what was ordered.

    At length.
    """
    return {"id": event.id, "attempt": ctx.attempt}


def declared(**changes: Any) -> Function[Any]:
    options: dict[str, Any] = {"on": "orders.created"} | changes
    made: Function[Any] = function(**options)(handler)
    return made


# --- declaring ----------------------------------------------------------------------------------------------


async def test_a_function_is_called_like_its_handler() -> None:
    assert await declared()(EVENT, Context(EVENT, attempt=2)) == {"id": "1", "attempt": 2}
    assert declared().handler is handler


def test_tools_see_the_signature_of_the_handler() -> None:
    assert inspect.signature(declared()) == inspect.signature(handler)


def test_one_handler_cannot_be_declared_twice_in_a_stack() -> None:
    with pytest.raises(ConfigError, match="a handler is a function made with def or async def, not Function"):
        function(on="a")(declared())


def test_a_declaration_has_sensible_defaults() -> None:
    made = declared()

    assert made.spec() == Spec(
        name="handler",
        module=__name__,
        version=made.version,
        topics=("orders.created",),
        sends=None,
        timeout=30.0,
        concurrency=16,
        sync=False,
        ordered=0,
        on_failure="dead",
        start="new",
        was=None,
        retry=RetryPolicy(),
        doc="Reserves what was ordered.",
    )
    assert made.where is None


def test_a_declaration_keeps_what_it_is_told() -> None:
    made = declared(
        on=["a.b", "c.*", "d.>", "a.b"],
        name="reserve_2",
        where=prefix(source="/shop"),
        sends="orders.reserved",
        retry=RetryPolicy(max_attempts=1),
        timeout=5,
        concurrency=1,
        start=datetime(2026, 1, 31, 9, 30, tzinfo=timezone(timedelta(hours=2))),
        was="reserve",
    )

    assert made.topics == ("a.b", "c.*", "d.>")
    assert (made.name, made.sends, made.timeout, made.concurrency, made.was) == ("reserve_2", "orders.reserved", 5, 1, "reserve")
    assert (made.where, made.retry) == (prefix(source="/shop"), RetryPolicy(max_attempts=1))
    assert made.start == "2026-01-31T09:30:00+02:00"


def test_topics_that_another_covers_are_left_out() -> None:
    assert declared(on=["a.b", "a.>"]).topics == ("a.>",)


@pytest.mark.parametrize(("ordered", "partitions"), [(False, 0), (0, 0), (True, 16), (16, 16), (256, 256)])
def test_ordered_is_a_number_of_partitions(ordered: Any, partitions: int) -> None:
    assert declared(ordered=ordered).ordered == partitions


@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])
def test_a_spec_survives_the_wire(codec: Any) -> None:
    spec = declared(ordered=True, on_failure="block", sends="a", was="b", timeout=1.5).spec()

    assert codec.decode(codec.encode(spec), type=Spec) == spec


def test_the_version_is_the_hash_of_the_source_file() -> None:
    assert declared().version == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def test_code_without_a_file_has_version_zero() -> None:
    space: dict[str, Any] = {"function": function, "__name__": "repl"}
    exec("@function(on='a')\ndef f(event): pass", space)

    assert space["f"].version == "0" * 12


def test_a_declaration_cannot_be_changed() -> None:
    made: Any = declared()

    with pytest.raises(AttributeError):
        made.timeout = 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "orders..created"}, "topic 'orders..created' has an empty part"),
        ({"on": ""}, "the topic is empty"),
        ({"on": "a b"}, "has ' ' in part"),
        ({"on": "a.>.b"}, "has '>' before its end"),
        ({"on": "x" * 300}, "has 300 characters"),
        ({"on": []}, "on=[] must be a topic"),
        ({"on": 5}, "on=5 must be a topic"),
        ({"on": ["a", None]}, "on=['a', None] must be a topic"),
        ({"on": ["a.*", "*.b"]}, "'a.*' and '*.b' overlap"),
        ({"on": "a.>", "ordered": True}, "on=('a.>',) must name the topics of an ordered function"),
        ({"name": "a-b"}, "name='a-b' must be letters, digits and '_'"),
        ({"name": "a" * 61}, "at most 60 of them"),
        ({"name": "é"}, "name='é' must be"),
        ({"name": 5}, "name=5 must be"),
        ({"name": "a\n"}, "name='a\\n' must be"),
        ({"was": "handler"}, "was='handler' must not be the function's own name"),
        ({"was": "a b"}, "was='a b' must not be the function's own name, and be letters"),
        ({"where": {"exact": {}}}, "must be a filter of broker_faas.where"),
        ({"sends": "a.*"}, "topic 'a.*' has a wildcard"),
        ({"sends": 5}, "sends=5 must be a topic"),
        ({"sends": ""}, "the topic is empty"),
        ({"retry": 3}, "retry=3 must be a RetryPolicy"),
        *[
            ({"timeout": value}, f"timeout={value!r} must be seconds, more than 0")
            for value in (0, -1, math.inf, math.nan, "30", None, True)
        ],
        *[({"concurrency": value}, f"concurrency={value!r} must be a whole number") for value in (0, -1, 1.5, "8", None, True)],
        *[({"ordered": value}, f"ordered={value!r} must be True") for value in (1, 17, -16, "yes", None, 16.5)],
        ({"on_failure": "drop"}, "on_failure='drop' must be 'dead' or 'block'"),
        ({"on_failure": "block"}, "on_failure='block' must be 'dead' unless ordered=True"),
        ({"start": "last"}, "start='last' must be 'new', 'first' or a datetime"),
        ({"start": datetime(2026, 1, 31)}, "must have a zone"),
        ({"start": 5}, "start=5 must be"),
    ],
)
def test_a_wrong_declaration_names_the_handler_and_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        declared(**options)

    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{__file__}:{handler.__code__.co_firstlineno}: ")


# --- signatures ---------------------------------------------------------------------------------------------


class Item(msgspec.Struct):
    id: int


class Model:
    @classmethod
    def model_validate_json(cls, raw: bytes) -> Model:
        return cls()


def event_only(event: CloudEvent) -> None: ...
def untyped(event, ctx): ...  # type: ignore[no-untyped-def]
def anything(event: Any, ctx: Any) -> None: ...
def order_only(order: Order) -> None: ...
def struct(order: Item, ctx: Context) -> None: ...
def model(order: Model, /) -> None: ...
def plain_json(numbers: list[int]) -> None: ...
def for_tests(event: CloudEvent, ctx: Context | None = None) -> None: ...
def with_defaults(event: CloudEvent, db: str = "x", *args: Any, flag: bool = False, **more: Any) -> None: ...
def type_checked(event: OnlyForTypeCheckers, ctx: Context) -> NowhereToBeFound: ...  # type: ignore[name-defined]  # noqa: F821
def defined_below(order: Below) -> None: ...


@wraps(struct)
def wrapped(*args: Any, **options: Any) -> None:
    return struct(*args, **options)


class Below: ...


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (handler, Shape(True, None)),
        (event_only, Shape(False, None)),
        (untyped, Shape(True, None)),
        (anything, Shape(True, None)),
        (order_only, Shape(False, Order)),
        (struct, Shape(True, Item)),
        (wrapped, Shape(True, Item)),
        (model, Shape(False, Model)),
        (plain_json, Shape(False, list[int])),
        (for_tests, Shape(True, None)),
        (with_defaults, Shape(False, None)),
        (defined_below, Shape(False, Below)),
    ],
)
def test_the_signature_says_how_a_handler_is_called(handler: Callable[..., Any], expected: Shape) -> None:
    assert shape(handler) == expected
    assert function(on="a")(handler).shape == expected


def test_event_and_context_may_be_imported_for_type_checkers_only() -> None:
    space: dict[str, Any] = {"function": function}
    exec("def f(event: CloudEvent, ctx: Context) -> Nowhere: ...\ndef g(order: Order): ...", space)  # annotations are strings here

    assert shape(space["f"]) == Shape(True, None)
    with pytest.raises(
        UnresolvedAnnotation, match=r"annotation 'Order' of parameter 'order' cannot be resolved.*outside `if TYPE_CHECKING`"
    ):
        shape(space["g"])


def test_a_model_may_be_defined_after_the_function_that_takes_it() -> None:
    space: dict[str, Any] = {"function": function}
    exec("@function(on='a')\ndef f(order: Order): ...\nclass Order: ...", space)

    assert space["f"].shape == Shape(False, space["Order"])


def test_a_model_that_is_never_defined_is_a_config_error_when_it_is_needed() -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(__file__)}:\d+: the annotation 'OnlyForTypeCheckers'"):
        _ = function(on="a")(type_checked).shape


def no_parameters() -> None: ...
def three(event: CloudEvent, ctx: Context, more: int) -> None: ...
def keyword_only(event: CloudEvent, *, ctx: Context) -> None: ...
def star(*events: CloudEvent) -> None: ...
def swapped(ctx: Context, event: CloudEvent) -> None: ...
def second_is_no_context(event: CloudEvent, other: int) -> None: ...
def generator(event: CloudEvent) -> Iterator[int]:
    yield 1


async def async_generator(event: CloudEvent) -> AsyncIterator[int]:
    yield 1


class Callee:
    def __call__(self, event: CloudEvent) -> None: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (no_parameters, "handler takes () -> 'None': a handler takes (event), (event, ctx), (order: Order) or (order: Order, ctx)"),
        (three, "a handler takes (event)"),
        (keyword_only, "a handler takes (event)"),
        (star, "a handler takes (event)"),
        (swapped, "the event comes first, then the context"),
        (second_is_no_context, "the second parameter must be a Context"),
        (generator, "is a generator; return a list of events, or use ctx.emit"),
        (async_generator, "is a generator"),
        (Callee(), "a handler is a function made with def or async def, not Callee"),
        (Order, "a handler is a function made with def or async def, not type"),
        (print, "a handler is a function made with def or async def"),
        (5, "a handler is a function made with def or async def, not int"),
    ],
)
def test_a_wrong_signature_is_a_config_error_where_it_stands(handler: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        function(on="a")(handler)

    assert message in str(raised.value)
    assert str(raised.value).startswith(location(handler) + ": ")


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="name='<lambda>' must be"):
        function(on="a")(lambda event: None)
    assert function(on="a", name="f")(lambda event: None).name == "f"


@pytest.mark.parametrize(("handler", "sync"), [(event_only, True), (handler, False)])
def test_plain_def_is_sync(handler: Callable[..., Any], sync: bool) -> None:
    assert function(on="a")(handler).sync is sync


# --- discovery ----------------------------------------------------------------------------------------------


def test_discovery_finds_each_function_once_by_name() -> None:
    module: Any = ModuleType("orders")
    module.b, module.a, module.alias = declared(name="b"), declared(name="a"), None
    module.alias, module.other, module.handler = module.b, 5, handler

    assert discover(module) == [module.a, module.b]
    assert discover(ModuleType("empty")) == []


def test_two_functions_of_one_name_are_a_config_error_that_names_both_places() -> None:
    module: Any = ModuleType("orders")
    module.a, module.b = declared(name="f"), declared(name="f")

    with pytest.raises(
        ConfigError, match=rf"two functions are named 'f': {re.escape(__file__)}:\d+ and {re.escape(__file__)}:\d+; rename one"
    ):
        discover(module)


# --- retry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, None), (5, None)])
def test_delay_doubles_until_attempts_run_out(attempt: int, delay: float | None) -> None:
    assert RetryPolicy(max_attempts=4).delay(attempt) == delay


def test_delay_is_capped_and_moved_by_the_jitter() -> None:
    policy = RetryPolicy(max_attempts=100, max_backoff=10.0, jitter=0.5)

    assert [policy.delay(50, spread) for spread in (-1.0, 0.0, 1.0)] == [5.0, 10.0, 15.0]


policies = st.builds(
    lambda low, more, **rest: RetryPolicy(min_backoff=low, max_backoff=low + more, **rest),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    max_attempts=st.integers(1, 10**6),
    factor=st.floats(1, 1e300),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(1, 10**6), st.floats(-1, 1))
def test_delay_is_finite_and_within_its_bounds(policy: RetryPolicy, attempt: int, spread: float) -> None:
    delay = policy.delay(attempt, spread)

    assert (delay is None) == (attempt >= policy.max_attempts)
    if delay is not None:
        assert policy.min_backoff * (1 - policy.jitter) * 0.999 <= delay <= policy.max_backoff * (1 + policy.jitter) * 1.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"max_attempts": value}, "max_attempts=.* must be a whole number of at least 1") for value in (0, -1, 1.5, True, "3")],
        *[({"min_backoff": value}, "min_backoff=.* must be seconds, 0 or more") for value in (-1, math.inf, math.nan, "1", 1e300)],
        *[({"max_backoff": value}, "max_backoff=.* must be seconds, min_backoff or more") for value in (0.5, math.inf, "1", 1e300)],
        *[({"factor": value}, "factor=.* must be a number of at least 1") for value in (0.5, math.nan, None)],
        *[({"jitter": value}, "jitter=.* must lie between 0 and 1") for value in (-0.1, 1.1, None)],
    ],
)
def test_a_wrong_policy_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetryPolicy(**options)


# --- context ------------------------------------------------------------------------------------------------


def context(event: CloudEvent = EVENT, **changes: Any) -> Context:
    return Context(event, **{"function": "reserve", "topic": "orders.created", "project": "shop"} | changes)


def test_a_context_for_a_unit_test_needs_only_the_event() -> None:
    ctx = Context(EVENT)

    assert (ctx.event, ctx.attempt, ctx.remaining, ctx.outputs) == (EVENT, 1, math.inf, [])


def test_remaining_counts_down_to_zero() -> None:
    assert 59 < context(deadline=time.monotonic() + 60).remaining <= 60
    assert context(deadline=time.monotonic() - 60).remaining == 0


def test_what_is_emitted_is_derived_from_the_event() -> None:
    ctx = context()
    emitted = ctx.emit("orders.reserved", {"id": 7}, subject="7", flag=True)

    assert ctx.outputs == [("orders.reserved", emitted)]
    assert emitted.json() == {"id": 7}
    assert emitted.id.endswith(".0")
    assert dict(emitted.attributes) == {
        "specversion": "1.0",
        "id": emitted.id,
        "source": "/shop/reserve",
        "type": "orders.reserved",
        "datacontenttype": "application/json",
        "subject": "7",
        "causationid": "1",
        "correlationid": "1",
        "flag": "true",
        "hops": "1",
        "partitionkey": "k",
    }


def test_a_chain_of_events_keeps_its_correlation_and_names_each_cause() -> None:
    first = context().emit("a", 1)
    second = context(first, function="next").emit("b", 2)

    assert (second["correlationid"], second["causationid"]) == ("1", first.id)


def test_the_key_is_inherited_unless_another_is_given() -> None:
    assert context().emit("a").partitionkey == "k"
    assert context().emit("a", key="other").partitionkey == "other"
    assert context(EVENT.replace(partitionkey=None)).emit("a").partitionkey is None


def test_type_time_and_the_rest_may_be_given() -> None:
    emitted = context().emit(
        "a", "x", type="t", time="2026-01-31T09:30:00Z", datacontenttype="text/plain", dataschema="urn:s", correlationid="c"
    )

    assert (emitted.type, emitted.time, emitted.data, emitted.dataschema, emitted["correlationid"]) == (
        "t",
        "2026-01-31T09:30:00Z",
        b"x",
        "urn:s",
        "c",
    )


@given(events(), st.lists(json_values, min_size=1, max_size=4))
def test_another_attempt_emits_the_same_bytes_and_no_two_outputs_share_an_id(event: CloudEvent, outputs: list[Any]) -> None:
    first, second = context(event), context(event, attempt=2)
    for ctx in (first, second):
        for data in outputs:
            ctx.emit("out", data)

    assert [(topic, one.headers(), one.data) for topic, one in first.outputs] == [
        (topic, one.headers(), one.data) for topic, one in second.outputs
    ]
    assert len({one.id for _, one in first.outputs}) == len(outputs)


@given(events(), json_values)
def test_what_is_derived_and_not_checked_again_is_what_checking_would_make_of_it(event: CloudEvent, data: Any) -> None:
    for cause in (event, event.replace(partitionkey="k", correlationid="c", hops="3"), event.replace(partitionkey="", correlationid="")):
        made = context(cause).emit("out", data)
        checked = CloudEvent(**made.attributes, data=made.data)

        assert (made, made.headers()) == (checked, checked.headers())
        assert list(made.attributes) == list(checked.attributes)


def test_what_cannot_be_emitted_leaves_no_output_behind() -> None:
    ctx = context()

    for topic, data, error in (("a..b", 1, TopicInvalid), ("a.*", 1, TopicInvalid), ("a", object(), EventInvalid)):
        with pytest.raises(error):
            ctx.emit(topic, data)
    assert ctx.outputs == []


def test_the_log_says_which_call_it_was_and_keeps_the_callers_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        context(attempt=3).log.info("stock is low", extra={"left": 2})
    record: Any = caplog.records[0]

    assert (record.name, record.getMessage()) == ("faas.reserve", "stock is low")
    assert (record.function, record.event, record.attempt, record.left) == ("reserve", "1", 3, 2)


def test_the_log_is_made_once() -> None:
    ctx = context()

    assert ctx.log is ctx.log


def test_the_documented_options_are_those_of_the_decorator() -> None:
    documented = inspect.getdoc(function) or ""

    assert [
        name for name in inspect.signature(function).parameters if f"{name}:" not in documented and name not in ("where", "sends", "retry")
    ] == []
    assert replace(RetryPolicy(), max_attempts=1) != RetryPolicy()
