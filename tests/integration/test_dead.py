"""Dead letters on a real server: list, group, show, replay, purge."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from broker_faas.bus import Delivery, Queue, Record
from broker_faas.buses import admin, consumers, dead, store
from broker_faas.buses.connection import Connection
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.errors import BusRefused, BusUnavailable, ConfigError
from broker_faas.event import CloudEvent
from broker_faas.layout import DEAD, EVENTS, RETRIES, dead_record, event_record, faas_headers, partition
from tests.helpers import eventually
from tests.integration.pulls import Pull, ids, pulling

F, G = Queue("p--f", ("a",)), Queue("p--g", ("a",))


@pytest_asyncio.fixture
async def bus(bus_url: str) -> AsyncIterator[JetStreamBus]:
    async with NatsBus(bus_url, max_bytes=64 << 20, dead_bytes=64 << 20).open() as bus:
        yield bus


@pytest.fixture
def connection(bus: JetStreamBus) -> Connection:
    return bus.connection


@pytest_asyncio.fixture
async def pull(bus_url: str) -> AsyncIterator[Pull]:
    async with pulling(bus_url) as pull:
        yield pull


def letter(queue: Queue, n: int, *, reason: str = "ValueError: no", key: str | None = None) -> Record:
    event = CloudEvent(type="t", source="/s", id=str(n), data=b"x" * 1000, partitionkey=key)
    stored = event_record("a", event)
    delivery = Delivery(stored.subject, stored.headers, stored.data, n + 1, 3, 1000.0 + n, "", "")
    detail = f'Traceback:\n  File "app.py", line {len(reason)}, in f\n    fail()'
    return dead_record(queue, delivery, reason=reason, detail=detail, attempts=3, now=2000.0 + n, version="abc")


async def bury(bus: JetStreamBus, queue: Queue, numbers: Sequence[int], **how: str) -> None:
    await bus.publish([letter(queue, n, **how) for n in numbers], output=True)


async def left(bus: JetStreamBus) -> dict[str, int]:
    return await store.subjects(bus, DEAD, ">")


# --- looking ---


async def test_a_list_has_pages_oldest_first(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(25))
    await bury(bus, G, range(25, 30))
    first = await dead.list_dead(connection, ["p--f"], limit=20)
    second = await dead.list_dead(connection, ["p--f"], after=first[-1].seq, limit=20)

    assert [one.id for one in first + second] == [str(n) for n in range(25)]
    assert len(await dead.list_dead(connection)) == 30
    assert await dead.list_dead(connection, ["p--none"]) == []


async def test_a_letter_says_what_failed_where_and_when(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, [7], reason="KeyError: 'id' ünd more")
    [one] = await dead.list_dead(connection)

    assert (one.queue, one.topic, one.reason, one.attempts, one.version) == ("p--f", "a", "KeyError: 'id' ünd more", 3, "abc")
    assert (one.first, one.last, one.size, one.id, one.source, one.type) == (1007.0, 2007.0, 1000, "7", "/s", "t")
    assert one.detail.startswith('Traceback:\n  File "app.py"')


async def test_same_cause_is_one_group(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(3), reason="ValueError: order 17 is late")
    await bury(bus, F, range(3, 5), reason="KeyError: 'id'")
    await bury(bus, F, range(5, 6), reason="ValueError: order 99 is late")
    await bury(bus, G, range(6, 7), reason="KeyError: 'id'")

    groups = await dead.group_dead(connection)

    assert [(one.queue, one.count, one.first, one.last) for one in groups] == [
        ("p--f", 4, 2000.0, 2005.0),
        ("p--f", 2, 2003.0, 2004.0),
        ("p--g", 1, 2006.0, 2006.0),
    ]
    assert groups[0].sample.id == "5"


async def test_one_letter_is_shown_with_its_event(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(3))
    one, delivery = await dead.show_dead(bus, 2)

    assert (one.id, CloudEvent.from_headers(delivery.headers, delivery.data).id, len(delivery.data)) == ("1", "1", 1000)
    with pytest.raises(BusRefused, match="no dead letter 99"):
        await dead.show_dead(bus, 99)


async def test_what_another_client_put_there_is_shown_too(bus: JetStreamBus, connection: Connection) -> None:
    await bus.publish([Record("dead.p--f", "foreign", b"Faas-Attempts: many\r\nFaas-First: \r\n", b"\xff")], output=True)
    [one] = await dead.list_dead(connection)

    assert (one.queue, one.attempts, one.reason, one.id, one.size) == ("p--f", 0, "", "", 1)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e999"])
async def test_numbers_of_another_client_that_are_none_are_shown_as_unknown(bus: JetStreamBus, connection: Connection, number: str) -> None:
    headers = f"Faas-Attempts: {number}\r\nFaas-First: {number}\r\nFaas-Last: {number}\r\n"
    await bus.publish([Record("dead.p--f", "foreign", headers.encode(), b"x")], output=True)
    await bury(bus, F, [1])
    foreign, ours = await dead.list_dead(connection)

    assert (foreign.attempts, ours.attempts) == (0, 3)
    assert 1e9 < foreign.first == foreign.last < 1e11  # when it was stored


# --- replay ---


async def test_a_replay_reaches_the_function_that_failed_alone(bus: JetStreamBus, connection: Connection, pull: Pull) -> None:
    for queue in (F, G):
        await admin.ensure_queue(bus, queue)
    await bury(bus, F, range(250))
    await bury(bus, G, [500])

    assert await dead.replay(connection, bus, F) == 250
    assert ids(await pull("p--f", 250, stream=RETRIES)) == list(range(250))
    assert await pull("p--g", 1, stream=RETRIES, timeout=0.2) == []
    assert await left(bus) == {"dead.p--g": 1}


async def test_a_replayed_event_is_a_first_attempt(bus: JetStreamBus, connection: Connection, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, F, [1])
    await dead.replay(connection, bus, F)
    [one] = await pull("p--f", 1, stream=RETRIES)

    assert faas_headers(one.headers) == {"topic": "a", "sequence": "replay-1-0", "attempts": "0", "first": "1001.000"}


async def test_chosen_letters_alone_are_replayed(bus: JetStreamBus, connection: Connection, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(5))
    await bury(bus, F, range(5, 8), reason="KeyError: 'id'")
    fingerprint = (await dead.list_dead(connection, after=5))[0].fingerprint
    await dead.replay(connection, bus, F, seqs=[2, 4, 2])
    await dead.replay(connection, bus, F, fingerprint=fingerprint)

    assert ids(await pull("p--f", 5, stream=RETRIES)) == [1, 3, 5, 6, 7]
    assert await left(bus) == {"dead.p--f": 3}


async def test_a_replay_that_was_killed_before_its_bookkeeping_is_not_stored_twice(
    bus: JetStreamBus, connection: Connection, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(5))
    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", _killed)
        with pytest.raises(KeyboardInterrupt):
            await dead.replay(connection, bus, F)
    await dead.replay(connection, bus, F)

    assert ids(await pull("p--f", 6, stream=RETRIES, timeout=0.3)) == list(range(5))
    assert await left(bus) == {}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


async def test_a_bus_that_stores_nothing_costs_no_dead_letter(connection: Connection, bus: JetStreamBus) -> None:
    class Down:
        async def publish(self, records: Sequence[Record], *, output: bool = False) -> int:
            raise BusUnavailable("down")

    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(3))
    with pytest.raises(BusUnavailable):
        await dead.replay(connection, Down(), F)  # type: ignore[arg-type]

    assert await left(bus) == {"dead.p--f": 3}


async def test_what_fails_again_is_not_replayed_for_ever(
    bus: JetStreamBus, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All means all that were there when it began."""
    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(3))
    delete = store.delete

    async def fails_again(bus: store.Api, stream: str, seq: int, *, erase: bool = False) -> bool:
        await connection_bus.publish([letter(F, 100 + seq)], output=True)
        return await delete(bus, stream, seq, erase=erase)

    connection_bus = bus
    monkeypatch.setattr(store, "delete", fails_again)

    assert await dead.replay(connection, bus, F) == 3
    assert await left(bus) == {"dead.p--f": 3}


