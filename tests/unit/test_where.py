"""The filter dialects of CloudEvents Subscriptions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_faas import where
from broker_faas.errors import ConfigError
from broker_faas.event import CloudEvent
from broker_faas.where import Filter, all_, any_, exact, from_json, not_, prefix, suffix
from tests.strategies import events, names, strings

EVENT = CloudEvent(type="orders.created", source="/shop/eu", id="1", subject="a.tmp", flag=True, time="2026-01-31T09:30:00Z", empty="")
leaves = st.builds(
    lambda make, attributes: make(**attributes),
    st.sampled_from([exact, prefix, suffix]),
    st.dictionaries(st.one_of(names, st.sampled_from(["type", "source", "id"])), strings, min_size=1, max_size=3),
)
filters: st.SearchStrategy[Filter] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda some: all_(*some)),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: any_(*some)),
        inner.map(not_),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("filter", "matches"),
    [
        (exact(type="orders.created"), True),
        (exact(type="orders.created", source="/shop/eu"), True),
        (exact(type="orders.created", source="/shop"), False),
        (exact(type="Orders.created"), False),  # case counts
        (exact(flag="true"), True),  # extensions by their canonical string
        (exact(missing="x"), False),
        (exact(specversion="1.0", time="2026-01-31T09:30:00Z"), True),
        (prefix(source="/shop/"), True),
        (prefix(source="/shop/", type="orders."), True),
        (prefix(source="/shop/", type="x"), False),
        (prefix(source="shop"), False),
        (prefix(missing="x"), False),
        (prefix(empty="x"), False),
        (suffix(subject=".tmp"), True),
        (suffix(subject="a.tmp"), True),
        (suffix(subject="a"), False),
        (suffix(missing="x"), False),
        (all_(prefix(source="/shop"), suffix(subject=".tmp")), True),
        (all_(prefix(source="/shop"), suffix(subject=".x")), False),
        (any_(exact(id="2"), exact(id="1")), True),
        (any_(exact(id="2"), exact(id="3")), False),
        (not_(exact(id="2")), True),
        (not_(exact(missing="x")), True),
        (not_(any_(exact(id="1"), exact(id="2"))), False),
    ],
)
def test_a_filter_matches_by_its_dialect(filter: Filter, matches: bool) -> None:
    assert filter.matches(EVENT) is matches
    assert from_json(filter.to_json()).matches(EVENT) is matches


@given(filters)
def test_a_filter_survives_json(filter: Filter) -> None:
    assert from_json(orjson.loads(orjson.dumps(filter.to_json()))) == filter


@given(events(), st.lists(filters, min_size=1, max_size=3))
def test_all_any_and_not_follow_de_morgan(event: CloudEvent, some: list[Filter]) -> None:
    assert not_(all_(*some)).matches(event) is any_(*map(not_, some)).matches(event)
    assert not_(any_(*some)).matches(event) is all_(*map(not_, some)).matches(event)


@given(events(), st.data())
def test_every_attribute_matches_itself_and_its_ends(event: CloudEvent, data: st.DataObject) -> None:
    name, value = data.draw(st.sampled_from([(name, value) for name, value in event.attributes.items() if value]))
    cut = data.draw(st.integers(0, len(value) - 1))

    assert exact(**{name: value}).matches(event)
    assert prefix(**{name: value[: cut + 1]}).matches(event)
    assert suffix(**{name: value[cut:]}).matches(event)


def test_the_json_form_is_that_of_subscriptions() -> None:
    made = all_(exact(type="a", source="b"), any_(prefix(id="1"), not_(suffix(subject="x"))))

    assert made.to_json() == {
        "all": [{"exact": {"source": "b", "type": "a"}}, {"any": [{"prefix": {"id": "1"}}, {"not": {"suffix": {"subject": "x"}}}]}]
    }


def test_filters_are_values() -> None:
    made: Any = exact(type="a", source="b")

    assert made == exact(source="b", type="a")
    assert len({made, exact(source="b", type="a"), prefix(source="b")}) == 2
    with pytest.raises(AttributeError):
        made.attributes = ()


def test_all_and_any_go_by_their_own_names_too() -> None:
    assert (where.all, where.any) == (all_, any_)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exact(), "filter 'exact' names no attribute"),
        (lambda: prefix(type=""), "filter 'prefix': the value of 'type' is empty"),
        (lambda: exact(flag=True), "the value of 'flag' must be a string, not True"),  # type: ignore[arg-type]
        (lambda: suffix(type=None), "the value of 'type' must be a string, not None"),  # type: ignore[arg-type]
        (lambda: exact(my_ext="x"), "'my_ext' is no attribute name"),
        (lambda: all_(), "filter 'all' holds no filter"),
        (lambda: any_(), "filter 'any' holds no filter"),
        (lambda: not_({"exact": {}}), "filter 'not' takes filters of broker_faas.where"),  # type: ignore[arg-type]
        (lambda: all_(exact(id="1"), True), "filter 'all' takes filters"),  # type: ignore[arg-type]
        (lambda: from_json({"exakt": {"type": "x"}}), "unknown filter dialect 'exakt'; did you mean 'exact'"),
        (lambda: from_json({"sql": "TRUE"}), "unknown filter dialect 'sql'; there are exact, prefix"),
        (lambda: from_json({5: {}}), "unknown filter dialect 5"),
        (lambda: from_json({}), "an object with one member"),
        (lambda: from_json({"exact": {"id": "1"}, "prefix": {"id": "1"}}), "an object with one member"),
        (lambda: from_json("exact"), "an object with one member"),
        (lambda: from_json({"exact": {}}), "names no attribute"),
        (lambda: from_json({"exact": {"Type": "x"}}), "'Type' is no attribute name"),
        (lambda: from_json({"exact": {5: "x"}}), "5 is no attribute name"),
        (lambda: from_json({"exact": ["x"]}), "takes an object of attributes"),
        (lambda: from_json({"exact": {"id": 1}}), "must be a string, not 1"),
        (lambda: from_json({"all": {"exact": {"id": "1"}}}), "takes an array of filters"),
        (lambda: from_json({"any": []}), "holds no filter"),
        (lambda: from_json({"not": []}), "an object with one member"),
        (lambda: from_json({"all": [{"exact": {"id": "1"}}, {"nope": 1}]}), "unknown filter dialect 'nope'"),
    ],
)
def test_a_filter_that_makes_no_sense_says_why(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
