"""What only a real server, a real socket and their faults can show about buses/nats.py."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker_faas.bus import Delivery, Queue, Record
from broker_faas.buses import pull
from broker_faas.buses.commit import MAX_QUEUED
from broker_faas.buses.nats import JetStreamBus, NatsBus
from broker_faas.buses.pull import PullSubscription
from broker_faas.buses.reading import read
from broker_faas.embedded import Server
from broker_faas.errors import BusFull, BusRefused, BusUnavailable, EventTooLarge, TopicInvalid
from broker_faas.event import CloudEvent
from broker_faas.layout import EVENTS, MAX_DATA, MAX_HEADERS, delayed_record
from tests.helpers import OwnNats, eventually
from tests.proxy import Proxy

OwnServer = Callable[..., Awaitable[OwnNats]]
QUEUE = Queue("shop--reserve", ("orders.created",), start="first")


def record(n: int, topic: str = "orders.created", data: bytes = b"") -> Record:
    return Record(f"ev.{topic}.-.-", f"{topic}:{n}", b"ce-id: %d\r\n" % n, data or b"%d" % n)


async def take(subscription: PullSubscription, count: int, seconds: float = 10.0) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(seconds):
        async for batch in subscription:
            taken += batch
            if len(taken) >= count:
                break
    return taken


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.data) for delivery in deliveries]


# --- a server that dies, a network that breaks --------------------------------------------------------------


async def test_a_reconnect_is_logged_without_the_password(own_nats: OwnServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="broker_faas")
    own = await own_nats()
    async with NatsBus(own.url).open() as bus:
        await own.kill()
        await own.start()
        await eventually(lambda: bus.connected)
        restored = next(one for one in caplog.records if one.message == "bus connection restored")

    assert vars(restored)["server"] == f"127.0.0.1:{own.server.port}"
    assert own.url.split(":")[2].split("@")[0] not in str([vars(one) for one in caplog.records])


async def test_credentials_that_are_refused_for_long_after_a_reconnect_close_the_bus_for_good(
    own_nats: OwnServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("broker_faas.buses.connection.REFUSED", 0.5)
    own = await own_nats()
    async with NatsBus(own.url).open() as bus:
        await own.stop()
        other = await own_nats(folder=tmp_path / "another", port=own.server.port)  # with passwords of its own
        await eventually(bus.closed.is_set)
        with pytest.raises(BusUnavailable, match=r"the bus is closed \(.*[Aa]uthorization"):
            await bus.publish([record(1)])
        await other.stop()
        await own.start()
        await eventually(lambda: bus.connected)

        assert await bus.publish([record(1)]) == 0


async def test_a_server_killed_while_publishing_loses_and_doubles_nothing(own_nats: OwnServer) -> None:
    own = await own_nats()
    async with NatsBus(own.url).open() as bus:
        stored: list[int] = []

        async def publisher(start: int, size: int) -> None:
            for n in range(start, start + 400, size):
                await bus.publish([record(i) for i in range(n, n + size)])
                stored.extend(range(n, n + size))

        async with asyncio.TaskGroup() as group:
            for publishers, size in enumerate([1, 1, 4, 20, 100, 100]):
                group.create_task(publisher(publishers * 400, size))
            await eventually(lambda: len(stored) >= 300)
            await own.kill()
            before = len(stored)
            await own.start()
        seen: list[int] = []
        async with bus.subscribe(QUEUE, 500) as subscription:
            while len(seen) < 2400:
                batch = await take(subscription, 1)
                subscription.settle(batch)
                seen += numbers(batch)

        assert before < 2400
        assert sorted(seen) == sorted(stored) == list(range(2400))
        for start in range(0, 2400, 400):
            mine = [n for n in seen if start <= n < start + 400]

            assert mine == sorted(mine)


@asynccontextmanager
async def behind_proxy(server: Server, url: str, **options: Any) -> AsyncIterator[tuple[Proxy, JetStreamBus]]:
    async with Proxy(server.port).open() as proxy, NatsBus(proxy.url(url), **options).open() as bus:
        yield proxy, bus


async def disconnected(proxy: Proxy, bus: JetStreamBus) -> None:
    """Until the test lets it: `proxy.accepting = True`."""
    proxy.accepting = False
    proxy.cut()
    await eventually(lambda: not bus.connected)


async def test_pulling_goes_on_within_5_seconds_of_a_cut(nats_server: Server, bus_url: str) -> None:
    async with behind_proxy(nats_server, bus_url) as (proxy, bus), bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([record(1)])
        subscription.settle(await take(subscription, 1))
        proxy.cut()
        started = time.monotonic()
        await bus.publish([record(2)])
        [second] = await take(subscription, 1)

        assert second.data == b"2"
        assert time.monotonic() - started < 5


async def test_pulling_goes_on_after_a_server_restart(own_nats: OwnServer) -> None:
    own = await own_nats()
    async with NatsBus(own.url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([record(1)])
        subscription.settle(await take(subscription, 1))
        await own.kill()
        await eventually(lambda: not bus.connected)
        await own.start()
        started = time.monotonic()
        await bus.publish([record(2)])
        seen = numbers(await take(subscription, 1))
        while 2 not in seen:  # a server killed right after an ack may hand out the event again
            seen += numbers(await take(subscription, 1))

        assert time.monotonic() - started < 5
        assert not bus.closed.is_set()


async def test_acks_settled_while_disconnected_arrive_later(nats_server: Server, bus_url: str) -> None:
    queue = Queue("shop--reserve", ("orders.created",), start="first", ack_wait=2.0)
    async with behind_proxy(nats_server, bus_url) as (proxy, bus), bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(n) for n in range(5)])
        held = await take(subscription, 5)
        await disconnected(proxy, bus)
        subscription.settle(held)
        proxy.accepting = True
        await eventually(lambda: bus.connected)

        assert await eventually(lambda: nothing_left(bus, queue), 1.5)


async def turned() -> None:
    """What was settled leaves at the end of the loop's turn."""
    await asyncio.sleep(0)


