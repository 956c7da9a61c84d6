"""From an event to a handler's arguments, from its result or exception to what happens next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import pytest

from broker_faas.decide import FAILED, INVALID, REJECTED, RETRY
from broker_faas.errors import ConfigError, EventInvalid, Reject, Retry
from broker_faas.event import CloudEvent
from broker_faas.function import Context, Function, function
from broker_faas.invoke import classify, outputs, prepare


@dataclass
class Order:
    id: int
    note: str = ""

    def __post_init__(self) -> None:
        if self.id < 0:
            raise ValueError("id must not be negative")


class Item(msgspec.Struct):
    id: int


class Model:
    """What we use of a pydantic model."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def model_validate_json(cls, raw: bytes) -> Self:
        if raw != b"{}":
            raise ModelError
        return cls(raw)


class ModelError(ValueError):
    def errors(self) -> list[dict[str, Any]]:
        return [{"loc": ("items", 0, "id"), "msg": "Input should be a valid integer"}, {"loc": (), "msg": "no"}]


def event(data: Any = None, **attributes: Any) -> CloudEvent:
    return CloudEvent(**{"type": "t", "source": "/test", "id": "1", "data": data} | attributes)


def context(**attributes: Any) -> Context:
    return Context(event(**attributes), function="f", topic="orders.created", project="shop")


def sending(sends: str | None = "out") -> Function[Any]:
    @function(on="orders.created", sends=sends)
    async def f(event: CloudEvent) -> None: ...

    return f


# --- arguments


@function(on="a")
async def takes_event(event: CloudEvent) -> None: ...


@function(on="a")
def takes_event_and_context(event, ctx):  # type: ignore[no-untyped-def]
    ...


@function(on="a")
async def takes_order(order: Order) -> None: ...


@function(on="a")
async def takes_item_and_context(item: Item, ctx: Context) -> None: ...


@function(on="a")
async def takes_model(order: Model) -> None: ...


@function(on="a")
async def takes_list(numbers: list[int]) -> None: ...


@function(on="a")
async def takes_nothing_we_know(order: Function[Any]) -> None: ...


def test_a_handler_gets_the_event_and_the_context_if_it_asks_for_it() -> None:
    ctx = context()

    assert prepare(takes_event).arguments(ctx.event, ctx) == (ctx.event,)
    assert prepare(takes_event_and_context).arguments(ctx.event, ctx) == (ctx.event, ctx)


def test_data_becomes_the_model_that_the_handler_names() -> None:
    ctx = context()

    assert prepare(takes_order).arguments(event({"id": 7}), ctx) == (Order(7),)
    assert prepare(takes_item_and_context).arguments(event({"id": 7, "more": 1}), ctx) == (Item(7), ctx)
    assert prepare(takes_list).arguments(event([1, 2]), ctx) == ([1, 2],)
    assert prepare(takes_model).arguments(event({}), ctx)[0].raw == b"{}"


@pytest.mark.parametrize(
    ("handler", "given", "message"),
    [
        (takes_order, event({"id": "x"}), "data is no Order: Expected `int`, got `str` - at `$.id`"),
        (takes_order, event({}), "data is no Order: Object missing required field `id`"),
        (takes_order, event({"id": -1}), "data is no Order: id must not be negative"),
        (takes_order, event(b"{", datacontenttype="application/json"), "data is no Order: Input data was truncated"),
        (takes_order, event("a,b", datacontenttype="text/csv"), "(datacontenttype is text/csv; a model needs JSON)"),
        (takes_order, event(b"\xff\xfe"), "data is no Order: "),
        (takes_order, event(), "data is no Order: the event has no data"),
        (takes_item_and_context, event([1]), "data is no Item: Expected `object`, got `array`"),
        (takes_model, event({"a": 1}), "data is no Model: items.0.id: Input should be a valid integer; $: no"),
        (takes_list, event(["a"]), "Expected `int`, got `str` - at `$[0]`"),
    ],
)
def test_data_that_is_not_the_model_is_invalid_and_says_where(handler: Function[Any], given: CloudEvent, message: str) -> None:
    with pytest.raises(EventInvalid) as raised:
        prepare(handler).arguments(given, context())
    failure = classify(raised.value)

    assert message in failure.reason
    assert failure.status == INVALID


def test_a_model_that_nothing_decodes_is_refused_with_the_handlers_place() -> None:
    with pytest.raises(ConfigError, match=r"test_invoke.py:\d+: data cannot become .*Function"):
        prepare(takes_nothing_we_know)


# --- outputs


def test_none_sends_only_what_was_emitted() -> None:
    ctx = context()
    emitted = ctx.emit("side", 1)

    assert outputs(sending(None), None, ctx.event, ctx) == [("side", emitted)]


@pytest.mark.parametrize("result", [{"a": 1}, [1, 2], [], "text", 0, False, Order(3), Item(4)], ids=repr)
def test_data_becomes_one_event_unless_it_is_an_empty_list(result: Any) -> None:
    ctx = context(partitionkey="k")
    sent = outputs(sending(), result, ctx.event, ctx)

    assert [(topic, one.source, one.type, one.partitionkey) for topic, one in sent] == (
        [("out", "/shop/f", "out", "k")] if result != [] else []
    )


def test_events_go_out_as_they_are_and_inherit_the_partition_key() -> None:
    ctx = context(partitionkey="k")
    plain, keyed = event(id="2"), event(id="3", partitionkey="own")
    sent = outputs(sending(), [plain, keyed], ctx.event, ctx)

    assert sent == [("out", plain.replace(partitionkey="k", hops="1")), ("out", keyed.replace(hops="1"))]
    assert outputs(sending(), ctx.event, ctx.event, ctx) == [("out", ctx.event.replace(hops="1"))], "a router returns its input"


