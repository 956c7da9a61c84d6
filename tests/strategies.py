"""Hypothesis strategies for events. Whatever they make obeys the specification; how it looks is left to chance."""

from __future__ import annotations

import string
from datetime import UTC
from typing import Any
from urllib.parse import quote

import orjson
from hypothesis import settings
from hypothesis import strategies as st

from broker_faas.attributes import CORE
from broker_faas.event import CloudEvent

settings.register_profile("shared", max_examples=60, deadline=None, database=None)  # two cores that others use too; nothing is written
settings.load_profile("shared")


def _allowed(char: str) -> bool:
    code = ord(char)
    return not (code < 0x20 or 0x7F <= code <= 0x9F or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE)


characters = st.one_of(st.sampled_from(' "%\\:;,=%20é€😀'), st.characters(exclude_categories=["Cs"]).filter(_allowed))
strings = st.text(characters, min_size=1, max_size=20)
names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20).filter(lambda name: name not in (*CORE, "data"))
sources = st.one_of(st.sampled_from(["/", "/shop/orders", "urn:uuid:1", "https://a.example/b?c=%20#d", "a", "//h/p"]), strings.map(quote))
times = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.sampled_from(["2026-01-31T09:30:00Z", "2026-06-30T23:59:60Z", "1985-04-12t23:20:50.52z", "1996-12-19T16:39:57.123456789-08:00"]),
)
extensions = st.dictionaries(
    names, st.one_of(strings, st.just(""), st.booleans(), st.integers(-(2**31), 2**31 - 1), st.binary()), max_size=4
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), strings),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """data and datacontenttype. Empty data has a type, and no data has none: that much every binding can tell."""
    kind = draw(st.sampled_from(["none", "json", "broken json", "text", "binary", "untyped"]))
    match kind:
        case "none":
            return {"data": None}
        case "json":
            type_ = draw(st.sampled_from([None, "application/json", "application/vnd.acme+json; charset=utf-8", "TEXT/JSON"]))
            return {"data": draw(json_values.filter(lambda value: value is not None)), "datacontenttype": type_}
        case "broken json":
            return {"data": draw(st.binary().filter(_no_json)), "datacontenttype": "application/json"}
        case "text":
            type_ = draw(st.sampled_from(["text/plain", "text/plain; charset=utf-8", "application/xml", "image/svg+xml"]))
            return {"data": draw(st.text(characters)), "datacontenttype": type_}
        case "untyped":
            return {"data": draw(st.binary(min_size=1))}
    return {
        "data": draw(st.binary()),
        "datacontenttype": draw(st.sampled_from(["application/octet-stream", "text/plain; charset=latin-1"])),
    }


def _no_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return True
    return False


@st.composite
def events(draw: st.DrawFn) -> CloudEvent:
    optional: dict[str, Any] = {
        "subject": draw(st.one_of(st.none(), strings)),
        "time": draw(st.one_of(st.none(), times)),
        "dataschema": draw(st.one_of(st.none(), st.just("https://a.example/schema%201.json"))),
    }
    required: dict[str, Any] = {"id": draw(strings), "source": draw(sources), "type": draw(strings)}
    return CloudEvent(**required | optional | draw(contents()) | draw(extensions))