async def nothing_left(bus: JetStreamBus, queue: Queue) -> bool:
    return (await bus.lag(queue)).total == 0


async def test_while_disconnected_acks_are_kept_and_nothing_else(nats_server: Server, bus_url: str) -> None:
    async with behind_proxy(nats_server, bus_url) as (proxy, bus), bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([record(n) for n in range(3)])
        one, two, three = await take(subscription, 3)
        await disconnected(proxy, bus)
        subscription.settle((), (), [one, two, three])
        subscription.settle((), [(one, 0.0), (two, 5.0)])
        await turned()
        before = [*bus.connection._kept]
        subscription.settle([three], [], [three])
        await turned()

        assert before == []
        assert [data for _, data in bus.connection._kept] == [f"PUB {three.token} 4\r\n+ACK\r\n".encode()]

        proxy.accepting = True
        await eventually(lambda: bus.connected)


async def test_what_nobody_reads_is_not_piled_up_when_its_leases_end(bus_url: str) -> None:
    queue = Queue("shop--reserve", ("orders.created",), start="first", ack_wait=0.5)
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(n) for n in range(50)])
        seen = 0

        def delivered_four_times() -> bool:
            nonlocal seen
            seen = max(seen, len(subscription._ready))
            return any(one.deliveries >= 4 for one in subscription._ready)

        await eventually(delivered_four_times)

        assert seen <= 10


async def test_the_ack_of_an_ordered_event_is_not_kept_beyond_its_lease(nats_server: Server, bus_url: str) -> None:
    queue = Queue("shop--ordered", ("orders.created",), partitions=16, start="first", ack_wait=1.0)
    async with behind_proxy(nats_server, bus_url) as (proxy, bus), bus.subscribe(queue, 5) as subscription:
        await bus.publish([record(1)._replace(subject="ev.orders.created.3.7")])
        [one] = await take(subscription, 1)
        await disconnected(proxy, bus)
        subscription.settle([one])
        loop = asyncio.get_running_loop()
        await eventually(lambda: loop.time() > one.until)  # type: ignore[attr-defined]
        proxy.accepting = True
        [again] = await take(subscription, 1)
        subscription.settle([again])

    assert (one.seq, 2) == (again.seq, again.deliveries)