async def test_an_ordered_function_gets_replays_through_its_partitions(bus: JetStreamBus, connection: Connection, pull: Pull) -> None:
    ordered = Queue("p--o", ("a",), 16)
    await admin.ensure_queue(bus, ordered)
    await bury(bus, ordered, range(3), key="k")
    await dead.replay(connection, bus, ordered)
    durable = f"p--o--{partition('k').split('.')[0]}"

    assert [ids(await pull(durable, 1, stream=EVENTS)) for _ in range(3)] == [[0], [1], [2]]


async def test_an_ordered_function_hears_replays_beside_its_events_until_they_are_settled(
    bus: JetStreamBus, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered = Queue("p--o", ("a",), 16)
    durable = f"p--o--{partition('k').split('.')[0]}"

    async def filters() -> tuple[str, ...]:
        found = await consumers.find(bus, EVENTS, durable)
        assert found
        return consumers.filters_of(found)

    async def settled() -> bool:
        found = await consumers.find(bus, EVENTS, durable)
        return bool(found and not found["num_ack_pending"])

    async def starts() -> None:
        await admin.ensure_queue(bus, ordered)

    await starts()
    made = await filters()
    await bury(bus, ordered, range(2), key="k")
    async with bus.subscribe(ordered, 4) as subscription:
        await dead.replay(connection, bus, ordered)
        heard = await filters()
        deliveries = aiter(subscription)
        [first] = await anext(deliveries)
        monkeypatch.setattr(admin, "REPLAYED", 0.0)
        await starts()
        assert await filters() == heard, "one of them is not settled"
        subscription.settle([first])
        [second] = await anext(deliveries)
        subscription.settle([second])
        await eventually(settled)
    monkeypatch.setattr(admin, "REPLAYED", 3600.0)
    await starts()
    assert await filters() == heard, "another replay may be on its way"
    monkeypatch.setattr(admin, "REPLAYED", 0.0)
    await starts()

    assert (len(made), len(heard)) == (1, 2)
    assert await filters() == made


async def test_a_replay_keeps_its_rate(bus: JetStreamBus, connection: Connection) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(31))
    began = time.monotonic()
    await dead.replay(connection, bus, F, rate=50)

    assert 0.6 <= time.monotonic() - began < 3


