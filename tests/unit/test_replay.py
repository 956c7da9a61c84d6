"""connectors/replay.py: what lies in quarantine, as its connector would translate it now."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

import msgspec
import pytest

from broker_faas.bus import Delivery, Record
from broker_faas.connectors.batch import Batch, Raw, Refused, Route, records
from broker_faas.connectors.replay import again
from broker_faas.event import CloudEvent
from broker_faas.layout import quarantine_record


@dataclass(frozen=True)
class Lines:
    """A connector whose records are lines with a number."""

    upper: bool = False

    def batch(self, *lines: tuple[int, bytes]) -> Batch:
        items = [self.item(n, line) for n, line in lines]
        return Batch(
            [("lines", items)], None, {}, lambda _, n: Raw(f"line {lines[n][0]}", {"n": str(lines[n][0])}, lines[n][1], lines[n][0])
        )

    def item(self, n: int, line: bytes) -> CloudEvent | Refused:
        if not line.isascii():
            return Refused(f"line {n}", "is not ASCII", {"n": str(n)}, line)
        return CloudEvent(type="line", source="/p/c", id=str(n), data=line.upper() if self.upper else line)

    def again(self, source: str, data: bytes, rest: object) -> Batch:
        return self.batch((msgspec.convert(rest, int), data))


def kept(*quarantine: Record) -> list[Delivery]:
    return [Delivery(one.subject, one.headers, one.data, n, 1, 0.0, "", "") for n, one in enumerate(quarantine, 1)]


def test_events_and_refusals_come_back_as_their_connector_says_now() -> None:
    ready = records(Route(name="c", source="/p/c", to="no topic!"), Lines().batch((3, b"a"), (4, b"\xff")), 0.0)
    batch = again(Lines(upper=True), "/p/c", kept(*ready.quarantine))

    assert batch.items == [
        ("lines", CloudEvent(type="line", source="/p/c", id="3", data=b"A")),
        ("lines", Refused("line 4", "is not ASCII", {"n": "4"}, b"\xff")),
    ]
    assert batch.raw is not None
    assert batch.raw(1, 0) == Raw("line 4", {"n": "4"}, b"\xff", 4)


def test_of_a_connector_that_tells_nothing_of_its_records_events_come_back_as_they_were() -> None:
    events = [CloudEvent(type="t", source="/s", id="1"), CloudEvent(type="größe", source="/s", id="2", data=b"", subject="x y")]
    ready = records(Route(name="c", source="/p/c", to="no topic!"), Batch([("n", events)], None, {}), 0.0)

    assert again(object(), "/p/c", kept(*ready.quarantine)).items == [("n", event) for event in events]


def with_again(what: object) -> Record:
    return quarantine_record("c", "line 3", "r", {}, b"a", 0.0, msgspec.msgpack.encode(what))


BROKEN = Record("quarantine.c", "", b"Faas-Position: line 3\r\nFaas-Again: %b\r\n" % b64encode(b"\xc1"), b"a")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (quarantine_record("c", "line 3", "r", {}, b"a", 0.0), "or the version that it had then, keeps too little"),
        (quarantine_record("c", "line 3", "r", {}, b"a" * (2 << 20), 0.0, b"x"), "it was cut"),
        (with_again(["record", "no number"]), "Expected `int`, got `str`"),
        (with_again(["else", 1]), "Invalid value 'else'"),
        (with_again(["event", "n", {"id": ""}, False]), "attribute 'source' is missing"),
        (BROKEN, "cannot be replayed"),
        (BROKEN._replace(headers=b"Faas-Position: line 3\r\nFaas-Again: ?\r\n"), "cannot be replayed"),
    ],
)
def test_what_cannot_be_translated_again_says_why_and_takes_nothing_along(record: Record, says: str) -> None:
    good = with_again(["record", 3])
    [(_, refused), (_, event)] = again(Lines(), "/p/c", kept(record, good)).items

    assert isinstance(refused, Refused)
    assert refused.where == "line 3"
    assert says in refused.reason
    assert event == CloudEvent(type="line", source="/p/c", id="3", data=b"a")


def test_a_connector_that_cannot_translate_again_is_named() -> None:
    [(_, refused)] = again(object(), "/p/c", kept(with_again(["record", 3]))).items

    assert isinstance(refused, Refused)
    assert "object has no method again()" in refused.reason