@pytest.mark.parametrize("settled", ["done", "again"])
async def test_what_became_of_an_ordered_event_is_not_said_once_its_lease_has_ended(
    bus_url: str, monkeypatch: pytest.MonkeyPatch, settled: str
) -> None:
    """Another worker may be at it, and the next event of the key would come before that one is through."""
    queue = Queue("shop--ordered", ("orders.created",), partitions=16, start="first", ack_wait=1.0)
    keyed = [record(n)._replace(subject="ev.orders.created.3.7") for n in (1, 2)]
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 5) as subscription:
        await bus.publish(keyed)
        [late] = await take(subscription, 1)
        await eventually(lambda: late.token not in subscription._held)
        writes = noted_writes(bus, monkeypatch)
        subscription.settle([late] if settled == "done" else [], [(late, 0.0)] if settled == "again" else [])
        await turned()
        said = [write for write in writes if b"PUB $JS.ACK" in write]
        [again] = await take(subscription, 1)
        subscription.settle([again])
        [second] = await take(subscription, 1)

    assert [(1, 1), (1, 2), (2, 1)] == [(int(one.data), one.deliveries) for one in (late, again, second)]
    assert said == []


async def test_what_became_of_an_ordered_event_is_not_said_from_the_moment_its_lease_ends(
    bus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("shop--ordered", ("orders.created",), partitions=16, start="first", ack_wait=0.5)
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 5) as subscription:
        bus._subscriptions.discard(subscription)  # its next tick is yet to come
        await bus.publish([record(1)._replace(subject="ev.orders.created.3.7")])
        [late] = await take(subscription, 1)
        await take(subscription, 1)  # delivered again, here or elsewhere
        writes = noted_writes(bus, monkeypatch)
        subscription.settle([late])
        await turned()

        assert [] == [write for write in writes if b"PUB $JS.ACK" in write]