async def test_a_letter_of_another_function_is_not_replayed_by_number(bus: JetStreamBus, connection: Connection) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, G, [1])
    with pytest.raises(ConfigError, match="dead letter 1 belongs to p--g, not to p--f"):
        await dead.replay(connection, bus, F, seqs=[1])

    assert await left(bus) == {"dead.p--g": 1}


async def test_a_replay_to_a_queue_that_is_gone_says_so(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, [1])
    with pytest.raises(BusRefused, match="no queue p--f on the bus"):
        await dead.replay(connection, bus, F)


async def test_letters_of_a_former_name_are_replayed_under_the_new_one(bus: JetStreamBus, connection: Connection, pull: Pull) -> None:
    await admin.ensure_queue(bus, F)
    await bury(bus, F, range(2))
    await admin.rename(bus, "p--f", G)

    assert await dead.replay(connection, bus, G) == 2
    assert ids(await pull("p--g", 2, stream=RETRIES)) == [0, 1]


# --- purge ---


async def test_purging_takes_one_queues_letters(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(5))
    await bury(bus, G, range(5, 8))

    assert await dead.purge_dead(connection, ["p--f"]) == 5
    assert await left(bus) == {"dead.p--g": 3}


async def test_purging_takes_the_chosen_ones(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(5))
    await bury(bus, F, range(5, 8), reason="KeyError: 'id'")
    fingerprint = (await dead.list_dead(connection, after=5))[0].fingerprint

    assert await dead.purge_dead(connection, ["p--f"], seqs=[1, 3], erase=True) == 2
    assert await dead.purge_dead(connection, ["p--f"], fingerprint=fingerprint) == 3
    assert [one.id for one in await dead.list_dead(connection)] == ["1", "3", "4"]


async def test_purging_by_age_leaves_the_younger(bus: JetStreamBus, connection: Connection) -> None:
    await bury(bus, F, range(3))
    await bury(bus, F, range(3, 5))
    _, fourth = await dead.show_dead(bus, 4)

    assert await dead.purge_dead(connection, ["p--f"], before=fourth.stored_at) == 3
    assert await dead.purge_dead(connection, ["p--f"], before=fourth.stored_at) == 0
    assert await dead.purge_dead(connection, ["p--f"], before=time.time() + 60) == 2