@pytest.mark.parametrize("result", [{"a": 1}, event(id="2", hops="1"), [event(id="2")]], ids=["data", "event", "events"])
def test_after_sixteen_functions_in_a_row_an_event_is_not_sent_on(result: Any) -> None:
    last, beyond = context(hops="15"), context(hops="16")

    assert [one["hops"] for _, one in outputs(sending(), result, last.event, last)] == ["16"]
    with pytest.raises(Reject, match="do they feed each other"):
        outputs(sending(), result, beyond.event, beyond)


@pytest.mark.parametrize("hops", ["many", "-1", "9999", "1.5", "²"])
def test_hops_that_are_no_count_begin_anew(hops: str) -> None:
    assert context(hops=hops).emit("a")["hops"] == "1"


def test_what_is_returned_follows_what_was_emitted_with_ids_of_its_own() -> None:
    ctx = context()
    emitted = ctx.emit("out", 1)
    sent = outputs(sending(), {"a": 1}, ctx.event, ctx)
    again = context()
    again.emit("out", 1)

    assert [one.id for _, one in sent] == [one.id for _, one in outputs(sending(), {"a": 1}, again.event, again)]
    assert sent[0][1] is emitted
    assert len({one.id for _, one in sent}) == 2


async def _forgotten() -> None: ...


@pytest.mark.parametrize(
    ("sends", "result", "message"),
    [
        (None, {"a": 1}, "returned data but has nowhere to send it: add sends=… or return None"),
        (None, [event()], "nowhere to send it"),
        ("out", object(), "returned object that cannot be sent: "),
        ("out", {"a": {1: object()}}, "returned dict that cannot be sent: "),
        ("out", [event(), event()], "one topic, source and id"),
        ("out", _forgotten, "declare the handler `async def`"),
    ],
)
def test_a_result_that_cannot_be_sent_is_a_dead_letter_at_once(sends: str | None, result: Any, message: str) -> None:
    ctx = context()
    with pytest.raises(Reject) as raised:
        outputs(sending(sends), result() if result is _forgotten else result, ctx.event, ctx)

    assert message in str(raised.value)
    assert classify(raised.value).status == REJECTED


# --- exceptions


def raised_by(raises: BaseException) -> BaseException:
    try:
        raise raises
    except BaseException as error:
        return error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "status", "reason", "after"),
    [
        (Retry("busy", after=60), RETRY, "busy", 60),
        (Retry(), RETRY, "the function asked for another attempt", None),
        (Reject("bad"), REJECTED, "bad", None),
        (EventInvalid("no"), INVALID, "no", None),
        (ValueError("two\nlines"), FAILED, "ValueError: two lines", None),
        (TimeoutError(), FAILED, "TimeoutError", None),
        (SystemExit(3), FAILED, "SystemExit: 3", None),
        (Unprintable(), FAILED, "Unprintable: <str() failed: RuntimeError>", None),
        (ValueError("\ud800"), FAILED, "ValueError: ?", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_says_what_happens_next(error: BaseException, status: int, reason: str, after: float | None) -> None:
    failure = classify(raised_by(error))

    assert (failure.status, failure.reason, failure.after) == (status, reason, after)
    assert "raised_by" in failure.detail


class Soon(Retry):
    def __init__(self, after: Any) -> None:
        super().__init__("busy")
        self.after = after


@pytest.mark.parametrize("after", [-1, math.nan, math.inf, 31 * 86400, "soon", [1], "\ud800"])
def test_a_retry_whose_subclass_set_an_impossible_time_is_a_failed_attempt_that_says_so(after: Any) -> None:
    failure = classify(raised_by(Soon(after)))

    assert (failure.status, failure.after) == (FAILED, None)
    assert failure.reason.startswith("Retry.after=")
    assert failure.reason.endswith(" must lie between 0 and 30 days, in seconds")
    failure.reason.encode()  # it can be sent


def test_the_traceback_begins_with_user_code() -> None:
    def breaks(event: CloudEvent) -> Any:
        return event.json()

    try:
        sending()  # ours and theirs interleave: only our frames above the first of theirs are cut
        breaks(event(b"{"))
    except EventInvalid as error:
        lines = classify(error).detail.splitlines()

    assert lines[0] == "Traceback (most recent call last):"
    assert "test_the_traceback_begins_with_user_code" in lines[1]


def test_reasons_and_details_are_bounded() -> None:
    failure = classify(raised_by(ValueError("x" * 1_000_000)))

    assert len(failure.reason) < 1100
    assert len(failure.detail) <= 16 << 10


def test_a_real_pydantic_model_is_decoded_and_says_what_is_wrong() -> None:
    pydantic = pytest.importorskip("pydantic")
    real = pydantic.create_model("Real", id=(int, ...), name=(str, "n"))

    async def handler(order: Any) -> None: ...

    handler.__annotations__["order"] = real
    arguments = prepare(function(on="a")(handler)).arguments
    [order] = arguments(event({"id": 3}), context())
    with pytest.raises(EventInvalid) as raised:
        arguments(event({"id": "x", "name": 1}), context())
    with pytest.raises(EventInvalid, match="Invalid JSON"):
        arguments(event(b"{"), context())

    assert order == real(id=3)
    assert outputs(sending(), order, event(), context())[0][1].json() == {"id": 3, "name": "n"}
    assert str(raised.value).startswith("data is no Real: id: Input should be a valid integer")
    assert "; name: Input should be a valid string" in str(raised.value)