async def test_acks_that_nothing_waits_for_leave_together(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsBus(bus_url).open() as bus:
        async with bus.subscribe(QUEUE, 1000) as subscription:
            await bus.publish([record(n) for n in range(60)])
            held = await take(subscription, 60)
            writes = noted_writes(bus, monkeypatch)
            for one in held[:50]:
                subscription.settle([one])
                await turned()
            await eventually(lambda: b"".join(writes).count(b"+ACK") == 50)
            acks = [write for write in writes if b"+ACK" in write]
            subscription.settle(held[50:])
        lag = await bus.lag(QUEUE)

    assert len(acks) < 25, "one at once, and the others when the time is up or a request leaves anyway"
    assert lag.total == 0, "what waits when the subscription ends is written"


async def test_a_late_ack_of_an_event_without_order_still_spares_it_another_run(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue("shop--reserve", ("orders.created",), start="first", ack_wait=0.5)
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 1) as subscription:
        await bus.publish([record(1)])
        [late] = await take(subscription, 1)
        await eventually(lambda: late.token not in subscription._held)
        writes = noted_writes(bus, monkeypatch)
        subscription.settle([late])
        await turned()

        assert f"PUB {late.token} 4\r\n+ACK\r\n".encode() in b"".join(writes)


async def test_a_dead_link_is_left_even_with_unsent_bytes(nats_server: Server, bus_url: str) -> None:
    """nats-py alone waits for ever until what it wrote has left."""
    async with behind_proxy(nats_server, bus_url, try_timeout=1.0) as (proxy, bus):
        proxy.freeze()
        publishing = asyncio.create_task(bus.publish([record(n, data=b"x" * MAX_DATA) for n in range(30)]))
        await eventually(lambda: bus._connection.client._transport._io_writer.transport.get_write_buffer_size() > 1 << 20)  # type: ignore[union-attr]
        await bus._connection.client._process_op_err(OSError("no pong"))
        await eventually(lambda: not bus.connected)
        proxy.thaw()
        duplicates = await publishing

        assert duplicates == 0


async def test_publishing_waits_for_a_lost_server_and_says_so_in_the_end(nats_server: Server, bus_url: str) -> None:
    async with behind_proxy(nats_server, bus_url, patience=1.0) as (proxy, bus):
        await disconnected(proxy, bus)
        started = time.monotonic()
        with pytest.raises(BusUnavailable, match="same ids"):
            await bus.publish([record(1)])

        assert 0.9 < time.monotonic() - started < 2
        assert bus.last_error
        proxy.accepting = True
        await eventually(lambda: bus.connected)

        assert await bus.publish([record(1)]) == 0


async def test_the_queue_before_a_lane_is_bounded(nats_server: Server, bus_url: str) -> None:
    async with behind_proxy(nats_server, bus_url, patience=20.0) as (proxy, bus):
        await disconnected(proxy, bus)
        tasks = [asyncio.create_task(bus.publish([record(n * 100 + i) for i in range(100)])) for n in range(150)]
        lane = bus._lanes["events"]
        await eventually(lambda: len(lane._queue) > MAX_QUEUED - 1100)
        held = len(lane._queue)
        proxy.accepting = True
        outcomes = await asyncio.gather(*tasks)

        assert held <= MAX_QUEUED
        assert outcomes == [0] * 150
        assert (await bus.api("STREAM.INFO.events"))["state"]["messages"] == 15_000


async def test_a_request_that_got_lost_is_sent_again(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "EXPIRES", 0.5)
    async with NatsBus(bus_url).open() as bus:
        send = bus._connection.client.send
        with monkeypatch.context() as lossy:
            lossy.setattr(bus._connection.client, "send", lambda data: b"MSG.NEXT" in data or send(data))
            async with bus.subscribe(QUEUE, 10) as subscription:
                lossy.undo()
                await bus.publish([record(1)])
                [got] = await take(subscription, 1, 4.0)

                assert got.data == b"1"


async def test_requests_are_renewed_when_they_expire(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "EXPIRES", 0.2)
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        await eventually(lambda: subscription._requests >= 8)
        await bus.publish([record(n) for n in range(9)])
        taken = await take(subscription, 9)

        assert numbers(taken) == list(range(9))
        assert all(0 <= consumer.asked <= 10 for consumer in subscription._all)


async def test_a_queue_deleted_under_its_reader_is_an_error_and_no_new_queue(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        await bus.api(f"CONSUMER.DELETE.events.{QUEUE.name}")
        with pytest.raises(BusRefused, match=QUEUE.name) as refused:
            await take(subscription, 1)

        assert refused.value.code == 10014


async def test_a_queue_deleted_while_disconnected_is_an_error(nats_server: Server, bus_url: str) -> None:
    async with (
        NatsBus(bus_url).open() as other,
        behind_proxy(nats_server, bus_url) as (proxy, bus),
        bus.subscribe(QUEUE, 10) as subscription,
    ):
        await disconnected(proxy, bus)
        await other.api(f"CONSUMER.DELETE.events.{QUEUE.name}")
        proxy.accepting = True
        with pytest.raises(BusRefused, match=QUEUE.name):
            await take(subscription, 1)


# --- sizes, subjects, batches -------------------------------------------------------------------------------


async def test_full_headers_and_full_data_pass_and_the_connection_stays(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        largest = [Record("ev.a.-.-", f"large{n}", b"x: " + b"y" * (MAX_HEADERS - 5) + b"\r\n", b"x" * MAX_DATA) for n in range(12)]
        await bus.publish(largest[:1])
        await bus.publish(largest[1:])

        assert (await bus.api("STREAM.INFO.events"))["state"]["messages"] == 12
        assert bus._connection.client.stats["reconnects"] == 0


async def test_a_server_with_a_smaller_max_payload_is_respected(bus_url: str) -> None:
    """It counts headers and data together, and cuts the connection of who sends more."""
    async with NatsBus(bus_url).open() as bus:
        bus._connection.client._max_payload = 1 << 20
        with pytest.raises(EventTooLarge):
            await bus.publish([record(1, data=b"x" * MAX_DATA)])


@pytest.mark.parametrize("subject", ["ev.a b.-.-", "ev.a\r\nPUB x 0.-.-", "ev..a", "ev.*", "ev.a.>", "ev.ä", "ev." + "a" * 600])
async def test_a_subject_that_would_break_the_protocol_is_refused(bus_url: str, subject: str) -> None:
    async with NatsBus(bus_url).open() as bus:
        with pytest.raises(TopicInvalid):
            await bus.publish([Record(subject, "id", b"", b"")])


async def test_a_batch_with_duplicates_is_stored_one_by_one_in_order(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 1000) as subscription:
        await bus.publish([record(150), record(420)])
        keyed = [record(n)._replace(subject=f"ev.orders.created.{n % 3}.0") for n in range(500)]
        duplicates = await bus.publish(keyed)
        taken = numbers(await take(subscription, 500))

        assert duplicates == 2
        assert taken == [150, 420, *[n for n in range(500) if n not in (150, 420)]]


async def test_two_plain_records_of_one_key_are_never_in_flight_together(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsBus(bus_url).open() as bus:
        writes = noted_writes(bus, monkeypatch)
        await bus.publish([record(n)._replace(subject="ev.orders.created.a.0") for n in range(4)] + [record(n) for n in range(4, 8)])
        published = [write.count(b"HPUB ev.") for write in writes if b"HPUB ev." in write]

        assert published == [1, 1, 1, 5]


def noted_writes(bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything the bus writes from now on."""
    writes: list[bytes] = []
    send = bus._connection.client.send

    def note(data: bytes) -> bool:
        writes.append(data)
        return send(data)

    monkeypatch.setattr(bus._connection.client, "send", note)
    return writes


def committed(writes: list[bytes]) -> list[int]:
    """Records of each atomic batch that was sent whole, however many writes it took."""
    found = re.findall(rb"Nats-Batch-Id: (\w+)\r\nNats-Batch-Sequence: (\d+)\r\n(Nats-Batch-Commit: 1)?", b"".join(writes))
    counts = Counter(batch for batch, _, _ in found)
    for batch, sequence, commit in found:
        assert not commit or int(sequence) == counts[batch]
    return [counts[batch] for batch, _, commit in found if commit]


@pytest.mark.parametrize(("count", "batches"), [(10, []), (11, [11]), (1000, [1000]), (1500, [1000, 500])])
async def test_a_few_records_leave_plain_and_more_as_atomic_batches_of_at_most_a_thousand(
    bus_url: str, monkeypatch: pytest.MonkeyPatch, count: int, batches: list[int]
) -> None:
    async with NatsBus(bus_url).open() as bus:
        writes = noted_writes(bus, monkeypatch)
        await bus.publish([record(n) for n in range(count)])

    assert committed(writes) == batches
    assert sum(write.count(b"HPUB ev.") for write in writes) == count


async def test_a_group_leaves_in_one_write(bus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsBus(bus_url).open() as bus:
        writes = noted_writes(bus, monkeypatch)
        await asyncio.gather(*(bus.publish([record(n)]) for n in range(100)))
        published = [write.count(b"HPUB ev.") for write in writes if b"HPUB ev." in write]

        assert published == [100]


async def test_a_message_without_headers_is_delivered(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        await bus._connection.client.publish("ev.orders.created.-.-", b"bare")
        [got] = await take(subscription, 1)
        subscription.settle([got])

        assert (got.headers, got.data) == (b"", b"bare")
        assert subscription._held_bytes == 0


async def test_a_subject_that_is_no_utf_8_is_delivered_and_read_along(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        bus.connection.write(b"PUB ev.orders.created.\xff.- 4\r\nodd!\r\n")
        await bus.publish([record(1)])
        taken = await take(subscription, 2)
        subscription.settle(taken)
        along = [one async for one in read(bus.connection, EVENTS, ["ev.>"])]

        for deliveries in (taken, along):
            assert [("ev.orders.created.\ufffd.-", b"odd!"), ("ev.orders.created.-.-", b"1")] == [
                (one.subject, one.data) for one in deliveries
            ]
        assert await eventually(lambda: nothing_left(bus, QUEUE))


async def test_ack_subjects_with_a_domain_are_understood(bus_url: str) -> None:
    async with NatsBus(bus_url).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        token = f"$JS.ACK.hub.ACCHASH.events.{QUEUE.name}.3.77.12.1700000000500000000.4.rnd"
        subscription._arrived(b"ev.orders.created.-.-", token.encode(), b"NATS/1.0\r\nce-id: 1\r\n\r\n", b"1")
        [got] = await take(subscription, 1)

        assert (got.seq, got.deliveries, got.stored_at, got.source) == (77, 3, 1700000000.5, f"events/{QUEUE.name}")
        assert (got.token, got.headers) == (token, b"ce-id: 1\r\n")


async def test_a_queue_of_256_partitions_is_made_and_served(bus_url: str) -> None:
    queue = Queue("shop--wide", ("orders.created",), partitions=256)
    async with NatsBus(bus_url).open() as bus, bus.subscribe(queue, 10) as subscription:
        await bus.publish([record(n)._replace(subject=f"ev.orders.created.{n // 16:x}.{n % 16:x}") for n in range(256)])
        taken = await take(subscription, 256)

        assert sorted(numbers(taken)) == list(range(256))


async def test_a_stream_without_atomic_batches_is_published_to_one_by_one(bus_url: str) -> None:
    async with NatsBus(bus_url, manage=False).open() as bus:
        await bus.api("STREAM.CREATE.events", {"name": "events", "subjects": ["ev.>"], "storage": "file"})
        stored = [await bus.publish([record(n) for n in range(start, start + 50)]) for start in (0, 40)]

        assert stored == [0, 10]
        assert not bus._lanes["events"]._atomic


async def test_a_bus_whose_link_is_lost_is_left_without_an_error(nats_server: Server, bus_url: str) -> None:
    """Though there was something to send: nats-py's close() raises then."""
    async with behind_proxy(nats_server, bus_url) as (proxy, bus):
        await disconnected(proxy, bus)
        await bus.connection.subscribe("late", lambda *_: None)

        assert bus.connection.client.pending_data_size > 0


async def test_leaving_the_bus_ends_publishes_that_wait(nats_server: Server, bus_url: str) -> None:
    async with behind_proxy(nats_server, bus_url) as (proxy, bus):
        await disconnected(proxy, bus)
        publishing = asyncio.create_task(bus.publish([record(1)]))
        await asyncio.sleep(0)
    with pytest.raises(BusUnavailable, match="closed"):
        await publishing
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.publish([record(1)])


# --- space --------------------------------------------------------------------------------------------------


async def filled(bus: JetStreamBus) -> None:
    """To nine tenths of 2 MiB, by what functions sent."""
    await bus.publish([record(n, data=b"x" * 100_000) for n in range(19)], output=True)


async def test_the_first_publish_of_a_new_connection_to_a_bus_that_is_nearly_full_is_refused(bus_url: str) -> None:
    async with NatsBus(bus_url, max_bytes=2 << 20).open() as bus:
        await filled(bus)
    async with NatsBus(bus_url).open() as bus:
        with pytest.raises(BusFull, match="the last 15 % are kept for what functions send"):
            await bus.publish([record(100)])


async def test_delayed_publishes_may_wait_in_a_tenth_of_the_bus_and_leave_room_for_outputs_and_dead_letters(bus_url: str) -> None:
    async with NatsBus(bus_url, max_bytes=2 << 20).open() as bus:
        delayed = [
            delayed_record("a", CloudEvent(type="t", source="/s", id=f"{n}", data=b"x" * 50_000), time.time() + 86400) for n in range(8)
        ]
        waiting = await stored(bus, delayed, output=False)
        others = [
            record(1, data=b"x" * 50_000),
            Record("dead.shop--reserve", "1", b"", b"x" * 50_000),
            delayed[-1]._replace(subject="at.shop--reserve.1.1"),  # a retry
        ]

        assert waiting == 5
        assert await stored(bus, others, output=True) == 3
        assert await stored(bus, [record(2)], output=False) == 1


async def stored(bus: JetStreamBus, records: list[Record], *, output: bool) -> int:
    """How many, one after the other, until one finds no room."""
    for n, one in enumerate(records):
        try:
            await bus.publish([one], output=output)
        except BusFull:
            return n
    return len(records)


async def test_of_publishes_that_come_together_only_the_one_that_finds_no_room_is_refused(bus_url: str) -> None:
    async with NatsBus(bus_url, max_bytes=2 << 20).open() as bus:
        await filled(bus)
        small = [bus.publish([record(n)], output=True) for n in range(100, 112)]
        large = bus.publish([record(200, data=b"x" * 900_000)], output=True)
        *outcomes, refused = await asyncio.gather(*small, large, return_exceptions=True)

    assert outcomes == [0] * 12
    assert isinstance(refused, BusFull)


# --- streams ------------------------------------------------------------------------------------------------


async def test_streams_grow_with_the_options_and_never_shrink(bus_url: str) -> None:
    sizes = []
    for max_bytes in (1 << 20, 2 << 20, None, 1 << 20):
        async with NatsBus(bus_url, max_bytes=max_bytes).open() as bus:
            sizes.append((await bus.api("STREAM.INFO.events"))["config"]["max_bytes"])

    assert sizes == [1 << 20, 2 << 20, 2 << 20, 2 << 20]


async def test_a_stream_of_somebody_else_is_refused_with_the_field(bus_url: str) -> None:
    async with NatsBus(bus_url, manage=False).open() as bus:
        await bus.api("STREAM.CREATE.events", {"name": "events", "subjects": ["ev.>"], "retention": "workqueue", "storage": "file"})
        with pytest.raises(BusRefused, match=r"'events'.*retention='workqueue'"):
            async with NatsBus(bus_url).open():
                raise AssertionError


async def test_a_missing_stream_is_named(bus_url: str) -> None:
    async with NatsBus(bus_url, manage=False).open() as bus:
        with pytest.raises(BusRefused, match="events") as refused:
            await bus.publish([record(1)])

        assert refused.value.code == 10059


# --- who may, and what is known to be durable ---------------------------------------------------------------

USERS = """
jetstream {{ store_dir: "{folder}" }}
listen: 127.0.0.1:-1
http: 127.0.0.1:-1
ports_file_dir: "{folder}"
max_payload: 8MB
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: half, password: half, permissions: {{ publish: {{ deny: ["ev.Secret.>"] }} }} }}
  {{ user: deaf, password: deaf, permissions: {{ publish: {{ deny: ["$JS.API.CONSUMER.MSG.NEXT.>"] }} }} }}
  {{ user: mute, password: mute, permissions: {{ publish: {{ deny: ["$JS.ACK.>"] }} }} }}
  {{ user: pub, password: pub, permissions: {{ publish: ["ev.>"], subscribe: ["_INBOX.>"] }} }}
  {{ user: shut, password: shut, permissions: {{ subscribe: {{ deny: ["_INBOX.>"] }} }} }}
] }}
"""


@asynccontextmanager
async def _configured(binary: Path, folder: Path) -> AsyncIterator[tuple[str, str]]:
    (folder / "nats.conf").write_text(USERS.format(folder=folder))
    process = await asyncio.create_subprocess_exec(binary, "-c", folder / "nats.conf", stderr=asyncio.subprocess.DEVNULL)
    try:
        [ports] = await eventually(lambda: list(folder.glob("*.ports")))
        import orjson

        found = await eventually(lambda: orjson.loads(ports.read_bytes() or b"{}"))
        yield found["nats"][0].removeprefix("nats://"), found["monitoring"][0]
    finally:
        process.terminate()
        await process.wait()


@pytest_asyncio.fixture
async def restricted(nats_binary: Path, tmp_path: Path) -> AsyncIterator[Callable[..., NatsBus]]:
    """`restricted(user)`: options for a server whose users may not do everything, and which syncs every 2 minutes."""
    async with AsyncExitStack() as stack:
        address, monitor = await stack.enter_async_context(_configured(nats_binary, tmp_path))

        def options(user: str, password: str | None = None, **more: Any) -> NatsBus:
            return NatsBus(f"nats://{user}:{password or user}@{address}", **{"monitor_url": monitor} | more)

        async with options("admin").open() as bus, bus.subscribe(QUEUE, 1):
            pass  # streams and queue are there
        yield options


@pytest.mark.parametrize("count", [1, 100])
async def test_a_topic_that_is_not_permitted_is_refused_at_once_and_disturbs_no_other(
    restricted: Callable[..., NatsBus], count: int
) -> None:
    async with restricted("half").open() as bus:
        started = time.monotonic()
        denied = bus.publish([record(0, topic="Secret")])
        allowed = [bus.publish([record(n)]) for n in range(count)]
        refused, *outcomes = await asyncio.gather(denied, *allowed, return_exceptions=True)

        assert isinstance(refused, BusRefused)
        assert "ev.Secret.-.-" in str(refused)
        assert outcomes == [0] * count
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("user", ["deaf", "mute"])
async def test_a_queue_that_is_not_permitted_ends_its_iteration(restricted: Callable[..., NatsBus], user: str) -> None:
    async with restricted(user).open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        await bus.publish([record(1)])
        with pytest.raises(BusRefused, match="permissions"):
            await serve(subscription)


async def serve(subscription: PullSubscription) -> None:
    async with asyncio.timeout(10):
        async for batch in subscription:
            subscription.settle(batch)


async def test_a_message_larger_than_a_request_may_bring_is_delivered_all_the_same(restricted: Callable[..., NatsBus]) -> None:
    async with restricted("admin").open() as bus, bus.subscribe(QUEUE, 10) as subscription:
        for size in (1, 6 << 20, 2, 3):
            await bus._connection.client.publish(f"go.{QUEUE.name}", b"x" * size)
        taken = await take(subscription, 4)

        assert [len(delivery.data) for delivery in taken] == [1, 6 << 20, 2, 3]


async def test_an_inbox_that_is_not_permitted_is_refused(restricted: Callable[..., NatsBus]) -> None:
    with pytest.raises(BusRefused, match="_INBOX"):
        async with restricted("shut").open():
            raise AssertionError


async def test_a_user_who_may_only_publish_waits_for_a_stream_that_is_away_for_a_moment(
    restricted: Callable[..., NatsBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with restricted("admin").open() as admin, restricted("pub", manage=False).open() as bus:
        config = (await admin.api(f"STREAM.INFO.{EVENTS}"))["config"]
        await admin.api(f"STREAM.DELETE.{EVENTS}")
        writes = noted_writes(bus, monkeypatch)
        publishing = asyncio.create_task(bus.publish([record(1)]))
        await eventually(lambda: publishing.done() or sum(b"HPUB ev." in write for write in writes) > 2)
        await admin.api(f"STREAM.CREATE.{EVENTS}", config)
        outcome = await publishing
        stored = (await admin.api(f"STREAM.INFO.{EVENTS}"))["state"]["messages"]

    assert (outcome, stored) == (0, 1)


async def test_wrong_credentials_are_refused_at_once(restricted: Callable[..., NatsBus]) -> None:
    started = time.monotonic()
    with pytest.raises(BusRefused, match="credentials"):
        async with restricted("admin", "wrong").open():
            raise AssertionError

    assert time.monotonic() - started < 3


async def test_no_server_is_unavailable_within_the_timeout() -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1 within 0\.5 s") as refused:
        async with NatsBus("nats://me:secret@127.0.0.1:1", connect_timeout=0.5).open():
            raise AssertionError

    assert "secret" not in str(refused.value)


async def test_the_bus_says_how_durable_it_is(restricted: Callable[..., NatsBus], nats_server: Server, bus_url: str) -> None:
    said = []
    for options in (restricted("admin"), restricted("admin", monitor_url=None), NatsBus(bus_url, monitor_url=nats_server.monitor_url)):
        async with options.open() as bus:
            said.append(bus.durability)

    assert said == ["interval 2m0s", "unknown", "always"]


async def test_errors_of_the_body_come_out_as_they_are(bus_url: str) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with NatsBus(bus_url).open():
            raise ValueError("mine")


async def test_a_cancelled_body_is_cancelled(bus_url: str) -> None:
    async def body() -> None:
        async with NatsBus(bus_url).open():
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_module_is_imported_without_nats_py() -> None:
    import subprocess
    import sys

    code = "import sys, broker_faas.buses.nats; sys.exit('nats' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
