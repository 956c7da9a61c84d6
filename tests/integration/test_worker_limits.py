"""A worker at the limits of its bus: records that are too large, and a bus without room. Nothing is lost, nobody else waits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from broker_faas.buses.nats import NatsBus
from broker_faas.event import CloudEvent
from broker_faas.layout import MAX_DATA, delayed_record, event_record
from tests.helpers import eventually
from tests.project import Project, event

from .test_worker import dead


@pytest.mark.parametrize("output", ['data=b"x" * ((1 << 20) + 1)', 'pad="x" * (45 << 10)'])
async def test_an_output_that_the_bus_does_not_take_makes_its_event_a_dead_letter(bus_url: str, tmp_path: Path, output: str) -> None:
    project = Project(
        tmp_path,
        f"""
        @function(on="a", sends="b")
        async def f(event): return CloudEvent(type="b", source="/f", id="1", {output})
        @function(on="b")
        async def g(event): pass
    """,
    )
    async with project.running(bus_url) as running:
        await running.publish("a", {"n": 1})
        await eventually(lambda: running.counts("f").dead + running.counts("f").done == 1)

    (letter,) = await dead(bus_url)

    assert "its output cannot be published: " in letter["reason"]
    assert ("a", '{"n":1}') == (letter["topic"], letter["data"])


async def test_a_delayed_record_that_its_topic_does_not_take_is_a_dead_letter_and_those_beside_it_arrive(
    bus_url: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, '@function(on="a")\nasync def f(event): note("ran", event.json())')
    at = time.time() + 1
    large = delayed_record("a", event("a", 9, None), at)._replace(data=b"x" * (MAX_DATA + 1))  # as another client would store it
    async with project.running(bus_url) as running:
        await running.bus.publish([large, *(delayed_record("a", event("a", n, n), at) for n in range(5))])
        await eventually(lambda: len(project.lines("ran")) == 5)

        assert (5, 0) == (running.counts("f").accepted, running.counts("f").dead)

    (letter,) = await dead(bus_url)

    assert ("dead.publish", MAX_DATA + 1) == (letter["subject"], len(letter["data"]))


async def test_an_event_too_large_to_be_stored_for_a_later_attempt_is_a_dead_letter(bus_url: str, tmp_path: Path) -> None:
    import nats

    project = Project(tmp_path, '@function(on="a")\nasync def f(event): raise Retry("not now", after=31)')
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": "t", "x-large": "y" * 65_200}
    async with project.running(bus_url) as running:
        client = await nats.connect(bus_url)
        await client.jetstream().publish("ev.a.-.-", b"{}", headers=headers)
        await client.close()
        await eventually(lambda: running.counts("f").dead + running.counts("f").retried == 1)

    (letter,) = await dead(bus_url)

    assert "too large to be stored again for a later attempt: not now" == letter["reason"]


async def test_a_dead_letter_that_the_bus_does_not_take_spares_its_traceback_and_keeps_the_event(bus_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, '@function(on="a", retry=RetryPolicy(max_attempts=1))\nasync def f(event): raise ValueError("x" * 4000)')
    data = b"x" * ((1 << 20) - 5000)
    async with project.running(bus_url) as running:
        running.bus.connection.client._max_payload = 1 << 20  # NATS's own default
        await running.bus.publish([event_record("a", CloudEvent(type="a", source="/s", id="1", data=data))])
        await eventually(lambda: running.counts("f").dead == 1)

    (letter,) = await dead(bus_url)

    assert (len(data), "") == (len(letter["data"]), letter["detail"])


async def test_dead_letters_that_find_no_room_hold_up_no_other_function(bus_url: str, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        """
        @function(on="a")
        async def rejects(event): raise Reject("no")
        @function(on="b", sends="c")
        async def works(event): return {}
    """,
    )
    async with NatsBus(bus_url, dead_bytes=200_000).open() as bus, project.worker(bus) as running:
        await running.publish("a", *["x" * 100_000] * 3)
        await eventually(lambda: running.counts("rejects").dead == 1 and len(running.feed("rejects").held) == 2)
        await running.publish("b", *range(5))
        await eventually(lambda: running.counts("works").done == 5, timeout=5)

        assert 1 == running.counts("rejects").dead

        await bus.api("STREAM.PURGE.dead")
        await eventually(lambda: running.counts("rejects").dead == 2)
        await bus.api("STREAM.PURGE.dead")
        await eventually(lambda: running.counts("rejects").dead == 3)
